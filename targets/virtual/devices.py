"""Starts, lists and stops emulated devices."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.progress import Progress, Quiet
from edgekit.targets.virtual import state, user_mode, vm
from edgekit.targets.virtual.boards import (
    Kind,
    board_of,
    device_name,
    start_command,
    system_of,
)
from edgekit.targets.virtual.host import is_root
from edgekit.targets.virtual.kernel import kernel
from edgekit.targets.virtual.layout import USER
from edgekit.targets.virtual.network import greets
from edgekit.targets.virtual.rootfs import rootfs
from edgekit.targets.virtual.state import VirtualDevice

START_S = 180.0


def start(
    board: str = "rpi4",
    system: str = "bookworm",
    kind: Kind = "user",
    *,
    name: str = "",
    home: Path | None = None,
    mirror: str = "",
    progress: Progress | None = None,
) -> VirtualDevice:
    """Starts an emulated device and waits until its SSH server answers.

    One of that name that runs already is left as it is. What a crash left behind is removed first.

    Args:
        board: a name of :data:`edgekit.targets.virtual.boards.BOARDS`.
        system: a name of :data:`edgekit.targets.virtual.boards.SYSTEMS`.
        kind: ``user``: programs are emulated on this machine's kernel; ``vm``: a whole machine is.
        name: instead of the one that board, system and kind give.
        home: where devices lie; default the user's cache folder.
        mirror: of Debian's packages, instead of deb.debian.org.
        progress: told of every step.

    Raises:
        UsageError: a wrong name, or this machine lacks something; says what to install.
        DeviceError: it does not come up.
    """
    model, release = board_of(board), system_of(system)
    home, progress = home or state.home_dir(), progress or Quiet()
    name = name or device_name(board, system, kind)
    folder = state.device_folder(home, name)
    with state.locked(folder.with_suffix(".lock")):
        found = _read(home, name)
        if found is not None and found.running:
            progress.log(f"{name} runs already.")
            return found
        _remove(folder)
        tar = rootfs(release, home, progress, mirror=mirror)
        booted = None
        if kind == "vm":
            booted = kernel(release, vm.INIT, home, progress, mirror=mirror)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        device = VirtualDevice(name, board, system, kind, folder, "", 0, USER, 0, "", now)
        with progress.stage(f"Start {name}"):
            folder.mkdir(mode=0o700, parents=True)
            try:
                if booted is None:
                    device = user_mode.launch(device, model, tar, progress.log)
                else:
                    device = vm.launch(device, model, tar, booted)
                wait_for_ssh(device)
            except BaseException:
                vm.kill(device)
                _remove(folder)
                raise
        return device


def boot(device: VirtualDevice, limit_s: float = START_S) -> VirtualDevice:
    """Powers a whole machine on again and waits until its SSH server answers.

    Returns:
        the device as it is now: its process is another one.

    Raises:
        DeviceError: it is no whole machine, runs already, or does not come up.
    """
    device = vm.boot(device)
    wait_for_ssh(device, limit_s)
    return device


def devices(home: Path | None = None) -> list[VirtualDevice]:
    """All emulated devices, those too that a crash ended."""
    home = home or state.home_dir()
    found = [_read(home, name) for name in state.names(home)]
    return [device for device in found if device is not None]


def running(name: str, home: Path | None = None) -> VirtualDevice:
    """The device of this name.

    Raises:
        DeviceError: it does not run.
    """
    device = state.read(home or state.home_dir(), name)
    if device is None or not device.running:
        why = "has not been started" if device is None else "is off"
        raise DeviceError(f"The emulated device {name} {why}.", remedy=start_command(name))
    return device


def stop(name: str, home: Path | None = None) -> bool:
    """Ends a device and removes everything of it; returns whether there was one.

    What it is made of stays in the cache.
    """
    home = home or state.home_dir()
    folder = state.device_folder(home, name)
    if not folder.parent.is_dir():
        return False
    with state.locked(folder.with_suffix(".lock")):
        there = folder.is_dir()
        device = _read(home, name)
        if device is not None:
            vm.kill(device)
        _remove(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)
    return there


def wait_for_ssh(device: VirtualDevice, limit_s: float = START_S) -> None:
    """Returns when the device's SSH server greets.

    Raises:
        DeviceError: its process ended, or it did not greet in time.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not device.running:
            raise DeviceError(f"{device.name} ended while it started: {user_mode.tail(device)}")
        if greets(device.host, device.port, timeout_s=5.0):
            return
        time.sleep(0.1)
    raise DeviceError(
        f"{device.name} did not answer within {limit_s:g} s: {user_mode.tail(device)}",
        remedy="This machine may be too busy; try again.",
    )


def _read(home: Path, name: str) -> VirtualDevice | None:
    with contextlib.suppress(DeviceError):
        return state.read(home, name)
    return None


def _remove(folder: Path) -> None:
    """Removes a device's folder, whose files may belong to users that only it has."""
    if folder.is_dir() and not is_root():
        command = ["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", str(folder)]
        subprocess.run(command, capture_output=True)
    if folder.exists():
        shutil.rmtree(folder)
