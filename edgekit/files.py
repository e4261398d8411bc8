"""Writing files and folders so that nobody ever sees half of one, whatever interrupts the writer.

A folder is filled beside its final place and exchanged with the old one in a single system call
where the kernel can (Linux), else by two renames that :func:`remove_stale_staging` completes or
undoes after a crash. A lock held on what is being written tells it from what a crash left behind;
unlike a process id it is also right between containers that share a folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.edgekit-(?P<kind>staging|old|tmp)-[0-9a-f]{8}")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content as 64 lower-case hex digits; reads in bounded memory."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Makes the entries of a folder durable (renames and new files survive a power cut)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file that is, at every moment, either the old one or the whole new one.

    Text is written as UTF-8. Missing parent folders are an ``OSError``, not created.
    """
    with staged_file(path) as f:
        f.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Gives an empty file to write; when the block ends well, it replaces ``path`` atomically.

    On any exception, ``KeyboardInterrupt`` included, ``path`` stays as it was.
    """
    temporary = _sibling(path, "tmp")
    try:
        with open(_new_locked_file(temporary), "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def staged_dir(final: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; when the block ends well, it replaces ``final`` atomically.

    Parent folders are created. On any exception, ``KeyboardInterrupt`` included, the new folder is
    removed and ``final`` stays as it was. Leftovers of crashed writers of the same parent folder
    are removed (or, where the crash came between two renames, put back) first.

    Raises:
        OSError: where the file system refuses; ``NotADirectoryError`` where ``final`` is a file.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_symlink():
        final = final.resolve()
    remove_stale_staging(final.parent)
    if final.exists() and not final.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(final))
    staging = _sibling(final, "staging")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        stack.enter_context(_new_locked_dir(staging))
        yield staging
        _fsync_tree(staging)
        _swap_in(staging, final)


def remove_stale_staging(parent: Path) -> tuple[Path, ...]:
    """Removes what crashed writers left in ``parent``; what is being written now stays.

    An old folder that was moved aside and never replaced is put back.

    Returns:
        the paths that were removed or put back.
    """
    done: list[Path] = []
    for path in sorted(parent.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        with _locked(path) as free:
            if not free:
                continue
            final = parent / match["name"]
            with contextlib.suppress(OSError):  # not ours to remove: somebody else's leftover
                if match["kind"] == "old" and not final.exists():
                    path.rename(final)
                    done.append(final)
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                done.append(path)
    return tuple(done)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.edgekit-{kind}-{secrets.token_hex(4)}")


def _new_locked_file(path: Path) -> int:
    """Makes a file and holds its lock; makes it again if a cleaner came before the lock did."""
    while True:
        # Not tempfile: its 0600 would stay on the final file.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(fd, block=True)
        if _is_still(path, fd):
            return fd
        os.close(fd)


@contextlib.contextmanager
def _new_locked_dir(path: Path) -> Iterator[None]:
    """Makes a folder and holds its lock; makes it again if a cleaner came before the lock did."""
    while True:
        path.mkdir(exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            _try_lock(fd, block=True)
            if _is_still(path, fd):
                yield
                return
        finally:
            os.close(fd)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock of ``path``; held during the block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, or not ours to open
        yield False
        return
    try:
        # Before the lock came, another cleaner may have removed it and its writer made it again.
        yield _try_lock(fd, block=False) and _is_still(path, fd)
    finally:
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    """Whether ``path`` leads to what ``fd`` was opened on."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _try_lock(fd: int, *, block: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except OSError:  # held, or a file system without locks: then nothing counts as stale
        return False
    return True


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_dir(Path(folder))


def _swap_in(staging: Path, final: Path) -> None:
    """Puts ``staging`` at ``final``; an old folder, if any, is then at ``staging`` or gone."""
    try:
        staging.rename(final)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(staging, final):
            _replace_in_two_steps(staging, final)
    fsync_dir(final.parent)


def _replace_in_two_steps(staging: Path, final: Path) -> None:
    old = _sibling(final, "old")
    with _locked(final):  # so that no cleaner takes it for a leftover between the two renames
        try:
            final.rename(old)
            staging.rename(final)
        except BaseException:
            if old.exists() and not final.exists():
                old.rename(final)
            raise
    fsync_dir(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths in one system call (renameat2, Linux 3.15); False where there is none."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return bool(result == 0)
