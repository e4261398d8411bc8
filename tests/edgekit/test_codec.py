"""Strict JSON: what is written is read back, and what two readers may understand differently is
refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import codec, types
from edgekit.errors import BundleError, DeviceError


@dataclass(frozen=True, slots=True)
class Inner:
    pair: tuple[int, float]
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    inners: tuple[Inner, ...]
    by_name: Mapping[str, tuple[Inner, ...]]
    maybe: Inner | None = None
    flag: bool = False


numbers = st.integers(-codec.MAX_INTEGER, codec.MAX_INTEGER)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
inners = st.builds(
    Inner,
    st.tuples(numbers, st.floats(allow_nan=False, allow_infinity=False)),
    st.sampled_from(["a", "b"]),
)
some = st.lists(inners, max_size=3).map(tuple)
outers = st.builds(
    Outer, texts, some, st.dictionaries(texts, some, max_size=3), st.none() | inners, st.booleans()
)
RESULT = '{"name": "x", "inners": [{"pair": [1, 2.5]}], "by_name": {}}'


@given(outers, st.sampled_from([None, 2]))
def test_what_is_written_is_read_back(value: Outer, indent: int | None) -> None:
    text = codec.to_json(value, indent=indent)
    assert codec.from_json(Outer, text, where="x") == value
    assert codec.from_json(Outer, text.encode(), where="x") == value
    assert codec.from_json(Outer, codec.to_jsonable(value), where="x") == value
    assert codec.to_json(codec.from_json(Outer, text, where="x"), indent=indent) == text


# A busy machine is slow at making such large values, which says nothing about them.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.from_type(types.ProbeResult))
def test_probe_results_survive_or_are_refused_by_the_writer(value: types.ProbeResult) -> None:
    try:
        text = codec.to_json(value)
    except ValueError:  # NaN, infinity, an integer beyond 2**53
        return
    try:
        back = codec.from_json(types.ProbeResult, text, where="x")
    except BundleError as e:
        assert "surrogate" in e.message
    else:
        assert back == value


def test_keys_are_sorted_and_text_stays_text() -> None:
    assert codec.to_json({"b": 1, "a": ("é", None, True)}) == '{"a":["é",null,true],"b":1}'


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": {"b": [0, math.nan]}}, ValueError, r"a\.b\[1\]: nan"),
        ([-math.inf], ValueError, r"\[0\]: -inf"),
        (2**53, ValueError, "beyond"),
        ({"a": np.float32(1)}, TypeError, "a: float32 cannot"),
        ({1: 2}, TypeError, "key 1"),
        (object, TypeError, "cannot be written"),
    ],
)
def test_what_json_cannot_hold_is_not_written(
    value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        codec.to_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"a": 1', "line 1 column 8"),
        ('{"a": 1} x', "Extra data"),
        ("{'a': 1}", "not valid JSON"),
        ("\ufeff{}", "BOM"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' occurs twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not"),
        ("[1e400]", "number 1e400 is too large"),
        ("[9007199254740992]", "integer 9007199254740992 is too large"),
        ("[" + "9" * 100_000 + "]", "integer 99999"),
        ("[" * 100_000, "nested deeper"),
        ("[" * 33 + "]" * 33, "nested deeper"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested deeper"),
        ('["\\ud800"]', "unpaired surrogate"),
        ('{"\\udfff": 1}', "unpaired surrogate"),
    ],
)
def test_ambiguous_or_hostile_json_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message) as e:
        codec.parse_json(text, where="file.json")
    assert e.value.message.startswith("file.json: ")
    assert len(e.value.message) < 300


@pytest.mark.parametrize("text", ["[" * 32 + "]" * 32, "[9007199254740991, -9007199254740991]"])
def test_the_limits_themselves_are_allowed(text: str) -> None:
    assert codec.parse_json(text, where="x") == json.loads(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "x", ', "", "name: Field required"),
        ('"x"', "1", r"name: .*string \(it is 1\)"),
        ("2.5", '"2.5"', r"inners\[0\]\.pair\[1\]: .*number"),
        ("[1, 2.5]", "[1.0, 2.5]", r"inners\[0\]\.pair\[0\]: .*integer"),
        ("[1, 2.5]", "[true, 2.5]", r"inners\[0\]\.pair\[0\]"),
        ("[1, 2.5]", "[1]", r"pair\[1\]: Field required"),
        ("[1, 2.5]", "[1, 2, 3]", r"inners\[0\]\.pair"),
        ('{"pair": [1, 2.5]}', '{"pair": [1, 2.5], "kind": "c"}', r"kind: .*'a' or 'b'"),
        ('{"pair": [1, 2.5]}', '{"pair": [1, 2.5], "oops": 1}', r"inners\[0\]\.oops: unknown"),
        ('"by_name": {}', '"by_name": {"k": [{"pair": [1, 2], "z": 0}]}', r"by_name\.k\[0\]\.z"),
        ('"by_name": {}', '"by_name": {}, "maybe": {"pair": [1, 2], "q": 0}', r"maybe\.q: unknown"),
        ('"by_name": {}', '"by_name": {}, "Flag": true', "Flag: unknown field"),
        ('"by_name": {}', '"by_name": {}, "flag": 1', "flag: .*boolean"),
        ('"by_name": {}', '"by_name": []', "by_name: "),
    ],
)
def test_a_wrong_field_is_named(old: str, new: str, message: str) -> None:
    assert codec.from_json(Outer, RESULT, where="w").inners[0].pair == (1, 2.5)
    assert old in RESULT
    with pytest.raises(BundleError, match=message):
        codec.from_json(Outer, RESULT.replace(old, new), where="w")


def test_the_error_class_is_the_callers() -> None:
    with pytest.raises(DeviceError, match="agent: the document"):
        codec.from_json(Outer, "[]", where="agent", error=DeviceError)
    with pytest.raises(DeviceError, match="agent: not valid JSON"):
        codec.from_json(Outer, "", where="agent", error=DeviceError)


@given(st.text() | st.binary())
def test_any_input_gives_a_value_or_that_error(text: str | bytes) -> None:
    try:
        codec.from_json(Outer, text, where="x")
    except BundleError as e:
        assert e.message.startswith("x: ")


json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["name", "inners", "by_name", "maybe", "x"]), json_values))
def test_any_document_gives_a_value_or_that_error(document: dict[str, Any]) -> None:
    try:
        codec.from_json(Outer, document, where="x")
    except BundleError as e:
        assert e.message.startswith("x: ")
