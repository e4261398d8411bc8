"""Reads flatbuffers that nobody vouches for: every offset is checked before it is followed.

A ``.tflite``, a ``.pte`` and the XNNPACK payload inside a ``.pte`` are flatbuffers. The XNNPACK one
has no Python classes in any wheel, and the generated classes of the others follow wild offsets in a
damaged file. So a format declares here just the fields that it needs, by slot number; a flatbuffer
schema may only ever append fields, so the numbers hold for all versions with the same identifier.

    class Operator(Table):
        opcode = Scalar(0, "I")
        inputs = Scalars(1, "i")

The encoding is described in https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

T = TypeVar("T")


class Damaged(ValueError):
    """An offset, a length or an index points outside of the data."""


class Table:
    """A table at byte ``pos`` of ``buf``. Subclasses declare fields."""

    __slots__ = ("buf", "pos")
    identifier: ClassVar[bytes] = b""

    def __init__(self, data: memoryview, at: int) -> None:
        self.buf = data
        self.pos = at

    @classmethod
    def root(cls, data: memoryview) -> Self:
        """The root table. Raises Damaged where the identifier is not the declared one."""
        if cls.identifier and bytes(data[4:8]) != cls.identifier:
            raise Damaged(f"the identifier {cls.identifier.decode()} is missing")
        return cls(data, _follow(data, 0))

    def field(self, slot: int) -> int:
        """Where the field's value lies in ``buf``; 0 where the field has its default."""
        vtable = self.pos - _read(self.buf, "i", self.pos)
        entry = 4 + 2 * slot
        if entry + 2 > _read(self.buf, "H", vtable):
            return 0
        offset = _read(self.buf, "H", vtable + entry)
        return self.pos + offset if offset else 0

    def union(self, slot: int, kinds: Mapping[int, type[Table]]) -> tuple[int, Table | None]:
        """Type number and value of a union whose type is in ``slot`` and its value in the next.

        The value is None where the type is not one of ``kinds``.
        """
        at = self.field(slot)
        tag = _read(self.buf, "B", at) if at else 0
        value = self.field(slot + 1)
        if tag not in kinds or not value:
            return tag, None
        return tag, kinds[tag](self.buf, _follow(self.buf, value))


class Field(Generic[T]):
    """A declared field; reading it from a table instance gives a value of type T."""

    def __init__(self, slot: int) -> None:
        self.slot = slot

    @overload
    def __get__(self, table: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, table: Table, owner: type[Any]) -> T: ...
    def __get__(self, table: Table | None, owner: type[Any]) -> Self | T:
        if table is None:
            return self
        return self.read(table.buf, table.field(self.slot))

    def read(self, data: memoryview, at: int) -> T:
        """The value at byte ``at``; the default where ``at`` is 0."""
        raise NotImplementedError


class Scalar(Field[int]):
    """An integer; ``code`` is its :mod:`struct` letter."""

    def __init__(self, slot: int, code: str) -> None:
        super().__init__(slot)
        self.code = code

    def read(self, data: memoryview, at: int) -> int:
        return _read(data, self.code, at) if at else 0


class Scalars(Field[tuple[int, ...]]):
    """A vector of integers; empty where it is absent."""

    def __init__(self, slot: int, code: str) -> None:
        super().__init__(slot)
        self.code = code

    def read(self, data: memoryview, at: int) -> tuple[int, ...]:
        if not at:
            return ()
        start, count = _vector(data, at, struct.calcsize("<" + self.code))
        return struct.unpack_from(f"<{count}{self.code}", data, start)


class Text(Field[str]):
    """A string; empty where it is absent."""

    def read(self, data: memoryview, at: int) -> str:
        if not at:
            return ""
        start, count = _vector(data, at, 1)
        return bytes(data[start : start + count]).decode("utf-8", "replace")


class Blob(Field[memoryview]):
    """A vector of bytes, not copied; empty where it is absent."""

    def read(self, data: memoryview, at: int) -> memoryview:
        if not at:
            return data[:0]
        start, count = _vector(data, at, 1)
        return data[start : start + count]


TableT = TypeVar("TableT", bound=Table)


class One(Field["TableT | None"], Generic[TableT]):
    """A child table, or None."""

    def __init__(self, slot: int, kind: type[TableT]) -> None:
        super().__init__(slot)
        self.kind = kind

    def read(self, data: memoryview, at: int) -> TableT | None:
        return self.kind(data, _follow(data, at)) if at else None


class Many(Field["tuple[TableT, ...]"], Generic[TableT]):
    """A vector of child tables; empty where it is absent."""

    def __init__(self, slot: int, kind: type[TableT]) -> None:
        super().__init__(slot)
        self.kind = kind

    def read(self, data: memoryview, at: int) -> tuple[TableT, ...]:
        if not at:
            return ()
        start, count = _vector(data, at, 4)
        return tuple(self.kind(data, _follow(data, start + 4 * i)) for i in range(count))


def item(things: tuple[T, ...], index: int, what: str) -> T:
    """``things[index]``; Damaged, naming ``what``, where there is none (negative ones included)."""
    if not 0 <= index < len(things):
        raise Damaged(f"{what} {index} does not exist, there are {len(things)}")
    return things[index]


def _read(data: memoryview, code: str, at: int) -> int:
    size = struct.calcsize("<" + code)
    if at < 0 or at + size > len(data):
        raise Damaged(f"byte {at} is needed, but there are only {len(data)}")
    value: int = struct.unpack_from("<" + code, data, at)[0]
    return value


def _follow(data: memoryview, at: int) -> int:
    target = at + _read(data, "I", at)
    if target + 4 > len(data):
        raise Damaged(f"byte {target} is needed, but there are only {len(data)}")
    return target


def _vector(data: memoryview, at: int, size: int) -> tuple[int, int]:
    start = _follow(data, at)
    count = _read(data, "I", start)
    if start + 4 + count * size > len(data):
        raise Damaged(f"byte {start + 4 + count * size} is needed, but there are only {len(data)}")
    return start + 4, count
