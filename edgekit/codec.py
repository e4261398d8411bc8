"""JSON in and out for the dataclasses of :mod:`edgekit.types`; what is read is checked strictly.

What comes from outside (a bundle, a device) may be damaged or hostile, so that reading goes in two
steps: :func:`parse_json` refuses documents that two JSON readers may understand differently, and
:func:`from_json` then lets pydantic check every field against the type hints.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgekit.errors import BundleError, EdgekitError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MAX_DEPTH = 32
"""Deepest nesting of arrays and objects; a manifest needs 7."""

MAX_INTEGER = 2**53 - 1
"""Largest magnitude of an integer that every JSON reader keeps exactly (RFC 8259, section 6)."""


def to_jsonable(obj: object) -> Any:
    """Turns dataclasses, mappings, tuples and lists into dicts and lists of plain JSON values.

    Raises:
        TypeError: for anything else (a numpy scalar, a path): the caller says what it means by it.
        ValueError: for NaN and infinities, which JSON cannot hold, and integers beyond +-(2^53-1).
    """
    return _plain(obj, "")


def to_json(obj: object, *, indent: int | None = None) -> str:
    """The JSON text of ``obj``: sorted keys, UTF-8 as it is, no NaN; deterministic."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        to_jsonable(obj),
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=separators,
    )


def parse_json(text: str | bytes, *, where: str, error: type[EdgekitError] = BundleError) -> Any:
    """Parses JSON that must mean the same to every reader.

    Refused beside syntax errors: text that is not UTF-8, duplicate keys, NaN and infinities
    (spelled out or by overflow), integers beyond +-(2^53-1), nesting deeper than
    :data:`MAX_DEPTH`, strings that are not Unicode text.

    Args:
        text: the document.
        where: what the document is, for the error, such as a path.
        error: the exception class to raise.
    """

    def refuse(why: str) -> EdgekitError:
        return error(f"{where}: {why}.")

    def constant(name: str) -> float:
        raise refuse(f"{name} is not a JSON number")

    def integer(digits: str) -> int:
        # The length is checked first: int() takes quadratic time and refuses 4300 digits.
        if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
            raise refuse(f"the integer {digits:.24} is too large")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise refuse(f"the number {digits:.24} is too large")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise refuse(f"the key {twice!r:.80} occurs twice")
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        document = json.loads(
            text,
            parse_constant=constant,
            parse_int=integer,
            parse_float=real,
            object_pairs_hook=pairs,
        )
    except UnicodeDecodeError as e:
        raise refuse(f"not UTF-8 text (byte {e.start})") from e
    except json.JSONDecodeError as e:
        raise refuse(f"not valid JSON: {e.msg}, line {e.lineno} column {e.colno}") from e
    except RecursionError as e:
        raise refuse(f"nested deeper than {MAX_DEPTH} levels") from e
    _check_depth_and_text(document, refuse)
    return document


def from_json(
    cls: type[T],
    document: str | bytes | Mapping[str, Any] | Sequence[Any],
    *,
    where: str,
    error: type[EdgekitError] = BundleError,
) -> T:
    """Reads a dataclass from JSON text or from what :func:`parse_json` gave.

    Types are not converted (a string is no number), and unknown or missing fields are refused.

    Args:
        cls: a dataclass of :mod:`edgekit.types`, or a tuple or mapping of such.
        document: JSON text, or the parsed document.
        where: what the document is, for the error.
        error: the exception class to raise; its message names the field.
    """
    from pydantic import ValidationError

    if isinstance(document, (str, bytes)):
        parsed = parse_json(document, where=where, error=error)
    else:
        parsed = document
    try:
        # Through JSON text, because only there strict mode takes an array for a tuple.
        text = json.dumps(parsed, allow_nan=False)
        value: T = _adapter(cast("Any", cls)).validate_json(text, strict=True)
    except ValidationError as e:
        raise error(f"{where}: {_explain(e)}.") from e
    except (TypeError, ValueError, RecursionError) as e:
        raise error(f"{where}: not a JSON document: {e}.") from e
    if unknown := _first_unknown(parsed, value, ""):
        raise error(f"{where}: {unknown}: unknown field.")
    return value


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _plain(obj: object, path: str) -> Any:
    if obj is None or isinstance(obj, (str, bool)):
        return obj
    if isinstance(obj, int):
        if abs(obj) > MAX_INTEGER:
            raise ValueError(f"{path}: {obj} is beyond the integers that JSON readers keep exactly")
        return int(obj)
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{path}: {obj} is not a JSON number")
        return float(obj)
    if isinstance(obj, (tuple, list)):
        return [_plain(value, f"{path}[{i}]") for i, value in enumerate(obj)]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        items: list[tuple[Any, Any]] = [
            (f.name, getattr(obj, f.name)) for f in dataclasses.fields(obj)
        ]
    elif isinstance(obj, Mapping):
        items = list(obj.items())
    else:
        raise TypeError(f"{path}: {type(obj).__name__} cannot be written as JSON: {obj!r:.80}")
    for key, _ in items:
        if not isinstance(key, str):
            raise TypeError(f"{path}: a JSON object cannot have the key {key!r:.80}")
    return {key: _plain(value, f"{path}.{key}".lstrip(".")) for key, value in items}


def _check_depth_and_text(document: Any, refuse: Callable[[str], EdgekitError]) -> None:
    level, depth = [document], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list)) and depth == MAX_DEPTH:
                raise refuse(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str) and not _is_text(value):
                raise refuse(f"the string {value!r:.80} has an unpaired surrogate")
        level, depth = below, depth + 1


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _explain(e: ValidationError) -> str:
    """The first three problems, each with its field path."""
    problems = e.errors(include_url=False)
    lines = []
    for problem in problems[:3]:
        path = ""
        for part in problem["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        given = "" if problem["type"] == "missing" else f" (it is {problem['input']!r:.60})"
        lines.append(f"{path or 'the document'}: {problem['msg']}{given}")
    if len(problems) > 3:
        lines.append(f"and {len(problems) - 3} more problems")
    return "; ".join(lines)


def _first_unknown(document: Any, value: Any, path: str) -> str:
    """The path of the first key that no field of ``value`` took, or an empty string."""
    children: list[tuple[Any, Any, str]] = []
    if dataclasses.is_dataclass(value) and isinstance(document, Mapping):
        fields = {f.name for f in dataclasses.fields(value)}
        for key, child in document.items():
            name = f"{path}.{key}" if path else str(key)
            if key not in fields:
                return name[:200]
            children.append((child, getattr(value, key), name))
    elif isinstance(value, Mapping):
        children = [(document[key], value[key], f"{path}.{key}") for key in value]
    elif isinstance(value, (tuple, list)):
        both = zip(document, value, strict=True)
        children = [(d, v, f"{path}[{i}]") for i, (d, v) in enumerate(both)]
    for child, result, name in children:
        if isinstance(child, (dict, list)) and (unknown := _first_unknown(child, result, name)):
            return unknown
    return ""
