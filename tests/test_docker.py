"""The images of docker/ are really built, upon a base made here, and hold what they promise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from edgekit.targets.virtual import state, user_mode
from edgekit.targets.virtual.host import emulator, set_id_maps

ROOT = Path(__file__).resolve().parents[1]
#: Read before any test points the cache elsewhere; no registry of images is asked.
BASE = state.home_dir() / "rootfs" / "bookworm-image.tar"
LIMIT_S = 540

Podman = Callable[..., str]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Runs podman on a storage of its own; returns what it printed."""
    if os.geteuid() != 0 or shutil.which("podman") is None:
        pytest.skip("needs root and podman")
    # Podman refuses paths of more than 50 characters, which those of tests may have.
    folder = Path(tempfile.mkdtemp(prefix="podman-"))

    def run(*arguments: str) -> str:
        command = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    yield run
    run("image", "unmount", "--all")
    run("rmi", "--all", "--force")
    subprocess.run(["umount", f"{folder}/root/overlay"], capture_output=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def toolchain(podman: Podman) -> str:
    """The toolchain image, upon Debian as mmdebstrap makes it.

    With certificates: where this machine's own are mounted, their package cannot set them up.
    """
    if not BASE.exists():
        BASE.parent.mkdir(parents=True, exist_ok=True)
        temporary = BASE.with_name(f".{os.getpid()}.{BASE.name}")
        try:
            subprocess.run(
                [
                    *("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"),
                    *("bookworm", str(temporary)),
                ],
                check=True,
            )
            temporary.rename(BASE)
        finally:
            temporary.unlink(missing_ok=True)
    podman("import", str(BASE), "localhost/base")
    build(podman, "toolchain", ROOT / "docker", BASE="localhost/base")
    return "localhost/edgekit-toolchain"


def build(podman: Podman, name: str, context: Path, **arguments: str) -> None:
    options = [
        word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")
    ]
    file = ROOT / "docker" / f"{name}.Dockerfile"
    podman(
        *("build", "--isolation", "chroot", "--pull=never", "-t", f"localhost/edgekit-{name}"),
        # Packages are fetched through whatever this machine trusts.
        *("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"),
        *("-f", str(file), *options, str(context)),
    )


def test_the_toolchain_compiles_for_the_device(podman: Podman, toolchain: str) -> None:
    mounted = Path(podman("image", "mount", toolchain).strip())
    assert (mounted / "usr/bin/aarch64-linux-gnu-g++").exists()
    assert (mounted / "usr/bin/g++").exists() and (mounted / "usr/bin/mmdebstrap").exists()


def test_the_device_is_an_arm_system_without_keys(podman: Podman, toolchain: str) -> None:
    build(podman, "device", ROOT, TOOLCHAIN=toolchain)
    image = "localhost/edgekit-device"
    assert podman("image", "inspect", image, "--format", "{{.Architecture}}").strip() == "arm64"
    mounted = Path(podman("image", "mount", image).strip())
    python = mounted / "usr/bin/python3.11"
    assert python.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
    said = subprocess.run(
        ["qemu-aarch64-static", "-L", str(mounted), str(python), "-c", "print(6 * 7)"],
        capture_output=True,
        text=True,
        env={"PYTHONHOME": str(mounted / "usr"), "PATH": os.environ["PATH"]},
    )
    assert said.stdout.strip() == "42", said.stderr
    keys = [
        *mounted.glob("etc/ssh/*key*"),
        *mounted.glob("*/*/.ssh/*"),
        *mounted.glob("root/.ssh/*"),
    ]
    assert keys == []
    assert (mounted / "home/pi").stat().st_uid == 1000
    assert "PermitRootLogin prohibit-password" in (mounted / "etc/ssh/sshd_config").read_text()
    start = (mounted / "usr/local/sbin/device-start").read_text()
    assert "AUTHORIZED_KEY" in start
    refused = subprocess.run(["sh", "-c", start], capture_output=True, text=True, env={})
    assert refused.returncode == 2 and "Who may log in?" in refused.stderr


#: What an engine gives a container: its own users, processes and network, /proc and /dev, and a
#: handler for Arm programs.
_CONTAINER = """\
set -eu
root=$1 emulator=$2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -n "$emulator" ]; then
    mount -t binfmt_misc binfmt_misc "$root/proc/sys/fs/binfmt_misc"
    magic='\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00'
    mask='\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff'
    printf '%s' ":aarch64:M::$magic:$mask:$emulator:F" >"$root/proc/sys/fs/binfmt_misc/register"
fi
ip link set lo up
exec chroot "$root" /usr/local/sbin/device-start
"""
#: The capabilities of root come with an exec after the users were set up.
_UNSHARE = (
    *("unshare", "--user", "--mount", "--net", "--pid", "--fork"),
    *("sh", "-c", 'read -r go && exec "$@"', "sh", "sh", "-c", _CONTAINER, "sh"),
)


def start_container(root: Path, environment: Mapping[str, str], console: Path) -> int:
    """Starts what is the container's command; returns its first process, which is to be killed."""
    handler = "" if user_mode.has_handler() else emulator()
    environment = {**environment, "PATH": os.environ["PATH"]}
    with console.open("wb") as log:
        outside = subprocess.Popen(
            [*_UNSHARE, str(root), handler],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
    while not (found := children.read_text().split()):
        assert outside.poll() is None, console.read_text()
        time.sleep(0.01)
    set_id_maps(outside.pid)
    assert outside.stdin is not None
    outside.stdin.write(b"go\n")
    outside.stdin.close()
    return int(found[0])


def test_the_device_lets_its_owner_in(podman: Podman, toolchain: str, tmp_path: Path) -> None:
    build(podman, "device", ROOT, TOOLCHAIN=toolchain)
    mounted = podman("image", "mount", "localhost/edgekit-device").strip()
    root, key = tmp_path / "root", tmp_path / "key"
    subprocess.run(["cp", "--archive", mounted, str(root)], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    console = tmp_path / "console"
    owner = {"AUTHORIZED_KEY": key.with_suffix(".pub").read_text()}
    first = start_container(root, owner, console)
    ssh = [
        *("nsenter", "--target", str(first), "--net", "ssh", "-F", "none", "-i", str(key)),
        *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"),
        *("-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}", "pi@127.0.0.1"),
        "uname -m; id -un; python3 --version",
    ]
    try:
        deadline = time.monotonic() + 120
        while (said := subprocess.run(ssh, capture_output=True, text=True)).returncode:
            assert Path(f"/proc/{first}").exists(), console.read_text()
            assert time.monotonic() < deadline, said.stderr + console.read_text()
            time.sleep(0.5)
    finally:
        os.kill(first, signal.SIGKILL)
    machine, user, python = said.stdout.splitlines()
    assert (machine, user) == ("aarch64", "pi") and python.startswith("Python 3.11.")
    known = ["ssh-keygen", "-l", "-f", str(tmp_path / "known_hosts")]
    fingerprint = subprocess.run(known, capture_output=True, text=True).stdout.split()[1]
    assert f"Host key: 256 {fingerprint} " in console.read_text(), "as `docker logs` shows it"


def test_the_runners_are_built_for_both_machines(podman: Podman, toolchain: str) -> None:
    build(podman, "runners", ROOT, TOOLCHAIN=toolchain)
    mounted = Path(podman("image", "mount", "localhost/edgekit-runners").strip())
    for arch, machine in (("aarch64", b"\xb7\x00"), ("x86_64", b"\x3e\x00")):
        (runner,) = (mounted / arch).iterdir()
        assert runner.read_bytes()[18:20] == machine
        assert runner.stat().st_mode & 0o111


def test_every_dockerfile_is_built_here() -> None:
    built = Path(__file__).read_text(encoding="utf-8")
    files = [path.name.split(".")[0] for path in (ROOT / "docker").glob("*.Dockerfile")]
    assert files and all(f'"{name}"' in built for name in files)
