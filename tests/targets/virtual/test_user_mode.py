"""The emulated devices themselves: real Arm programs behind a real SSH server, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import DeviceError, UsageError
from edgekit.resolve import resolve_target
from edgekit.targets.device import connect
from edgekit.targets.profile import load_profile, misfits
from edgekit.targets.ssh import SshTransport
from edgekit.targets.ssh_trust import HostKeyRefused
from edgekit.targets.virtual import state
from edgekit.targets.virtual.boards import BOARDS
from edgekit.targets.virtual.devices import devices, running, start, stop
from edgekit.targets.virtual.state import VirtualDevice
from tests.fixtures.virtual import make_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's home of devices, with nothing in it but packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = make_home(tmp_path)
    yield made
    for name in state.names(made):
        stop(name, made)


def said(device: VirtualDevice, *argv: str, user: str = "") -> str:
    """What a command prints there."""
    transport = SshTransport(device.target(user=user))
    try:
        done = transport.run(argv, timeout_s=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()
    finally:
        transport.close()


@pytest.mark.parametrize(("system", "python"), [("bookworm", "3.11."), ("trixie", "3.13.")])
def test_it_is_what_the_board_is(system: str, python: str, request: pytest.FixtureRequest) -> None:
    device: VirtualDevice = request.getfixturevalue(f"{system}_device")
    with connect(device.target()) as connected:
        facts = connected.facts()
    assert facts.emulated and facts.arch == "aarch64" and system in facts.os
    assert facts.python.startswith(python)
    assert facts.model == BOARDS["rpi4"].model and facts.soc == "bcm2711"
    assert facts.temp_c is None and not facts.governor, "that would be the host's"
    assert misfits(load_profile("rpi4"), facts) == []


def test_its_programs_are_arm_programs(bookworm_device: VirtualDevice) -> None:
    machine = said(bookworm_device, "od", "-An", "-tx1", "-j18", "-N2", "/bin/dash")
    assert machine.split() == ["b7", "00"]  # EM_AARCH64
    assert said(bookworm_device, "uname", "-m").strip() == "aarch64"


def test_the_host_is_out_of_its_sight(bookworm_device: VirtualDevice) -> None:
    """Its own users, processes, disks and name; its root can do nothing to the host's files."""
    name = said(bookworm_device, "hostname").strip()
    assert name == "virtual-rpi4" != os.uname().nodename
    assert said(bookworm_device, "whoami").strip() == "pi"
    commands = said(bookworm_device, "ps", "-A", "-o", "pid,comm", user="root").split()
    assert "1" in commands and str(os.getpid()) not in commands
    root = said(bookworm_device, "ls", "/proc/1/root/", "/dev", "/mnt", user="root")
    assert "work" not in root.split() and "kvm" not in root and "vda" not in root
    mounts = said(bookworm_device, "cat", "/proc/self/mounts", user="root")
    assert str(bookworm_device.folder) not in mounts


_OPENED = """
import glob, os
for pattern in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/*", "/proc/sysrq-trigger",
                "/proc/irq/default_smp_affinity", "/proc/sys/fs/binfmt_misc/*", "/sys/power/state",
                "/sys/kernel/uevent_helper", "/sys/kernel/mm/*/*", "/sys/fs/cgroup/*.procs",
                "/sys/fs/cgroup/*/*.procs"):
    for path in glob.glob(pattern):
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError:
            continue
        print(path)
"""


def test_its_root_cannot_set_the_kernels_settings(bookworm_device: VirtualDevice) -> None:
    """Opened for writing is all that they are: it is the host's kernel."""
    read = said(bookworm_device, "cat", "/proc/sys/kernel/core_pattern", user="root")
    assert read == Path("/proc/sys/kernel/core_pattern").read_text()
    assert said(bookworm_device, "python3", "-I", "-S", "-c", _OPENED, user="root") == ""
    said(bookworm_device, "sh", "-c", "echo 500 >/proc/self/oom_score_adj", user="root")


