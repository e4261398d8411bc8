"""A bundle as one ``.tar`` file: packed the same way every time, unpacked without trusting it.

The manifest is read and checked first. Then only files that it lists, in the sizes that it lists,
are unpacked; anything else in the archive (links, devices, other files) is an error.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.errors import BundleError
from edgekit.files import staged_file
from edgekit.manifest_check import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    listed_files,
    path_problem,
    read_manifest,
)

MAX_MEMBERS = 20_000
_MAX_READ = 2 * 2**20


def write_tar(bundle_dir: Path, paths: Sequence[str], tar_path: Path) -> None:
    """Packs files of a bundle, the manifest first; equal bundles give equal archives.

    Args:
        bundle_dir: the folder of the bundle.
        paths: its files, relative to the folder, without the manifest.
        tar_path: the archive; replaced atomically.
    """
    with staged_file(tar_path) as out, tarfile.open(fileobj=out, mode="w:") as tar:
        for path in (MANIFEST, *sorted(paths)):
            member = tarfile.TarInfo(path)
            member.mode = 0o644
            with (bundle_dir / path).open("rb") as f:
                member.size = f.seek(0, io.SEEK_END)
                f.seek(0)
                tar.addfile(member, f)


def unpack_tar(tar_path: Path, folder: Path) -> None:
    """Unpacks an archive into an existing empty folder, which is then a bundle (hashes unchecked).

    The bundle may lie at the top of the archive or in one folder, as ``tar cf x.tar bundle``
    writes it.

    Raises:
        BundleError: where the archive is damaged or holds anything but a bundle.
    """
    try:
        with tar_path.open("rb", buffering=0) as raw:
            tar = tarfile.open(fileobj=_BoundedReads(raw), mode="r:")  # noqa: SIM115
            _unpack(tar, tar_path, folder)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
        raise BundleError(f"{tar_path}: not a readable tar archive: {e}.") from e
    except OSError as e:
        raise BundleError(f"{tar_path}: cannot be unpacked: {e.strerror or e}.") from e


class _BoundedReads(io.BufferedReader):
    """Refuses single reads of more than 2 MiB: tarfile reads a whole header at once, unasked."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _MAX_READ:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def _unpack(tar: tarfile.TarFile, where: Path, folder: Path) -> None:
    members = _checked_members(tar, where)
    tops = [name for name in members if name.rpartition("/")[2] == MANIFEST]
    top = min(tops, key=lambda name: name.count("/"), default="")
    prefix = top.removesuffix(MANIFEST)
    if not top or top.count("/") > 1:
        raise BundleError(f"{where}: no {MANIFEST} in the archive.")
    if members[top].size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes.")
    _extract(tar, members.pop(top), folder / MANIFEST)
    manifest = read_manifest((folder / MANIFEST).read_bytes(), where=f"{where}: {MANIFEST}")
    files = {prefix + file.path: file for file in listed_files(manifest)}
    if strangers := sorted(set(members) - set(files)):
        raise BundleError(f"{where}: {strangers[0]!r:.200} is not in the manifest.")
    if missing := sorted(set(files) - set(members)):
        raise BundleError(f"{where}: {missing[0]!r:.200} is missing from the archive.")
    for name, file in files.items():
        if members[name].size != file.size_bytes:
            raise BundleError(
                f"{where}: {name!r} has {members[name].size} bytes, but the manifest says"
                f" {file.size_bytes}."
            )
    needed = sum(file.size_bytes for file in files.values())
    if needed > (free := shutil.disk_usage(folder).free):
        raise BundleError(f"{where}: needs {needed} bytes to unpack, but only {free} are free.")
    for name, file in files.items():
        _extract(tar, members[name], folder / file.path)


def _checked_members(tar: tarfile.TarFile, where: Path) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(_members(tar)):
        name = member.name.removeprefix("./")
        if count >= MAX_MEMBERS:
            raise BundleError(f"{where}: more than {MAX_MEMBERS} entries.")
        if member.isdir() and name in ("", "."):
            continue
        if problem := path_problem(name):
            raise BundleError(f"{where}: {name!r:.200} {problem}.")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise BundleError(f"{where}: {name!r:.200} is a link or device, not a regular file.")
        if name in members:
            raise BundleError(f"{where}: {name!r:.200} occurs twice.")
        members[name] = member
    return members


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    source = tar.extractfile(member)
    if source is None:  # only for what is not a regular file
        raise BundleError(f"{member.name!r:.200} is not a regular file.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with source, to.open("xb") as out:
        shutil.copyfileobj(source, out, 2**20)
        if out.tell() != member.size:
            raise BundleError(f"{member.name!r:.200} ends early: the archive is truncated.")
