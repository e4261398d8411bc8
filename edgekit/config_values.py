"""Values of edgekit.toml and the command line that need more than a type check."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edgekit import registry


def parse_shape(text: Any) -> tuple[int, ...]:
    """``"1x3x224x224"`` -> (1, 3, 224, 224); the batch dimension comes first.

    Raises:
        ValueError: not such a text, or an extent outside 1..2**31-1.
    """
    parts = text.lower().split("x") if isinstance(text, str) else []
    if not parts or not all(re.fullmatch(r"[1-9]\d{0,9}", part.strip()) for part in parts):
        raise ValueError(f"{text!r} is not a shape such as '1x3x224x224', batch first.")
    shape = tuple(int(part) for part in parts)
    if max(shape) >= 2**31:
        raise ValueError(f"{text!r} has an extent that is too large.")
    return shape


def default_model_name(source: str) -> str:
    """A name for artifacts where none is given: the file, module or model that ``source`` names."""
    head, _, tail = source.rpartition(":")
    if head.endswith(".py") or source.endswith(".pt2"):
        name = Path(head or source).stem
    elif head in registry.sources() and head != "python":
        name = tail
    else:
        name = (head or tail).rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:64] or "model"


def path_under(root: Path, text: str) -> Path:
    """``text`` as a path from ``root``; ``~`` and ``..`` are resolved, symlinks are not."""
    return Path(os.path.normpath(root / Path(text).expanduser()))


def anchored(text: str, cwd: Path, root: Path) -> str:
    """A path (or ``file.py:name``) relative to ``cwd``, made relative to ``root`` or absolute."""
    head, colon, tail = text.rpartition(":")
    if colon and not head.endswith(".py"):
        return text  # torchvision:NAME, package.module:factory
    path = Path(os.path.normpath(cwd / Path(head or text).expanduser()))
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return f"{shown}:{tail}" if colon else shown
