"""The kernel of a whole emulated machine: Debian's, with an initramfs that mounts the disk.

No tool of the host makes it: a cpio archive is a few lines, and what a module needs stands in it.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.files import staged_dir
from edgekit.progress import Progress
from edgekit.targets.virtual.boards import System
from edgekit.targets.virtual.rootfs import fingerprint, unpack
from edgekit.targets.virtual.state import locked

#: What the machine's disk and network are; where a kernel has them built in, there is no file.
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "crc32c_generic")
#: Raise it when what is made from the same packages changes.
_RECIPE = 1
_MODULE = re.compile(r"\./(?:usr/)?lib/modules/[^/]+/kernel/(?:.+/)?([^/]+)\.ko(\.xz)?")
_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module" || echo "insmod $module failed"
done
tries=0
until [ -b /dev/vda ] || [ "$tries" = 100 ]; do
    /bin/busybox sleep 0.1
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o rw /dev/vda /new || exec /bin/busybox reboot -f
for folder in proc sys dev; do /bin/busybox mount --move "/$folder" "/new/$folder"; done
exec /bin/busybox switch_root /new "$init"
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The two files that a machine boots from."""

    image: Path
    initramfs: Path


def kernel(
    system: System, init: str, home: Path, progress: Progress, *, mirror: str = ""
) -> Kernel:
    """The kernel of a system, made once and kept.

    Args:
        system: whose kernel.
        init: the program on the disk that the system begins with.
        home: where it is kept.
        progress: told of every step.
        mirror: a mirror of Debian's to use instead of the system's.

    Raises:
        UsageError, DeviceError: as :func:`edgekit.targets.virtual.rootfs.rootfs`.
    """
    packages = (system.kernel, "busybox-static")
    digest = fingerprint(_RECIPE, system.name, packages, mirror, _MODULES, _INIT, init)
    folder = home / "rootfs" / f"{system.name}-kernel-{digest}"
    found = Kernel(folder / "vmlinuz", folder / "initramfs")
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            tar = folder.with_suffix(".tar")
            what = f"Unpack the kernel of {system.label}, once"
            try:
                unpack(system, packages, tar, progress, what=what, mirror=mirror)
                with staged_dir(folder) as staging:
                    _make(tar, init, staging)
            finally:
                tar.unlink(missing_ok=True)
    return found


def _make(tar: Path, init: str, folder: Path) -> None:
    modules: dict[str, bytes] = {}
    busybox = b""
    image = None
    with tarfile.open(tar) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            if source is None:
                continue
            if match := _MODULE.fullmatch(member.name):
                data = source.read()
                modules[match[1].replace("-", "_")] = lzma.decompress(data) if match[2] else data
            elif member.name == "./usr/bin/busybox":
                busybox = source.read()
            elif member.name.startswith("./boot/vmlinuz-"):
                image = folder / "vmlinuz"
                with open(image, "wb") as sink:
                    shutil.copyfileobj(source, sink)
    if image is None or not busybox:
        raise DeviceError("Debian's packages hold no kernel where one is expected.")
    order = load_order(_MODULES, modules)
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, _INIT.replace("$init", f"/{init}").encode()),
        "bin/busybox": (0o755, busybox),
        "modules/order": (0o644, "".join(f"{name}.ko\n" for name in order).encode()),
    }
    files |= {f"modules/{name}.ko": (0o644, modules[name]) for name in order}
    archive_bytes = cpio(("bin", "modules", "proc", "sys", "dev", "new"), files)
    (folder / "initramfs").write_bytes(gzip.compress(archive_bytes, 1, mtime=0))


def load_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """The modules to load, each after those that it depends on; what is no file is built in."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", modules[name])
        for needed in found[1].decode().split(",") if found else ():
            add(needed.replace("-", "_"))
        order.append(name)

    for name in wanted:
        add(name)
    return order


def cpio(folders: Iterable[str], files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive as the kernel reads it (newc, initramfs/buffer-format.rst of its manual).

    Args:
        folders: made first, with mode 755.
        files: name -> permissions and content.
    """
    entries = [(name, 0o40755, b"") for name in folders]
    entries += [(name, 0o100000 | mode, content) for name, (mode, content) in files.items()]
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        head += name.encode() + b"\0"
        parts += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)
