"""What a device answers, taken apart with care: bounded, typed, and without terminal commands.

A device may be broken, or in somebody else's hands. Whatever it says must neither fill this
machine's memory, nor surface as a TypeError far away, nor steer the user's terminal.
"""

from __future__ import annotations

import json
import re
from typing import Any

from edgekit.codec import MAX_INTEGER
from edgekit.errors import DeviceError

#: The longest honest line is a runner's report with the end of its log.
MAX_LINE = 16 * 2**20
#: Brackets, commas and colons: as many values as a line may hold. Each takes some 60 bytes here.
MAX_VALUES = 1_000_000
MAX_ITEMS = 100_000
MAX_PATH = 4096

#: All but tab and newline, and but NUL, which separates entries of device trees.
_CONTROLS = re.compile(r"[\x01-\x08\x0b-\x1f\x7f-\x9f]")
#: Python's way to spell a path that is not UTF-8; such texts can be neither shown nor recorded.
_HALVES = re.compile(r"[\ud800-\udfff]")
_ABSOLUTE_PATH = re.compile(r"/[^\0\n]*")


class Answer(dict[str, Any]):
    """One JSON object from a device; the methods raise DeviceError where a value is none such."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        super().__init__(values)
        self._name = name

    def number(self, key: str) -> int:
        """A whole number from 0 to MAX_INTEGER, beyond which nothing can be recorded."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
            raise self._unusable(key)
        return value

    def text(self, key: str, limit: int = 500) -> str:
        """A text of at most ``limit`` characters."""
        return printable(self._text(key, limit))

    def path(self, key: str) -> str:
        """An absolute path on the device."""
        value = self._text(key, MAX_PATH)
        if not _ABSOLUTE_PATH.fullmatch(value):
            raise self._unusable(key)
        return value

    def items_of(self, key: str, kind: type[Any]) -> list[Any]:
        """A list of at most MAX_ITEMS values of one type."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) > MAX_ITEMS
            or not all(isinstance(item, kind) for item in value)
        ):
            raise self._unusable(key)
        return value

    def object_of(self, key: str) -> Answer:
        """An object."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self._unusable(key)
        return Answer(value, self._name)

    def _text(self, key: str, limit: int) -> str:
        value = self.get(key)
        if not isinstance(value, str) or len(value) > limit:
            raise self._unusable(key)
        return value

    def _unusable(self, key: str) -> DeviceError:
        shown = shortened(repr(self.get(key)), 80)
        return DeviceError(
            f"{self._name}: the device's answer cannot be used: {key} is {shown}.",
            remedy="Is that a device that edgekit manages, and is its storage sound?",
        )


def parse_answer(text: str, name: str) -> Answer:
    """One line of the device's as an object.

    Raises:
        DeviceError: it is too long, no JSON object, or one of too many values.
    """
    if len(text) > MAX_LINE or sum(map(text.count, ",[{:")) > MAX_VALUES:
        raise DeviceError(f"{name}: the device's answer is larger than any honest one.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DeviceError(
            f"{name}: the device answered with something else: {shortened(repr(text), 200)}"
        )
    return Answer(_without_controls(found), name)


def printable(text: str) -> str:
    """The text without what a terminal takes for a command, and without halves of characters."""
    return _HALVES.sub("?", _CONTROLS.sub("?", text))


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters, printable."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def _without_controls(value: Any) -> Any:
    if isinstance(value, str):
        return _CONTROLS.sub("?", value)
    if isinstance(value, list):
        return [_without_controls(item) for item in value]
    if isinstance(value, dict):
        return {_CONTROLS.sub("?", key): _without_controls(item) for key, item in value.items()}
    return value
