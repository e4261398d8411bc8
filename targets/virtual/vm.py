"""A whole emulated machine: its own kernel, real reboots, and a plug that can be pulled.

What it has written and not yet synced is lost when it is powered off, as on a board. Its disk is a
file; its SSH server answers at a port of this machine's 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.targets.virtual import layout
from edgekit.targets.virtual.boards import Board, board_of
from edgekit.targets.virtual.host import is_root, require, run_tool
from edgekit.targets.virtual.kernel import Kernel
from edgekit.targets.virtual.network import free_port
from edgekit.targets.virtual.state import VirtualDevice, birth, save

DISK_BYTES = 4 * 2**30
OFF_S = 20.0
#: What the machine's system begins with; the kernel's initramfs knows it.
INIT = "usr/local/sbin/machine-init"
_INIT = """\
#!/bin/sh
# The first process of the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
hostname "$(cat /etc/hostname)"
ip link set lo up
# The addresses that QEMU's own network gives.
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
exec /usr/local/sbin/device-init
"""
# The files of other users than root keep their owners in the image.
_MAKE_DISK = """\
set -eu
folder=$1 tar=$2 mke2fs=$3
mkdir "$folder/root"
cd "$folder/root"
tar --extract --file "$tar" --exclude './dev/*' --numeric-owner
cp --recursive --no-dereference --preserve=mode "$folder/files/." .
chown -R 0:0 root
chown -R 1000:1000 home/pi
cd ..
"$mke2fs" -q -t ext4 -d root disk
rm -rf root
"""
_ENTER = ("unshare", "--user", "--map-root-user", "--map-auto")


def launch(device: VirtualDevice, board: Board, tar: Path, kernel: Kernel) -> VirtualDevice:
    """Makes the machine's disk and starts it; its SSH server answers a little later.

    Args:
        device: with a folder that holds nothing of a former one.
        board: its cores and memory.
        tar: the packages on its disk.
        kernel: what it boots.

    Raises:
        UsageError: this machine lacks something.
        DeviceError: it could not be started.
    """
    mke2fs = require("qemu-system-aarch64", "mke2fs", "ssh-keygen", "unshare")["mke2fs"]
    device = replace(device, host="127.0.0.1", port=free_port())
    layout.make_keys(device)
    files = layout.lay(device, board, "0.0.0.0")
    (files / INIT).write_text(_INIT, encoding="utf-8")
    (files / INIT).chmod(0o755)
    with open(device.folder / "disk", "xb") as disk:
        disk.truncate(DISK_BYTES)
    command = [*("/bin/sh", "-c", _MAKE_DISK, "sh"), str(device.folder), str(tar), mke2fs]
    run_tool([*(() if is_root() else _ENTER), *command], what="Making the disk")
    for name, path in (("vmlinuz", kernel.image), ("initramfs", kernel.initramfs)):
        (device.folder / name).symlink_to(path)
    return _power(device, board)


def boot(device: VirtualDevice) -> VirtualDevice:
    """Powers a machine on again, with the disk that it has, and returns at once.

    Raises:
        DeviceError: it runs already, or it is no machine.
    """
    if device.kind != "vm" or device.running:
        why = "runs already" if device.running else "is not a whole machine"
        raise DeviceError(f"{device.name} {why}.")
    return _power(device, board_of(device.board))


def power_off(device: VirtualDevice) -> None:
    """Pulls the plug: ends a machine in the middle of whatever it does; its disk stays.

    Raises:
        DeviceError: it is no machine, or cannot be ended.
    """
    if device.kind != "vm":
        raise DeviceError(f"{device.name} is not a whole machine.")
    kill(device)


def kill(device: VirtualDevice) -> None:
    """Ends the first process of a device, and with it all others.

    Raises:
        DeviceError: it does not end.
    """
    if not device.running:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(device.pid, signal.SIGKILL)
    deadline = time.monotonic() + OFF_S
    # The first process of a namespace is gone only after all others of it are.
    while device.running:
        if time.monotonic() > deadline:
            raise DeviceError(f"Process {device.pid} of {device.name} does not end.")
        time.sleep(0.02)


def copy_disk(source: Path, to: Path) -> None:
    """Copies a machine's disk, which must be off; only what was ever written takes space.

    Raises:
        DeviceError: it could not be copied.
    """
    command = ["cp", "--reflink=auto", "--sparse=always", str(source), str(to)]
    run_tool(command, what="Copying the disk")


def _power(device: VirtualDevice, board: Board) -> VirtualDevice:
    program = require("qemu-system-aarch64")["qemu-system-aarch64"]
    folder = device.folder
    command = [
        *(program, "-M", "virt", "-cpu", board.qemu_cpu, "-smp", str(board.cores)),
        *("-m", str(board.memory_mb), "-accel", "tcg,thread=multi", "-nodefaults"),
        *("-display", "none", "-serial", "stdio"),
        *("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initramfs")),
        # A panic ends in a reboot, as on a board with a watchdog.
        *("-append", "console=ttyAMA0 quiet panic=1"),
        *("-drive", f"file={_escaped(folder / 'disk')},if=none,id=disk,format=raw,cache=writeback"),
        *("-device", "virtio-blk-pci,drive=disk"),
        # restrict: it reaches neither this machine nor the internet.
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{device.port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
    ]
    with open(device.log, "ab") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            cwd="/",
        )
    device = replace(device, pid=process.pid, born=birth(process.pid))
    save(device)
    return device


def _escaped(path: Path) -> str:
    """A path as a value of one of QEMU's options, where a comma begins the next."""
    return str(path).replace(",", ",,")
