"""Running code of the user's: its errors point at the user's line, its files are remembered."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from edgekit.errors import EdgekitError, SourceError

_LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib")
)
_OWN = Path(__file__).resolve().parents[1]
_WEIGHTS = frozenset({".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".npz", ".npy"})


def is_users(file: str | None) -> bool:
    """Whether a file is the user's own: not of the standard library, a package, or edgekit."""
    if not file or file.startswith("<"):
        return False
    path = Path(file).resolve()
    if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
        return False
    own_parts = (_OWN, (_OWN / "quantize").resolve(), (_OWN / "targets").resolve())
    return not any(path.is_relative_to(folder) for folder in (*_LIBRARIES, *own_parts))


@contextmanager
def user_code(what: str, root: Path) -> Iterator[None]:
    """Turn any exception of the body into a SourceError that names the user's last line.

    Args:
        what: the beginning of the message, such as ``model.py:build``.
        root: paths below it are shown relative to it.
    """
    try:
        yield
    except EdgekitError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error)
        shown = f" ({_relative(place[0], root)}:{place[1]})" if place else ""
        lines = str(error).strip().splitlines() or [""]
        message = f"{what} failed{shown}: {type(error).__name__}: {lines[0]}"
        raise SourceError(message.rstrip(": "), remedy=_remedy(error)) from error


def _place(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, SyntaxError) and is_users(error.filename):
        return error.filename or "", error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if is_users(frame.filename):
            return frame.filename, frame.lineno or 1
    return None


def _relative(file: str, root: Path) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(root.resolve())) if path.is_relative_to(root.resolve()) else file


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Install the package that has {error.name!r}, or correct the import."
    return ""


class FileRecorder:
    """Remembers the user's files that are read, as code or as data, while a model is loaded.

    Data files count when they lie below one of ``folders`` or look like weights, which packages
    and download caches hold too; code counts wherever it lies, but for installed packages.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = tuple(folder.resolve() for folder in folders)
        self._opened: set[str] = set()
        self._before: frozenset[ModuleType] = frozenset()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what the body opens and imports."""
        self._before = frozenset(sys.modules.values())
        _install_audit_hook()
        _recorders.append(self)
        try:
            yield
        finally:
            _recorders.remove(self)

    def note_open(self, path: str) -> None:
        self._opened.add(path)

    def files(self) -> tuple[Path, ...]:
        """The recorded files that still exist, resolved and sorted."""
        found: set[Path] = set()
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or not is_users(file):
                continue
            path = Path(file).resolve()
            if module not in self._before or self._below(path):
                found.add(path)
        for name in self._opened:
            path = Path(name).resolve()
            wanted = path.suffix in _WEIGHTS or (self._below(path) and is_users(name))
            if wanted and _is_regular(path):
                found.add(path)
        return tuple(sorted(path for path in found if path.is_file()))

    def _below(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._folders)


_recorders: list[FileRecorder] = []
_hook_installed = False


def _install_audit_hook() -> None:
    """Hear of every file that Python code opens. A hook cannot be removed, so there is one."""
    global _hook_installed
    if _hook_installed:
        return
    _hook_installed = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not _recorders:
            return
        path, mode = arguments[0], arguments[1]
        writing = isinstance(mode, str) and any(sign in mode for sign in "wax+")
        if isinstance(path, (str, bytes)) and not writing:
            for recorder in _recorders:
                recorder.note_open(os.path.abspath(os.fsdecode(path)))

    sys.addaudithook(hook)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
