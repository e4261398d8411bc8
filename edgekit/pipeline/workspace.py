"""Finished steps on disk, by key: a step whose inputs did not change is not done again.

A step is a folder ``<name>-<key>`` with its files and ``result.json``; it appears by one rename, so
it is complete or absent. The key is a hash over everything that the result depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from edgekit import codec
from edgekit.errors import BundleError
from edgekit.files import remove_stale_staging, sha256_file, staged_dir

T = TypeVar("T")

RESULT = "result.json"
#: How many bytes of finished steps are kept; the least recently used go first.
KEEP_BYTES = 4 * 2**30


class Workspace:
    """The steps of one project, in ``<root>/.edgekit/work``."""

    def __init__(self, root: Path) -> None:
        self.path = root / ".edgekit" / "work"
        self._in_use: set[Path] = set()
        self.samples = root / ".edgekit" / "samples"
        self.logs = root / ".edgekit" / "logs"

    def step(self, name: str, *parts: object) -> Path:
        """The folder of a step whose result depends on ``parts`` (JSON values, dataclasses)."""
        key = hashlib.sha256(codec.to_json([name, list(parts)]).encode()).hexdigest()
        step = self.path / f"{name}-{key[:24]}"
        self._in_use.add(step)
        return step

    @contextmanager
    def opened(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """The workspace for this process alone; cleaned up when the block ends, however it does.

        Steps that two processes make at once could differ (in time stamps, say), and one would
        judge what the other has made. ``on_wait`` is called once where somebody else is at work.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            try:
                yield
            finally:
                self._clean()

    def _clean(self) -> None:
        """Remove what crashed writers left, and old steps above :data:`KEEP_BYTES`.

        The steps that this process asked for stay, however large they are.
        """
        for folder in (self.path, self.samples):
            if folder.is_dir():
                remove_stale_staging(folder)
        steps = set(self.path.iterdir())
        total = sum(_size(step) for step in steps & self._in_use)
        for step in sorted(steps - self._in_use, key=_last_use, reverse=True):
            total += _size(step)
            if total > KEEP_BYTES or not (step / RESULT).exists():
                shutil.rmtree(step, ignore_errors=True)


@contextmanager
def making(step: Path, results: list[Any]) -> Iterator[Path]:
    """A folder to fill; with the block's end it becomes ``step``, with ``results[0]`` beside."""
    with staged_dir(step) as folder:
        yield folder
        (folder / RESULT).write_text(codec.to_json(results[0]), encoding="utf-8")


def load_result(cls: type[T], step: Path) -> T | None:
    """The result of a finished step, or None where it was not done or is from another version."""
    path = step / RESULT
    try:
        text = path.read_bytes()
        os.utime(path)
        return codec.from_json(cls, text, where=str(path))
    except (OSError, BundleError):
        return None


def unchanged(files: Iterable[tuple[str, str]]) -> bool:
    """Whether files (path, SHA-256) are what they were."""
    try:
        return all(sha256_file(Path(path)) == digest for path, digest in files)
    except OSError:
        return False


def environment() -> str:
    """A hash over the versions of all installed packages and edgekit's own code."""
    digest = hashlib.sha256(sys.version.encode())
    installed = set()
    for folder in sys.path:
        with suppress(OSError):
            installed |= {name for name in os.listdir(folder or ".") if name.endswith("-info")}
    digest.update("\n".join(sorted(installed)).encode())
    package = Path(__file__).resolve().parent.parent
    for part in ("*", "quantize/**/*", "sources/*", "pipeline/*", "targets/*", "targets/agent/*"):
        for source in sorted(package.glob(part)):
            if source.suffix in (".py", ".cpp"):
                digest.update(source.read_bytes())
    return digest.hexdigest()


def _size(step: Path) -> int:
    return sum(path.stat().st_size for path in step.rglob("*") if path.is_file())


def _last_use(step: Path) -> float:
    with suppress(OSError):
        return (step / RESULT).stat().st_mtime
    return 0.0
