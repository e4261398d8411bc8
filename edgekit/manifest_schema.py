"""What each field of manifest schema 1 may hold, once: for the reader and for the JSON Schema.

The shape of the manifest is that of the dataclasses in :mod:`edgekit.types`. :data:`RULES` adds the
bounds, in JSON Schema's own words; :func:`first_violation` applies them to a manifest that was
read, :func:`manifest_schema` puts them into the schema that is shipped with the package.

    python -m edgekit.manifest_schema    # writes edgekit/manifest.schema.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.files import write_atomic
from edgekit.types import BYTES_PER_ELEMENT, Manifest

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")

MAX_DIM = 2**31 - 1
MAX_FILE_BYTES = 2**40
MAX_TEXT_BYTES = 64 * 2**20

_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,199}"
_Rule = Mapping[str, Any]


def _text(most: int) -> _Rule:
    return {"pattern": r"^[^\u0000-\u001f\u007f]*$", "maxLength": most}


def _items(rule: _Rule, *, least: int = 0, most: int) -> _Rule:
    return {"minItems": least, "maxItems": most, "items": rule}


_NAME: _Rule = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$"}
_PATH: _Rule = {"pattern": rf"^{_COMPONENT}(/{_COMPONENT}){{0,7}}$", "maxLength": 512}
_SHA256: _Rule = {"pattern": r"^[0-9a-f]{64}$"}
_DTYPE: _Rule = {"enum": sorted(BYTES_PER_ELEMENT)}
_SHARE: _Rule = {"minimum": 0, "maximum": 1}
_COUNT: _Rule = {"minimum": 0}
_N: _Rule = {"minimum": 1, "maximum": MAX_DIM}
_SIZE: _Rule = {"minimum": 1, "maximum": MAX_FILE_BYTES}
_PIXELS: _Rule = {"minimum": 1, "maximum": 65536}
_TENSORS = _items({}, least=1, most=64)

RULES: Mapping[str, _Rule] = {
    "TensorSpec.name": {**_text(256), "minLength": 1},
    "TensorSpec.shape": _items(_N, most=8),
    "TensorSpec.dtype": _DTYPE,
    "TensorSpec.layout": {"enum": ["", "NCHW", "NHWC"]},
    "TensorSpec.scale": {"exclusiveMinimum": 0},
    "TensorSpec.zero_point": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "Preprocess.resize": _PIXELS,
    "Preprocess.crop": _items(_PIXELS, least=2, most=2),
    "Preprocess.scale": {"exclusiveMinimum": 0},
    "Preprocess.mean": _items({}, least=1, most=4),
    "Preprocess.std": _items({"exclusiveMinimum": 0}, least=1, most=4),
    "Preprocess.dtype": _DTYPE,
    "ModelSpec.name": _NAME,
    "ModelSpec.source": _text(1024),
    "ModelSpec.inputs": _TENSORS,
    "ModelSpec.outputs": _TENSORS,
    "ModelSpec.weights_sha256": _SHA256,
    "Recipe.name": _NAME,
    "Recipe.steps": _items(_text(256), most=256),
    "Recipe.variant": _text(256),
    "Recipe.rewrites": _items(_text(256), most=256),
    "Recipe.float_nodes": _items(_text(256), most=65536),
    "OpCount.op": _text(256),
    "OpCount.count": _COUNT,
    "Inspection.int8_mac_share": _SHARE,
    "Inspection.delegated_share": _SHARE,
    "Inspection.dynamic_mac_share": _SHARE,
    "Inspection.int8_weight_mac_share": _SHARE,
    "Inspection.outside_ops": _items({}, most=4096),
    "Inspection.transposes": _COUNT,
    "Inspection.macs": _COUNT,
    "Inspection.quantize_ops": _COUNT,
    "Inspection.weight_bytes": _COUNT,
    "Inspection.notes": _items(_text(4096), most=256),
    "Inspection.uncounted_ops": _items(_text(256), most=4096),
    "Artifact.id": _NAME,
    "Artifact.runtime": {"pattern": r"^[a-z][a-z0-9_]{0,31}$"},
    "Artifact.path": _PATH,
    "Artifact.sha256": _SHA256,
    "Artifact.size_bytes": _SIZE,
    "Artifact.inputs": _TENSORS,
    "Artifact.outputs": _TENSORS,
    "Artifact.calibration_id": {"pattern": r"^([0-9a-f]{64})?$"},
    "Artifact.tool_versions": {
        "maxProperties": 64,
        "propertyNames": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "additionalProperties": _text(256),
    },
    "RawTensor.name": {**_text(256), "minLength": 1},
    "RawTensor.path": _PATH,
    "RawTensor.dtype": _DTYPE,
    "RawTensor.shape": _items(_N, least=1, most=9),
    "RawTensor.sha256": _SHA256,
    "Golden.n": _N,
    "Golden.set_id": _SHA256,
    "Golden.inputs": _TENSORS,
    "Golden.outputs": _TENSORS,
    "Golden.artifact_outputs": {
        "maxProperties": 1024,
        "propertyNames": _NAME,
        "additionalProperties": _TENSORS,
    },
    "OutputQuality.output": {**_text(256), "minLength": 1},
    "OutputQuality.sqnr_db": {"minimum": -200, "maximum": 200},
    "OutputQuality.max_abs_err": _COUNT,
    "EvalResult.artifact_id": _NAME,
    "EvalResult.drop": {"minimum": -2, "maximum": 2},
    "EvalResult.top1_agreement": _SHARE,
    "EvalResult.outputs": _TENSORS,
    "Evaluation.set_id": _SHA256,
    "Evaluation.n": _N,
    "Evaluation.float_value": {"minimum": -1, "maximum": 1},
    "Evaluation.results": _items({}, most=1024),
    "RawFile.path": _PATH,
    "RawFile.sha256": _SHA256,
    "RawFile.size_bytes": {"minimum": 0, "maximum": MAX_TEXT_BYTES},
    "Manifest.schema": {"minimum": SCHEMA, "maximum": SCHEMA},
    "Manifest.artifacts": _items({}, least=1, most=1024),
    "Manifest.evals": _items({}, most=64),
    "Manifest.files": _items({}, least=1, most=1024),
}


def first_violation(value: Any, path: str = "") -> str:
    """The first field in ``value`` (a dataclass of the manifest) that breaks its rule.

    Returns:
        the field's path and what is wrong with it, or an empty string.
    """
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            child, name = getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
            rule = RULES.get(f"{type(value).__name__}.{field.name}", {})
            if found := _break(child, rule, name) or first_violation(child, name):
                return found
    elif isinstance(value, Mapping):
        for key, child in value.items():
            if found := first_violation(child, f"{path}.{key}"):
                return found
    elif isinstance(value, tuple):
        for i, child in enumerate(value):
            if found := first_violation(child, f"{path}[{i}]"):
                return found
    return ""


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``manifest.json``."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Manifest).json_schema()
    classes = {"Manifest": schema, **schema["$defs"]}
    for name, definition in classes.items():
        definition["additionalProperties"] = False
        for field, sub in definition["properties"].items():
            sub.pop("title", None)
            sub.pop("default", None)
            for branch in (sub, *sub.get("anyOf", ())):
                if branch.get("type") != "null" and "anyOf" not in branch:
                    _merge(branch, RULES.get(f"{name}.{field}", {}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "manifest.json of an edgekit bundle, schema 1",
    }


def schema_text() -> str:
    """The text of ``manifest.schema.json``."""
    return json.dumps(manifest_schema(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _break(value: Any, rule: _Rule, name: str) -> str:
    """How ``value`` breaks ``rule``: a JSON Schema of the few keywords that RULES uses."""
    if value is None or not rule:
        return ""
    if "enum" in rule and value not in rule["enum"]:
        return f"{name}: {value!r:.80} is none of {', '.join(map(repr, rule['enum']))}"
    if isinstance(value, str):
        if not rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", len(value)):
            return f"{name}: {len(value)} characters are too few or too many"
        pattern = rule.get("pattern", "")
        # fullmatch, because in Python (unlike JSON Schema) $ also matches before a final newline.
        if pattern and not re.fullmatch(pattern, value):
            return f"{name}: {value!r:.80} is not of the form {pattern}"
    elif isinstance(value, (int, float)):
        if value < rule.get("minimum", value) or value <= rule.get("exclusiveMinimum", -math.inf):
            return f"{name}: {value} is too small"
        if value > rule.get("maximum", value):
            return f"{name}: {value} is too large (at most {rule['maximum']})"
    elif isinstance(value, tuple):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            return f"{name}: {len(value)} entries are too few or too many"
        for i, child in enumerate(value):
            if found := _break(child, rule.get("items", {}), f"{name}[{i}]"):
                return found
    elif isinstance(value, Mapping):
        if len(value) > rule.get("maxProperties", len(value)):
            return f"{name}: {len(value)} entries are too many"
        for key, child in value.items():
            keys, values = rule.get("propertyNames", {}), rule.get("additionalProperties", {})
            if found := _break(key, keys, f"{name}: key") or _break(child, values, f"{name}.{key}"):
                return found
    return ""


def _merge(schema: dict[str, Any], rule: _Rule) -> None:
    for keyword, wanted in rule.items():
        if keyword == "items" and "prefixItems" in schema:
            for item in schema["prefixItems"]:
                _merge(item, wanted)
        elif isinstance(wanted, Mapping) and isinstance(schema.get(keyword), dict):
            _merge(schema[keyword], wanted)
        elif wanted != {}:
            schema[keyword] = wanted


if __name__ == "__main__":
    write_atomic(SCHEMA_FILE, schema_text())