def test_it_is_known_by_its_own_key_alone(
    bookworm_device: VirtualDevice, trixie_device: VirtualDevice
) -> None:
    target = bookworm_device.target()
    other = {**target.options, "known_hosts": str(trixie_device.known_hosts)}
    wrong = SshTransport(type(target)("x", "ssh", target.address, options=other))
    with pytest.raises(HostKeyRefused):
        wrong.run(["true"], timeout_s=20)
    wrong.close()


def test_start_use_and_stop(home: Path) -> None:
    device = start()
    assert device.name == "virtual-rpi4" and device.running
    assert start() == device, "the one that runs is left as it is"
    target = resolve_target("virtual-rpi4", {})
    assert (target.transport, target.profile) == ("virtual", "rpi4")
    with connect(target) as connected:
        assert connected.facts().emulated
    assert [found.name for found in devices()] == ["virtual-rpi4"]
    handlers = Path("/proc/sys/fs/binfmt_misc")
    before = sorted(path.name for path in handlers.glob("*"))
    assert stop("virtual-rpi4")
    assert not device.running and devices() == [] and not device.folder.exists()
    assert sorted(path.name for path in handlers.glob("*")) == before
    links = subprocess.run(["ip", "-br", "address"], capture_output=True, text=True).stdout
    assert device.host.rpartition(".")[0] not in links or device.port != 22
    assert not stop("virtual-rpi4"), "there is nothing more to stop"
    with pytest.raises(DeviceError, match="has not been started") as error:
        connect(target)
    assert error.value.remedy == "edgekit virtual start rpi4"


def test_a_crash_of_the_host_is_noticed(home: Path) -> None:
    device = start("rpi4", "trixie")
    sessions = SshTransport(device.target())
    assert sessions.run(["true"], timeout_s=60).returncode == 0
    inside = Path(f"/proc/{device.pid}/task/{device.pid}/children").read_text().split()
    assert inside, "sshd"
    os.kill(device.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while device.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(state.birth, map(int, inside))), "nothing of it lives on"
    sessions.close()
    (found,) = devices()
    assert found == device and not found.running
    with pytest.raises(DeviceError, match="is off") as error:
        running("virtual-rpi4-trixie")
    assert error.value.remedy == "edgekit virtual start rpi4 --os trixie"
    again = start("rpi4", "trixie")
    assert again.running and again.born != device.born
    assert said(again, "true") == ""


def test_a_damaged_state_can_be_stopped(home: Path) -> None:
    folder = home / "devices" / "virtual-rpi4"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{")
    with pytest.raises(DeviceError, match="cannot be read"):
        running("virtual-rpi4")
    assert devices() == [] and stop("virtual-rpi4") and not folder.exists()


def test_a_pid_of_somebody_else_is_not_a_device(home: Path) -> None:
    mine = VirtualDevice(
        "x", "rpi4", "bookworm", "user", home, "127.0.0.1", 1, "pi", os.getpid(), "", ""
    )
    assert not mine.running


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b", "x" * 64])
def test_a_name_cannot_lead_elsewhere(name: str, home: Path) -> None:
    with pytest.raises(UsageError, match="no name of an emulated device"):
        state.device_folder(home, name)


def test_what_does_not_come_up_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "rootfs").unlink()
    (home / "rootfs").mkdir()
    broken = tmp_tar(home)
    monkeypatch.setattr("edgekit.targets.virtual.devices.rootfs", lambda *a, **k: broken)
    with pytest.raises(DeviceError, match="ended while it started"):
        start()
    assert state.names(home) == []


def tmp_tar(home: Path) -> Path:
    path = home / "broken.tar"
    path.write_bytes(b"not a tar file" * 100)
    return path


def test_missing_programs_are_named_with_their_packages(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr("edgekit.targets.virtual.host._PATH", str(home))
    (home / "rootfs").unlink()
    with pytest.raises(UsageError, match="mmdebstrap") as error:
        start()
    assert "apt-get install mmdebstrap" in error.value.remedy


def test_unknown_boards_and_systems_are_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="board 'rpi9'"):
        start("rpi9")
    with pytest.raises(UsageError, match="system 'trixi'") as error:
        start("rpi4", "trixi")
    assert "trixie" in error.value.remedy
