"""A device whose programs are emulated one by one, on this machine's kernel.

It lives in namespaces of its own: users, processes, mounts, host name and, for root, network. The
handler for Arm programs is registered for its user namespace alone where the kernel can do that
(Linux 6.7), so nothing of the host is changed; elsewhere the host's own handler is used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgekit.errors import DeviceError, UsageError
from edgekit.targets.virtual import layout
from edgekit.targets.virtual.boards import Board
from edgekit.targets.virtual.host import emulator, is_root, require, set_id_maps
from edgekit.targets.virtual.network import free_pair, free_port, link_name, make_link
from edgekit.targets.virtual.state import VirtualDevice, birth, save

_ENTER = Path(__file__).resolve().with_name("enter.sh")
_HANDLERS = Path("/proc/sys/fs/binfmt_misc")
_UNSHARE_S = 20.0


def launch(
    device: VirtualDevice, board: Board, tar: Path, log: Callable[[str], None]
) -> VirtualDevice:
    """Starts the device's first process; its SSH server answers a little later.

    Args:
        device: with a folder that holds nothing of a former one.
        board: what it looks like.
        tar: its packages.
        log: told what is not as good as it could be.

    Raises:
        UsageError: this machine lacks something.
        DeviceError: it could not be started.
    """
    require("unshare", "ssh-keygen", *(() if is_root() else ("newuidmap",)))
    handler = "" if has_handler() else emulator()
    if not is_root():
        return _launch(device, board, tar, handler, None)
    try:
        pair = free_pair(device.name, device.folder.parents[1])
        return _launch(device, board, tar, handler, pair)
    except _NoLink as error:
        log(f"{device.name} gets no address of its own, but a port of this machine: {error}")
        return _launch(device, board, tar, handler, None)


class _NoLink(DeviceError):
    """The kernel cannot connect the device's network."""


def _launch(
    device: VirtualDevice, board: Board, tar: Path, handler: str, pair: tuple[str, str] | None
) -> VirtualDevice:
    if pair is not None:
        device = replace(device, host=pair[1].partition("/")[0], port=22)
    else:
        device = replace(device, host="127.0.0.1", port=free_port())
    layout.make_keys(device)
    layout.lay(device, board, f"{device.host}:{device.port}")
    (device.folder / "cpuinfo").write_text(board.cpuinfo)
    tree = device.folder / "devicetree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    (tree / "model").write_text(board.model + "\0")
    (tree / "compatible").write_text("".join(f"{entry}\0" for entry in board.compatible))
    arguments = [str(device.folder), str(tar), handler, pair[1] if pair else ""]
    command = [
        *(require("unshare")["unshare"], "--user", "--mount", "--pid", "--fork"),
        *("--uts", "--ipc", *(["--net"] if pair else [])),
        # The capabilities of root come with an exec after the users were set up.
        *("/bin/sh", "-c", 'read -r go && exec "$@"', "sh", "/bin/sh", str(_ENTER), *arguments),
    ]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "QEMU_CPU": board.qemu_cpu}
    with open(device.log, "ab") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=console,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
    try:
        first = _wait_for_first(process, device)
        device = replace(device, pid=first, born=birth(first))
        save(device)
        set_id_maps(process.pid)
        if pair is not None:
            try:
                make_link(link_name(device.name, device.folder.parents[1]), pair[0], process.pid)
            except DeviceError as error:
                raise _NoLink(error.message) from error
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
    except BaseException:
        if device.running:
            os.kill(device.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        raise
    return device


def _wait_for_first(process: subprocess.Popen[bytes], device: VirtualDevice) -> int:
    """The first process of the new namespaces, which then wait for their users.

    It is the one to kill: that of unshare does not take it along, because the kernel forgets that
    wish when a program gains capabilities.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + _UNSHARE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if found := children.read_text().split():
                return int(found[0])
        time.sleep(0.01)
    raise UsageError(
        f"This machine does not allow the namespaces that a device lives in: {tail(device)}",
        remedy="Run it as root, or allow them: sudo sysctl -w kernel.unprivileged_userns_clone=1 "
        "(Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu). In a container it "
        "needs --privileged.",
    )


def tail(device: VirtualDevice, lines: int = 3) -> str:
    """The end of a device's console."""
    try:
        text = device.log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "; ".join(line for line in text.splitlines()[-lines:] if line.strip())


def has_handler() -> bool:
    """Whether Arm programs run here anyway, by a handler that needs no file in the device.

    A kernel that gives every user namespace its own handlers is given one.

    Raises:
        UsageError: neither.
    """
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if os.uname().machine == "aarch64":
        return True
    if release >= (6, 7):
        return False
    for path in _HANDLERS.glob("*aarch64*"):
        text = path.read_text()
        if "enabled" in text and "F" in text.partition("flags:")[2].split("\n")[0]:
            return True
    raise UsageError(
        "Linux before 6.7 runs Arm programs only where the system itself has a handler for them, "
        "and this one has none.",
        remedy="sudo apt-get install qemu-user-static; where no systemd is, also: sudo sh -c "
        f"'mount -t binfmt_misc binfmt_misc {_HANDLERS}; cat /usr/lib/binfmt.d/qemu-aarch64.conf "
        f">{_HANDLERS}/register'",
    )
