"""Damaged, truncated, newer and hostile bundles: refused with a precise error, never loaded."""

from __future__ import annotations

import copy
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BundleError
from tests.fixtures.bundles import ID, Document, read, refused, write

# The manifest as a document


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\x00" * 100, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "schema: None is not a schema number"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'{"schema": 1, "schema": 1}', "key 'schema' occurs twice"),
        (b'{"schema": NaN}', "NaN is not"),
        (b'{"schema": 1e999}', "1e999 is too large"),
        (b'{"schema": ' + b"1" * 5000 + b"}", "integer 1111.* is too large"),
        (b'{"schema": 1}', "model: Field required"),
        (b'\xff\xfe{"schema": 1}', "not UTF-8"),
    ],
)
def test_what_is_no_manifest(victim: Path, content: bytes, message: str) -> None:
    (victim / "manifest.json").write_bytes(content)
    error = refused(victim)
    assert error.message.startswith(f"{victim}/manifest.json: ")
    with pytest.raises(BundleError, match=message):
        raise error


@pytest.mark.parametrize("schema", [0, -1, 1.5, True, "1", None, [1]])
def test_a_schema_that_is_none(victim: Path, schema: object) -> None:
    write(victim, {**read(victim), "schema": schema})
    assert "is not a schema number" in refused(victim).message


def test_a_newer_manifest_says_upgrade_whatever_else_it_holds(victim: Path) -> None:
    for newer in ({**read(victim), "schema": 2, "new_field": 1}, {"schema": 2**40}):
        write(victim, newer)
        error = refused(victim)
        assert "is newer than what this edgekit reads (1)" in error.message
        assert "pip install --upgrade edgekit" in error.remedy


def test_a_gigantic_manifest_is_not_read(victim: Path) -> None:
    os.truncate(victim / "manifest.json", 50 * 2**30)  # a sparse file
    tracemalloc.start()
    try:
        error = refused(victim)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "larger than 16777216 bytes" in error.message
    assert peak < 2**20


def test_a_large_hostile_manifest_is_refused_soon(victim: Path) -> None:
    for content in (b"[" + b"[],[[]]," * 500_000 + b"[]]", b'{"schema":1,"a":"' + b"x" * 2**23):
        (victim / "manifest.json").write_bytes(content)
        started = time.monotonic()
        refused(victim)
        assert time.monotonic() - started < 30


# Fields


