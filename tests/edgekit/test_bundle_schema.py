"""The JSON Schema, the reader and docs/manifest.md say the same about every field."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import types
from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.manifest_check import read_manifest
from edgekit.manifest_schema import RULES, SCHEMA_FILE, schema_text

ROOT = Path(__file__).parents[2]
CLASSES = [
    types.Manifest,
    types.ModelSpec,
    types.TensorSpec,
    types.Preprocess,
    types.Artifact,
    types.Recipe,
    types.Inspection,
    types.OpCount,
    types.Golden,
    types.RawTensor,
    types.Evaluation,
    types.EvalResult,
    types.OutputQuality,
    types.RawFile,
]
FIELDS = [(c, f.name) for c in CLASSES for f in dataclasses.fields(c)]


@pytest.fixture
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_shipped_schema_is_the_generated_one() -> None:
    remedy = "run: python -m edgekit.manifest_schema"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), remedy


def test_the_command_writes_it() -> None:
    before = SCHEMA_FILE.read_bytes()
    subprocess.run([sys.executable, "-m", "edgekit.manifest_schema"], cwd=ROOT, check=True)
    assert SCHEMA_FILE.read_bytes() == before


def test_the_classes_are_those_of_the_schema() -> None:
    definitions = json.loads(schema_text())["$defs"]
    assert {c.__name__ for c in CLASSES} == {*definitions, "Manifest"}


def test_a_written_manifest_is_valid(
    bundle: Bundle, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8")))


def test_every_rule_is_of_a_field() -> None:
    assert set(RULES) <= {f"{c.__name__}.{name}" for c, name in FIELDS}


def test_every_number_text_and_list_is_bounded() -> None:
    """Literals, flags and nested objects are bounded by their types."""
    free = {"Preprocess.scale"}  # any positive number
    for cls, name in FIELDS:
        kind = typing.get_type_hints(cls)[name]
        parts = [part for part in (typing.get_args(kind) or (kind,)) if part is not type(None)]
        if typing.get_origin(kind) is typing.Literal or parts[0] is bool:
            continue
        if len(parts) == 1 and dataclasses.is_dataclass(parts[0]):
            continue
        assert f"{cls.__name__}.{name}" in RULES, f"{cls.__name__}.{name} has no rule"
        rule = RULES[f"{cls.__name__}.{name}"]
        bounds = {"maximum", "maxItems", "maxLength", "maxProperties", "pattern", "enum"}
        lower = {"minimum", "exclusiveMinimum"}
        assert bounds & set(rule) or lower & set(rule) or f"{cls.__name__}.{name}" in free


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_every_field_is_documented(cls: type, field: str) -> None:
    text = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## [^\n]*`(\w+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert cls.__name__ in sections
    rows = re.findall(r"^\| `(\w+)` \|", sections[cls.__name__], re.M)
    assert field in rows
    names = [f.name for f in dataclasses.fields(cls)]
    assert rows == names, "the table has the fields in their order and no others"


def test_the_example_of_the_documentation_is_valid(
    validator: jsonschema.Draft202012Validator,
) -> None:
    text = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.S)
    validator.validate(json.loads(example))
    read_manifest(example.encode(), where="docs/manifest.md")


values: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, 0, 1, -1, 2, 3.5, 1e300, 2**31, 2**53 - 1, "", "x", "../x", "float32"),
        *("a" * 600, "0" * 64, "a\nb", [], [1], [1] * 10, ["x"], {}, {"x": "y"}, {"": []}),
    ]
)


def spots(document: Any) -> list[tuple[Any, Any]]:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in list(items):
        found.append((document, key))
        if isinstance(value, (dict, list)):
            found += spots(value)
    return found


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_the_schema_refuses_the_reader_refuses(
    bundle: Bundle, validator: jsonschema.Draft202012Validator, data: st.DataObject
) -> None:
    document = copy.deepcopy(
        json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
    )
    everywhere = spots(document)
    container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
    if data.draw(st.booleans()):
        container[key] = data.draw(values)
    else:
        del container[key]
    valid = validator.is_valid(document)
    try:
        read_manifest(json.dumps(document).encode(), where="x")
    except BundleError as e:
        # The reader knows more than a schema can say, but all that it says about types and bounds
        # of single fields is in the schema, too.
        if valid:
            assert not re.search("too small|too large|not of the form|Field required", e.message)
    else:
        assert valid
