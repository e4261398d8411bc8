"""Bundles that are well: written, opened, packed, replaced."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle, write_bundle, write_raw_tensor
from edgekit.errors import BundleError
from edgekit.types import Precision

MakeParts = Callable[..., dict[str, Any]]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_is_written_is_read_back(bundle: Bundle, make_parts: MakeParts) -> None:
    parts = make_parts()
    opened = Bundle.open(bundle.path)
    assert opened == bundle
    assert opened.manifest.model == parts["model"]
    assert opened.manifest.artifacts == tuple(parts["artifacts"])
    assert opened.manifest.golden == parts["golden"]
    assert opened.manifest.evals == tuple(parts["evals"])
    assert opened.class_names == ("ant", "bee", "cat", "dog", "élan")
    log = opened.recipe_log
    assert log.failures == tuple(parts["failures"])
    assert log.recipes == {a.id: a.recipe for a in parts["artifacts"]}
    assert opened.digest == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


def test_every_file_is_listed_with_its_hash(bundle: Bundle) -> None:
    on_disk = tree(bundle.path)
    del on_disk["manifest.json"]
    assert {f.path: f.sha256 for f in bundle.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in on_disk.items()
    }


def test_the_same_parts_make_the_same_bundle(tmp_path: Path, make_parts: MakeParts) -> None:
    a = write_bundle(tmp_path / "a", **make_parts())
    b = write_bundle(tmp_path / "b", **make_parts())
    assert a.digest == b.digest
    assert tree(a.path) == tree(b.path)


def test_a_tensor_is_mapped_read_only(bundle: Bundle, make_parts: MakeParts) -> None:
    raw = bundle.manifest.golden.inputs[0]
    array = bundle.tensor(raw)
    assert isinstance(array, np.memmap)
    assert (array.dtype, array.shape) == (np.dtype("<f4"), (16, 1, 3, 4, 4))
    assert array.tobytes() == (bundle.path / raw.path).read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "int64", "int32", "int8", "uint8", "bool", ">f4", ">i8"]
)
def test_raw_tensors_are_little_endian_in_c_order(tmp_path: Path, dtype: str) -> None:
    array = np.asfortranarray(np.arange(24).reshape(2, 3, 4).astype(dtype))
    raw = write_raw_tensor(tmp_path, "golden/t.bin", "t", array)
    content = (tmp_path / raw.path).read_bytes()
    read = np.frombuffer(content, np.dtype(raw.dtype).newbyteorder("<")).reshape(raw.shape)
    np.testing.assert_array_equal(read, array)
    assert raw.sha256 == hashlib.sha256(content).hexdigest()
    assert raw.dtype == array.dtype.name


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.zeros(()), np.zeros(2, complex), np.array(["a"])]
)
def test_what_no_reader_knows_is_not_stored(tmp_path: Path, array: Any) -> None:
    with pytest.raises(BundleError, match="cannot store"):
        write_raw_tensor(tmp_path, "golden/t.bin", "t", array)


def test_files_and_artifacts_are_found_only_if_listed(bundle: Bundle) -> None:
    artifact = bundle.artifact("small-tflite-fp32")
    assert bundle.file(artifact.path) == bundle.path / "artifacts/small-tflite-fp32.tflite"
    with pytest.raises(BundleError, match="no artifact 'nope'") as e:
        bundle.artifact("nope")
    assert "small-tflite-fp32" in e.value.remedy
    for path in ("nope", "../bundle/manifest.json", "/etc/passwd"):
        with pytest.raises(BundleError, match="is not in the manifest"):
            bundle.file(path)


def test_a_file_that_changes_after_opening_is_noticed(bundle: Bundle) -> None:
    raw = bundle.manifest.golden.outputs[0]
    full = bundle.path / raw.path
    content = full.read_bytes()
    full.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="has changed"):
        bundle.tensor(raw)
    full.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.tensor(raw)
    full.with_name("elsewhere").write_bytes(content)
    full.symlink_to("elsewhere")
    with pytest.raises(BundleError, match="behind a link"):
        bundle.tensor(raw)


def test_a_packed_bundle_is_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.pack(tmp_path / "a.tar")
    bundle.pack(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with Bundle.open(tmp_path / "a.tar") as unpacked:
        assert unpacked.digest == bundle.digest
        assert tree(unpacked.path) == tree(bundle.path)
        folder = unpacked.path
    assert not folder.exists()


def test_a_temporary_folder_goes_with_its_bundle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.pack(tmp_path / "a.tar")
    unpacked = Bundle.open(tmp_path / "a.tar")
    folder = unpacked.path
    assert folder.is_dir()
    del unpacked
    assert not folder.exists()


def test_an_archive_is_unpacked_where_the_caller_says(bundle: Bundle, tmp_path: Path) -> None:
    bundle.pack(tmp_path / "a.tar")
    unpacked = Bundle.open(tmp_path / "a.tar", extract_to=tmp_path / "out")
    assert unpacked.path == tmp_path / "out"
    assert unpacked.digest == bundle.digest
    with pytest.raises(BundleError, match="is not empty"):
        Bundle.open(tmp_path / "a.tar", extract_to=tmp_path / "out")


@pytest.mark.parametrize("form", ["tar cf t.tar bundle", "tar cf t.tar -C bundle ."])
def test_an_archive_of_the_tar_command_is_read(bundle: Bundle, tmp_path: Path, form: str) -> None:
    subprocess.run(form.split(), cwd=tmp_path, check=True)
    with Bundle.open(tmp_path / "t.tar") as unpacked:
        assert tree(unpacked.path) == tree(bundle.path)


def test_long_names_survive_packing(tmp_path: Path, make_parts: MakeParts) -> None:
    parts = make_parts()
    long = "golden/" + "a" * 150 + "/" + "b" * 150
    golden = parts["golden"]
    parts["files"][long] = parts["files"].pop(golden.inputs[0].path)
    parts["golden"] = replace(golden, inputs=(replace(golden.inputs[0], path=long),))
    write_bundle(tmp_path / "long", **parts).pack(tmp_path / "long.tar")
    with tarfile.open(tmp_path / "long.tar") as tar:
        assert long in tar.getnames()
    with Bundle.open(tmp_path / "long.tar") as unpacked:
        assert unpacked.tensor(unpacked.manifest.golden.inputs[0]).shape[0] == 16


def test_a_new_bundle_replaces_the_old_one(bundle: Bundle, make_parts: MakeParts) -> None:
    parts = make_parts()
    parts["class_names"] = []
    new = write_bundle(bundle.path, **parts)
    assert new.digest != bundle.digest
    assert not (bundle.path / "labels.txt").exists()
    assert Bundle.open(bundle.path).class_names == ()
    assert sorted(p.name for p in bundle.path.parent.iterdir()) == ["bundle", "parts"]


@pytest.mark.parametrize("stray", ["precious.txt", "manifest.json"])
def test_a_folder_of_the_users_is_not_replaced(
    tmp_path: Path, make_parts: MakeParts, stray: str
) -> None:
    (tmp_path / "home/photos").mkdir(parents=True)
    (tmp_path / "home" / stray).write_text("keep")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "home", **make_parts())
    assert (tmp_path / "home" / stray).read_text() == "keep"


def test_parts_that_do_not_fit_leave_the_old_bundle(bundle: Bundle, make_parts: MakeParts) -> None:
    before = tree(bundle.path)
    path = "artifacts/small-tflite-fp32.tflite"
    spoilers: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda p: p["files"].pop(path), f"no file given for '{path}'"),
        (lambda p: p["files"].update({"golden/x": p["files"][path]}), "neither artifact nor"),
        (lambda p: p["files"][path].write_bytes(b"other"), "has 5 bytes"),
        (lambda p: p.update(class_names=["a\nb"]), "more than one line"),
        (lambda p: p.update(evals=[replace(p["evals"][0], float_value=float("nan"))]), "nan is"),
        (lambda p: p.update(artifacts=p["artifacts"][1:]), "neither artifact nor"),
        (lambda p: p.update(model=replace(p["model"], name="../x")), "model.name"),
    ]
    for spoil, message in spoilers:
        parts = make_parts()
        spoil(parts)
        with pytest.raises(BundleError, match=message):
            write_bundle(bundle.path, **parts)
        assert tree(bundle.path) == before
        assert sorted(p.name for p in bundle.path.parent.iterdir()) == ["bundle", "parts"]


def test_a_missing_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle") as e:
        Bundle.open(tmp_path / "none")
    assert "edgekit quantize" in e.value.remedy


def test_a_bundle_that_a_crash_left_aside_is_found(bundle: Bundle) -> None:
    bundle.path.rename(bundle.path.with_name(".bundle.edgekit-old-0123abcd"))
    assert Bundle.open(bundle.path).digest == bundle.digest


def test_a_desktops_droppings_are_ignored(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "golden/.DS_Store").write_bytes(b"x")
    Bundle.open(bundle.path).pack(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert not any("DS_Store" in name for name in tar.getnames())


def test_importing_loads_no_heavy_module() -> None:
    code = (
        "import sys, edgekit.bundle;"
        "print([m for m in ('numpy', 'pydantic', 'torch', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_manifest_is_plain_json(bundle: Bundle) -> None:
    document = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
    assert document["schema"] == 1
    precision: Precision = document["artifacts"][1]["precision"]
    assert precision == "int8"