def put(path: str, value: object) -> Callable[[Document], None]:
    """Sets the field at a path such as ``artifacts.0.path``."""

    def change(document: Document) -> None:
        at: Any = document
        *steps, last = path.split("/")
        for step in steps:
            at = at[int(step) if isinstance(at, list) else step]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def drop(path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        at: Any = document
        *steps, last = path.split("/")
        for step in steps:
            at = at[int(step) if isinstance(at, list) else step]
        del at[int(last) if isinstance(at, list) else last]

    return change


def again(path: str, index: int) -> Callable[[Document], None]:
    """Appends a copy of an entry to its list."""

    def change(document: Document) -> None:
        at: Any = document
        for step in path.split("/"):
            at = at[step]
        at.append(copy.deepcopy(at[index]))

    return change


SPEC = {"name": "y", "shape": [1, 5], "dtype": "float32", "layout": ""}
HOSTILE: list[tuple[Callable[[Document], None], str]] = [
    # Paths
    (put("artifacts/0/path", "../outside"), r"artifacts\[0\].path: '../outside' leaves the bundle"),
    (put("artifacts/0/path", "artifacts/../../x"), "leaves the bundle"),
    (put("artifacts/0/path", "/etc/passwd"), "is not a relative path"),
    (put("artifacts/0/path", "~/x"), "is not a relative path"),
    (put("artifacts/0/path", "C:/x"), "is not a relative path"),
    (put("artifacts/0/path", "artifacts\\..\\x"), "is not a relative path"),
    (put("artifacts/0/path", "artifacts//x"), "empty or hidden"),
    (put("artifacts/0/path", "artifacts/./x"), "empty or hidden"),
    (put("artifacts/0/path", "artifacts/"), "empty or hidden"),
    (put("artifacts/0/path", ""), "empty or hidden"),
    (put("artifacts/0/path", "artifacts/.x"), "empty or hidden"),
    (put("artifacts/0/path", "artifacts/a\0b"), "control character"),
    (put("artifacts/0/path", "artifacts/a\nb"), "control character"),
    (put("artifacts/0/path", "artifacts/ｅ.pte"), "not of the form"),
    (put("artifacts/0/path", "artifacts/" + "a" * 5000), "too few or too many"),
    (put("artifacts/0/path", "a/" * 9 + "b"), "not of the form"),
    (put("artifacts/0/path", "manifest.json"), "name the same file"),
    (put("artifacts/0/path", "artifacts/other.pte"), f"is not artifacts/{ID} with an extension"),
    (put("artifacts/0/path", f"golden/{ID}.pte"), "is not artifacts/"),
    (put("golden/inputs/0/path", "golden/../../x"), r"golden.inputs\[0\].path.*leaves"),
    (put("golden/outputs/0/path", "/x"), r"golden.outputs\[0\].path"),
    (put(f"golden/artifact_outputs/{ID}/0/path", "../x"), f"artifact_outputs.{ID}.*leaves"),
    (put("golden/labels/path", "../x"), "golden.labels.path.*leaves"),
    (put("golden/labels/path", "labels.bin"), "is not in golden/"),
    (put("files/0/path", "../../root/.bashrc"), r"files\[0\].path.*leaves"),
    (put("files/0/path", "other.txt"), "recipe.json is missing|is neither"),
    (put("files/1/path", "readme.txt"), "is neither recipe.json nor labels.txt|is missing"),
    # Duplicates
    (again("artifacts", 0), "name the same file"),
    (put("artifacts/1/id", ID), "is not artifacts/|occurs twice"),
    (put("golden/outputs/0/path", "golden/inputs/x.bin"), "name the same file"),
    (put("golden/outputs/0/path", "golden/INPUTS/X.bin"), "name the same file"),
    (put("golden/outputs/0/path", "golden/inputs/x.bin/y"), "which is a file"),
    (again("files", 0), "name the same file"),
    (again("model/outputs", 0), "name 'y' occurs twice"),
    (again("evals", 0), "occurs twice"),
    # Hashes, ids, names
    (put("artifacts/0/sha256", "0" * 64), "is damaged: its SHA-256 is"),
    (put("artifacts/0/sha256", "0" * 63), "artifacts.*sha256: .*not of the form"),
    (put("artifacts/0/sha256", "A" * 64), "not of the form"),
    (put("artifacts/0/sha256", "0" * 64 + "\n"), "not of the form"),
    (put("golden/set_id", ""), "golden.set_id"),
    (put("model/name", "../../x"), "model.name: .*not of the form"),
    (put("model/name", ""), "model.name"),
    (put("artifacts/0/runtime", "--help"), "runtime: .*not of the form"),
    (put("artifacts/0/inputs/0/name", ""), "too few or too many"),
    (put("artifacts/0/tool_versions", {"torch\n": "1"}), r"tool_versions: key"),
    # Numbers
    (put("artifacts/0/size_bytes", 0), "size_bytes: 0 is too small"),
    (put("artifacts/0/size_bytes", -5), "too small"),
    (put("artifacts/0/size_bytes", 2**50), "too large"),
    (put("artifacts/0/size_bytes", 2**63), "integer 9223372036854775808 is too large"),
    (put("artifacts/0/size_bytes", 10.0), "size_bytes: .*integer"),
    (put("artifacts/0/size_bytes", True), "size_bytes"),
    (put("artifacts/0/size_bytes", 7), f"{ID}.pte has 2100 bytes, but the manifest says 7"),
    (put("model/inputs/0/shape/1", 0), r"model.inputs\[0\].shape\[1\]: 0 is too small"),
    (put("model/inputs/0/shape/1", -3), "too small"),
    (put("model/inputs/0/shape/1", 2**31), "too large"),
    (put("model/inputs/0/shape", [2**31 - 1] * 8), "differ from the model's"),
    (put("model/inputs/0/shape", [1] * 9), "too few or too many"),
    (put("golden/inputs/0/shape", [16] + [2**31 - 1] * 8), "bytes are too many"),
    (put("golden/n", 17), r"golden.inputs: .* should be .*17"),
    (put("golden/n", 0), "golden.n: 0 is too small"),
    (put("golden/inputs/0/shape/0", 15), "should be"),
    (put("golden/inputs/0/dtype", "int64"), "should be"),
    (put("golden/inputs/0/dtype", "object"), "dtype: 'object' is none of"),
    (put("golden/inputs/0/name", "z"), "golden.inputs: the names"),
    (put("golden/labels/dtype", "int32"), "golden.labels: .*one int64"),
    (put("golden/labels", None), "top1 needs labels"),
    (put("model/preprocess/std", [1.0, 0.0, 1.0]), r"std\[1\]: 0.0 is too small"),
    (put("model/preprocess/mean", [0.0]), "1 entries, but RGB has 3"),
    (put("model/preprocess/crop", [224, 10**9]), "too large"),
    (put("model/preprocess/crop", [224]), "crop"),
    (put("artifacts/0/inspection/int8_mac_share", 1.01), "int8_mac_share: 1.01 is too large"),
    (put("evals/0/results/0/drop", 3), "drop: 3.0 is too large"),
    (put("evals/0/results/0/outputs/0/sqnr_db", 1e300), "sqnr_db"),
    # Things that only together are wrong
    (put("artifacts/0/outputs", [{**SPEC, "shape": [1, 6]}]), "differ from the model's"),
    (put("artifacts/0/precision", "int8"), "precision: int8, but its recipe is fp32"),
    (put("evals/0/results/0/artifact_id", "nope"), "no artifact is 'nope'"),
    (put("evals/1/set_id", "SAME"), "not of the form"),
    (drop(f"golden/artifact_outputs/{ID}"), "keys are not the ids"),
    (drop("artifacts/0"), "keys are not the ids"),
    (drop("artifacts/0/sha256"), r"artifacts\[0\].sha256: Field required"),
    (drop("golden"), "golden: Field required"),
    (put("artifacts", []), "artifacts: 0 entries"),
    (put("evil", 1), "evil: unknown field"),
    (put("artifacts/0/evil", 1), r"artifacts\[0\].evil: unknown field"),
    (put("artifacts/0/precision", "int4"), "precision: .*'fp32' or 'int8'"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_field_is_named(
    victim: Path, change: Callable[[Document], None], message: str
) -> None:
    document = read(victim)
    change(document)
    write(victim, document)
    with pytest.raises(BundleError, match=message):
        raise refused(victim)


def test_one_set_may_not_choose_and_report(victim: Path) -> None:
    document = read(victim)
    document["evals"][1]["set_id"] = document["evals"][0]["set_id"]
    write(victim, document)
    assert "both chooses and reports" in refused(victim).message
