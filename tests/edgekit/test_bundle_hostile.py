"""Damaged, truncated, newer and hostile bundles: refused with a precise error, never loaded."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle, write_bundle
from edgekit.errors import BundleError
from edgekit.files import sha256_file
from tests.fixtures.bundles import bundle_parts

Document = dict[str, Any]
ID = "small-executorch-fp32"
quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    return write_bundle(folder / "bundle", **bundle_parts(folder / "parts")).path


@pytest.fixture
def victim(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "victim")


def read(folder: Path) -> Document:
    document: Document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return document


def write(folder: Path, document: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")


def refused(folder: Path, **more: Any) -> BundleError:
    with pytest.raises(BundleError) as e:
        Bundle.open(folder, **more)
    assert len(e.value.message) < 1500
    return e.value


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


class Opened:
    """The files that were opened while it was on."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.paths is not None and isinstance(arguments[0], (str, bytes)):
            self.paths.append(os.fsdecode(arguments[0]))


OPENED = Opened()  # audit hooks cannot be removed, so that there is one for all tests


@pytest.fixture
def opened() -> Iterator[Opened]:
    yield OPENED
    OPENED.paths = None


def test_nothing_is_opened_before_the_manifest_is_checked(victim: Path, opened: Opened) -> None:
    document = read(victim)
    document["golden"]["labels"]["path"] = "../../secret"
    write(victim, document)
    opened.paths = []
    refused(victim)
    paths = [path for path in opened.paths if path.startswith(str(victim.parent))]
    assert paths == [str(victim / "manifest.json")]


# Files


def test_links_and_special_files_are_refused(victim: Path, tmp_path: Path) -> None:
    target = victim / "artifacts" / f"{ID}.pte"
    outside = tmp_path / "outside"
    shutil.copy(target, outside)
    target.unlink()
    target.symlink_to(outside)  # the same content, so that only the link is wrong
    assert f"'artifacts/{ID}.pte' is a symbolic link" in refused(victim).message
    target.unlink()
    os.mkfifo(target)  # must not be waited for
    assert "is not a regular file" in refused(victim).message
    target.unlink()
    assert f"artifacts/{ID}.pte is missing" in refused(victim).message
    shutil.copy(outside, target)
    Bundle.open(victim)
    (victim / "golden").rename(tmp_path / "golden")
    (victim / "golden").symlink_to(tmp_path / "golden")
    assert "'golden' is a symbolic link" in refused(victim).message
    (victim / "golden").unlink()
    shutil.copytree(tmp_path / "golden", victim / "golden")
    (victim / "manifest.json").rename(tmp_path / "manifest.json")
    assert "no manifest.json" in refused(victim).message
    (victim / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "'manifest.json' is a symbolic link" in refused(victim).message


def test_a_link_to_the_whole_bundle_is_fine(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    assert Bundle.open(tmp_path / "link").path == victim


def test_strangers_are_refused(victim: Path) -> None:
    (victim / "artifacts/notes.txt").write_text("x")
    error = refused(victim)
    assert "'artifacts/notes.txt' is not in the manifest" in error.message
    assert error.remedy


def test_an_unreadable_folder_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    at = os.open(deep, os.O_RDONLY)
    for _ in range(30):  # a path that is too long for the system
        os.mkdir("x" * 200, dir_fd=at)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    assert "cannot be read" in refused(deep).message


def test_every_flipped_byte_of_a_file_is_found(victim: Path) -> None:
    files = sorted(p for p in victim.rglob("*") if p.is_file() and p.name != "manifest.json")
    assert len(files) == 13
    for path in files:
        content = path.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert "is damaged" in refused(victim).message
            Bundle.open(victim, verify=False)
        for wrong in (content[:-1], content + b"\0", b""):
            path.write_bytes(wrong)
            for verify in (True, False):
                assert f"has {len(wrong)} bytes" in refused(victim, verify=verify).message
        path.write_bytes(content)
    Bundle.open(victim)


# Properties


def check_opened(bundle: Bundle) -> None:
    """What may be relied on after opening."""
    names = [file.path.casefold() for file in bundle.files]
    assert len(set(names)) == len(names)
    for file in bundle.files:
        full = bundle.file(file.path)
        assert full.is_relative_to(bundle.path)
        assert full.resolve() == full
        assert full.stat().st_size == file.size_bytes
        assert sha256_file(full) == file.sha256
    for artifact in bundle.manifest.artifacts:
        for tensor in bundle.manifest.golden.artifact_outputs[artifact.id]:
            assert bundle.tensor(tensor).shape[0] == bundle.manifest.golden.n


@quick
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_manifest_is_an_error_or_shows(
    victim: Path, pristine: Path, at: int, bit: int
) -> None:
    content = bytearray((pristine / "manifest.json").read_bytes())
    content[at % len(content)] ^= 1 << bit
    (victim / "manifest.json").write_bytes(content)
    try:
        bundle = Bundle.open(victim)
    except BundleError:
        return
    check_opened(bundle)
    assert bundle.digest != Bundle.open(pristine, verify=False).digest


@quick
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_manifest_is_refused(victim: Path, pristine: Path, share: float) -> None:
    content = (pristine / "manifest.json").read_bytes().rstrip()
    (victim / "manifest.json").write_bytes(content[: int(len(content) * share)])
    refused(victim)


nasty: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("", ".", "..", "/", "../x", "/etc/passwd", "a\\b", "manifest.json", "x\0", "\ud800"),
        *(0, -1, 1, 2, 2**31, 2**53, 2**63, 10**400, 0.5, -0.0, 1e308),
        *(float("nan"), float("inf"), None, True, False, [], {}, [[]], {"": {}}, "0" * 64),
    ]
)
values = nasty | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def spots(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key
        if isinstance(value, (dict, list)):
            yield from spots(value)


@quick
@given(data=st.data())
def test_any_changed_field_is_refused_or_harmless(
    victim: Path, pristine: Path, data: st.DataObject
) -> None:
    document = read(pristine)
    for _ in range(data.draw(st.integers(1, 3))):
        everywhere = list(spots(document))
        container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
        kind = data.draw(st.sampled_from(["set", "set", "set", "delete", "copy"]))
        if kind == "set":
            container[key] = data.draw(values)
        elif kind == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[f"{key}2"] = copy.deepcopy(container[key])
    write(victim, document)
    try:
        bundle = Bundle.open(victim)
    except BundleError as e:
        assert e.message.startswith(str(victim))
        assert len(e.message) < 2000
    else:
        check_opened(bundle)
