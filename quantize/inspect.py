"""Opens any model file that a runtime can load and says what is really in it.

The format is told by the file's first bytes, or by its extension where the format has no mark.
Native parsers can crash on a damaged file, so the command line and the pipeline go through
:func:`inspect_worker` in a process of its own (:mod:`edgekit.isolate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.errors import UsageError
from edgekit.types import Inspection

# Bytes 4..8 of a flatbuffer hold its identifier; a zip archive starts with its own.
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", "tflite"),
    (4, b"ET12", "executorch"),
    (0, b"PK\x03\x04", "torchscript"),
)


def runtime_of(path: Path) -> str:
    """The runtime that ``path`` is for, from its content, else from its extension.

    Raises:
        UsageError: there is no such file, it is empty, or nothing known reads it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be opened: {error.strerror}.", remedy="Give the path of a model file."
        ) from error
    if not head:
        raise UsageError(f"{path} is empty.", remedy="Copy or export it again.")
    for at, mark, runtime in _MARKS:
        if head[at : at + len(mark)] == mark:
            return runtime
    by_extension = {entry.extension: name for name, entry in registry.runtimes().items()}
    if path.suffix.lower() in by_extension:
        return by_extension[path.suffix.lower()]
    raise UsageError(
        f"{path} is not a model file that edgekit knows.",
        remedy=f"Known formats: {', '.join(sorted(by_extension))}.",
    )


def inspect_file(path: Path) -> Inspection:
    """Open a finished artifact and count what is in it.

    Raises:
        UsageError: the file is missing, damaged or of an unknown format.
        MissingExtra: the framework that reads it is not installed.
    """
    runtime = runtime_of(path)
    entry = registry.runtimes()[runtime]
    inspector: Callable[[Path], Inspection] = registry.load_object(entry.inspector)
    found = inspector(path)
    if path.suffix.lower() != entry.extension:
        note = f"the content is {entry.label}, whatever the name {path.name} says"
        found = replace(found, notes=(note, *found.notes))
    return found


def inspect_worker(payload: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`inspect_file` of ``payload["path"]`` for :mod:`edgekit.isolate`; gives JSON types."""
    return dataclasses.asdict(inspect_file(Path(payload["path"])))
