"""Adding targets to an edgekit.toml and taking them out, without touching a byte of the rest.

The file is edited as text, so comments, order and spacing stay; the result is parsed and compared
with what it should say before it replaces the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, UsageError
from edgekit.files import write_atomic
from edgekit.types import Target

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"\s*\[[^\[].*\]\s*(#.*)?")


def add_target(file: Path, target: Target) -> None:
    """Appends a table ``[targets.NAME]``; a file that is not there is made.

    Raises:
        UsageError: there is such a target already.
        ConfigError: the file is wrong, or holds its targets in a form that a table cannot follow.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before = _parsed(file, text)
    targets = before.get("targets", {})
    if target.name in targets:
        raise UsageError(
            f"{file.name} has a target {target.name!r} already.",
            remedy=f"edgekit targets remove {target.name}",
        )
    table = _table(target)
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    after = f"{text}{gap}{_written(target.name, table)}"
    _replace(file, after, {**before, "targets": {**targets, target.name: table}})


def remove_target(file: Path, name: str) -> None:
    """Takes a target's tables out; comments above and below them stay.

    Raises:
        UsageError: there is no such target.
        ConfigError: the file is wrong, or the target is not written as a table of its own.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before = _parsed(file, text)
    targets = dict(before.get("targets", {}))
    if name not in targets:
        raise UsageError(f"{file.name} has no target {name!r}.")
    del targets[name]
    expected = {key: value for key, value in before.items() if key != "targets"}
    if targets:
        expected["targets"] = targets
    kept: list[str] = []
    held: list[str] = []  # comments and blank lines: they belong to what follows
    inside = False
    for line in text.splitlines(keepends=True):
        if (path := _header_path(line)) is not None:
            inside = path[:2] == ("targets", name)
        if not inside:
            kept += [*held, line]
            held = []
        elif line.strip() and not line.lstrip().startswith("#"):
            held = []
        else:
            held.append(line)
    if inside and not any(line.strip() for line in held):
        held = []
        while kept and not kept[-1].strip():
            kept.pop()
    _replace(file, "".join([*kept, *held]), expected)


def _table(target: Target) -> dict[str, Any]:
    table: dict[str, Any] = {"transport": target.transport}
    for key in ("address", "profile"):
        if value := getattr(target, key):
            table[key] = value
    if target.workdir != Target.__dataclass_fields__["workdir"].default:
        table["workdir"] = target.workdir
    if target.options:
        table["options"] = dict(target.options)
    return table


def _written(name: str, table: dict[str, Any]) -> str:
    key = name if _BARE.fullmatch(name) else json.dumps(name)
    plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"[targets.{key}]", *(f"{k} = {_quoted(v)}" for k, v in plain.items())]
    if options := table.get("options"):
        inline = ", ".join(f"{k} = {_quoted(v)}" for k, v in options.items())
        lines.append(f"options = {{ {inline} }}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are among TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _header_path(line: str) -> tuple[str, ...] | None:
    """The keys of a ``[table.header]``; None for any other line."""
    if not _HEADER.fullmatch(line.rstrip("\r\n")):
        return None
    try:
        node: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:  # a line of an array that looks like one
        return None
    path = []
    while isinstance(node, dict) and node:
        (key, node) = next(iter(node.items()))
        path.append(key)
    return tuple(path)


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file.name}: {error}") from error


def _replace(file: Path, text: str, expected: dict[str, Any]) -> None:
    try:
        good = tomllib.loads(text) == expected
    except tomllib.TOMLDecodeError:
        good = False
    if not good:
        raise ConfigError(
            f"{file.name}: its targets are written in a form that cannot be edited from here.",
            remedy="Edit the file by hand, with one table [targets.NAME] per target.",
        )
    write_atomic(file, text)
