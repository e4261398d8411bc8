"""Checked reading of a settings document, where every complaint says file, line and key.

A document is a dict of tables, as tomllib gives it, with command-line options laid over it. A
:class:`Section` hands out typed values one key at a time, notes what is wrong instead of raising,
and finally notes every key that nobody asked for; so a file is reported on once, completely.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from edgekit.suggest import did_you_mean

_HEADER = re.compile(r"^\s*\[+\s*([^\]]+?)\s*\]+\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=""")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line numbers (from 1) of the tables and keys of a TOML text.

    tomllib does not keep them. This reads line by line and may be misled inside a multi-line
    string, which costs a wrong line number in a message and nothing else.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


class Section:
    """One table of the document.

    Args:
        values: the keys and values of the table.
        label: gives the place of a key for messages, such as ``edgekit.toml:7: budget.max_drop``.
        problems: complaints are appended here.
    """

    def __init__(
        self, values: Mapping[str, Any], label: Callable[[str], str], problems: list[str]
    ) -> None:
        self._values = values
        self._label = label
        self._problems = problems
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def complain(self, key: str, what: str) -> None:
        self._problems.append(f"{self._label(key)}: {what}")

    def raw(self, key: str) -> Any:
        """The unchecked value, or None."""
        self._asked.add(key)
        return self._values.get(key)

    def text(self, key: str, default: str = "", *, pattern: str = "", shape: str = "") -> str:
        """A non-empty string; ``shape`` says in words what ``pattern`` wants."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.complain(key, f"must be a text, not {_show(value)}.")
        elif pattern and not re.fullmatch(pattern, value):
            self.complain(key, f"must be {shape}, not {_show(value)}.")
        else:
            return value
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.complain(key, f"must be true or false, not {_show(value)}.")
        return default

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        value = self.raw(key)
        options = list(known)
        if value is None or value in options:
            return default if value is None else str(value)
        self.complain(key, _not_one_of(value, options))
        return default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if _is_int(value) and low <= value <= high:
            return int(value)
        self.complain(key, f"must be a whole number from {low} to {high}, not {_show(value)}.")
        return default

    def number(
        self, key: str, default: float, low: float, high: float, *, open_high: bool = False
    ) -> float:
        """A finite number with ``low <= x <= high``, or ``x < high`` with ``open_high``."""
        value = self.raw(key)
        if value is None:
            return default
        if _is_number(value) and low <= value <= high and not (open_high and value == high):
            return float(value)
        upper = f"below {high:g}" if open_high else f"at most {high:g}"
        self.complain(key, f"must be a number, at least {low:g} and {upper}, not {_show(value)}.")
        return default

    def megabytes(self, key: str) -> int | None:
        """A positive size in MB (1,000,000 bytes), as bytes."""
        value = self.raw(key)
        if value is None:
            return None
        if _is_number(value) and 0 < value <= 1e9:
            return round(value * 1_000_000)
        self.complain(key, f"must be a size in MB above 0, not {_show(value)}.")
        return None

    def items(
        self, key: str, default: Sequence[Any], check: Callable[[Any], Any], what: str
    ) -> tuple[Any, ...]:
        """A list without repetition; ``check`` converts an item or raises ValueError."""
        value = self.raw(key)
        if value is None:
            return tuple(default)
        if not isinstance(value, (list, tuple)) or not value:
            self.complain(key, f"must be a list of {what}, not {_show(value)}.")
            return tuple(default)
        found = []
        for item in value:
            try:
                found.append(check(item))
            except ValueError as error:
                self.complain(key, str(error))
                return tuple(default)
        if len(set(found)) != len(found):
            self.complain(key, "must not name anything twice.")
        return tuple(found)

    def finish(self) -> None:
        """Complain about every key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                guess = did_you_mean(key, self._asked)
                known = f"Known here: {', '.join(sorted(self._asked))}."
                self.complain(key, f"unknown key. {guess or known}")


def one_of(known: Iterable[str]) -> Callable[[Any], str]:
    """A check for :meth:`Section.items`: the item must be one of ``known``."""
    options = list(known)

    def check(item: Any) -> str:
        if item not in options:
            raise ValueError(_not_one_of(item, options))
        return str(item)

    return check


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A check for :meth:`Section.items`: a whole number from ``low`` to ``high``."""

    def check(item: Any) -> int:
        if not _is_int(item) or not low <= item <= high:
            raise ValueError(f"must be whole numbers from {low} to {high}, not {_show(item)}.")
        return int(item)

    return check


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _not_one_of(value: Any, options: list[str]) -> str:
    guess = did_you_mean(value, options) if isinstance(value, str) else ""
    return f"must be one of {', '.join(options)}, not {_show(value)}. {guess}".rstrip()
