"""Samples from ``.npz`` files and Python functions."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import SampleSet, load_samples
from edgekit.errors import DataError
from edgekit.types import TensorSpec

SPEC = (TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW"),)


def load(spec: str, base: Path, **more: Any) -> SampleSet:
    return load_samples(spec, more.pop("inputs", SPEC), None, base=base, **more)


def factory(tmp_path: Path, body: str, name: str = "samples.py") -> str:
    (tmp_path / name).write_text("import numpy as np\n" + textwrap.dedent(body))
    return f"{name}:make"


# .npz files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(5, 1, 3, 8, 8), (5, 3, 8, 8)])
def test_an_npz_file(tmp_path: Path, save: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    save(tmp_path / "a.npz", images=x, labels=np.array([3, 1, 4, 1, 5], np.uint8))
    loaded = load("a.npz", tmp_path)
    np.testing.assert_array_equal(loaded.inputs[0], x.reshape(5, 1, 3, 8, 8).astype(np.float32))
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [3, 1, 4, 1, 5]
    assert loaded.labels.dtype == np.int64
    assert load("a.npz", tmp_path, limit=2).n == 2


def test_an_npz_file_in_fortran_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(x))
    np.testing.assert_array_equal(load("a.npz", tmp_path).inputs[0], x[:, None])


def test_an_npz_file_with_several_inputs(tmp_path: Path) -> None:
    specs = (TensorSpec("ids", (1, 4), "int64"), TensorSpec("mask", (1, 4), "float32"))
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    mask = np.random.default_rng(0).random((3, 4))
    np.savez(tmp_path / "a.npz", mask=mask, ids=ids)
    loaded = load("a.npz", tmp_path, inputs=specs)
    assert loaded.inputs[0].dtype == np.int64
    np.testing.assert_array_equal(loaded.inputs[0][:, 0], ids)
    np.testing.assert_array_equal(loaded.inputs[1][:, 0], mask.astype(np.float32))
    np.savez(tmp_path / "b.npz", ids=ids, masc=mask)
    with pytest.raises(DataError, match=r"arrays \['ids', 'masc'\], but the inputs are"):
        load("b.npz", tmp_path, inputs=specs)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3, 8, 9))}, r"npz\[0\]: has shape \(3, 8, 9\)"),
        ({"x": np.ones((2, 3, 8, 8), np.uint8)}, "has dtype uint8"),
        ({"x": np.ones((2, 3, 8, 8))}, "all values are the same"),
        ({"x": np.full((2, 3, 8, 8), np.nan)}, "NaN or infinity"),
        ({"x": np.linspace(0, 1e300, 384).reshape(2, 3, 8, 8)}, "NaN or infinity"),
        ({"x": np.zeros((0, 3, 8, 8))}, "has no samples"),
        ({"x": np.float32(1)}, "it needs samples"),
        ({"x": np.random.rand(2, 3, 8, 8), "labels": np.arange(3)}, "different lengths"),
        ({"x": np.random.rand(2, 3, 8, 8), "labels": np.array([0.5, 1])}, "not a class index"),
        ({"x": np.random.rand(2, 3, 8, 8), "labels": np.array([0, -1])}, "not a class index"),
        ({"x": np.array([{}], object)}, "has dtype object"),
    ],
)
def test_wrong_npz_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as e:
        load("a.npz", tmp_path)
    assert "a.npz" in e.value.message


def test_samples_for_a_batch_are_batches(tmp_path: Path) -> None:
    specs = (TensorSpec("x", (4, 3, 8, 8), "float32"),)
    one = np.random.default_rng(0).random((4, 3, 8, 8))
    for arrays in (one, one[:, None]):
        np.savez(tmp_path / "a.npz", x=arrays)
        with pytest.raises(DataError, match=r"is \(4, 3, 8, 8\)") as caught:
            load("a.npz", tmp_path, inputs=specs)
        assert "takes 4 at once" in caught.value.remedy and "1x3x8x8" in caught.value.remedy
    np.savez(tmp_path / "a.npz", x=one[None])
    assert load("a.npz", tmp_path, inputs=specs).inputs[0].shape == (1, 4, 3, 8, 8)


def test_damaged_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((4, 3, 8, 8)))
    content = path.read_bytes()
    for damaged in (b"", content[:-40], content[:300] + b"\0" * 200 + content[500:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz: not a readable"):
            load("a.npz", tmp_path)


# Python functions


def test_a_python_function(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("shape = (3, 8, 8)\n")
    spec = factory(
        tmp_path,
        """
        import neighbour
        def make():
            rng = np.random.default_rng(0)
            while True:
                yield rng.normal(size=neighbour.shape)
        """,
        "torch.py",  # a name of their own must not hide a module
    )
    before = list(sys.path)
    loaded = load(spec, tmp_path, limit=3)
    assert (loaded.n, loaded.labels) == (3, None)
    assert sys.path == before
    assert loaded.names[2].endswith("torch.py:make[2]")
    sys.modules.pop("neighbour")


@pytest.mark.parametrize(
    "item",
    [
        "(x, 7)",
        "[x[None], np.int32(7)]",
        "{'x': x, 'label': 7}",
        "((x,), np.array(7))",
        "(torch.from_numpy(x).requires_grad_(), torch.tensor(7))",
    ],
)
def test_the_forms_of_a_sample(tmp_path: Path, item: str) -> None:
    spec = factory(
        tmp_path,
        f"""
        import torch
        def make():
            x = np.arange(192.0).reshape(3, 8, 8)
            return [{item}]
        """,
    )
    loaded = load(spec, tmp_path)
    np.testing.assert_array_equal(loaded.inputs[0].ravel(), np.arange(192))
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [7]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(): return 5", "raised TypeError"),
        ("def make(): raise KeyError('k')", "raised KeyError"),
        ("def other(): pass", "has no function make"),
        ("make = 5", "has no function make"),
        ("import nothing_like_this", "importing it raised ModuleNotFoundError"),
        ("def make(): yield np.eye(8); 1/0", r"make\[0\]: has shape \(8, 8\)"),
        ("def make():\n  yield np.random.rand(3,8,8)\n  1/0", "ZeroDivisionError at sample 1"),
        ("def make(): return []", "has no samples"),
        ("def make(): yield {'y': 1}", r"entries \['y'\], but the inputs are \['x'\]"),
        ("def make(): yield np.zeros(1), np.zeros(1)", "has 2 arrays, but the model has 1"),
        ("def make(): yield np.eye(8), 'cat'", "'cat' is not a class index"),
        ("def make(): yield [[[1], [1, 2]]]", "is not an array"),
        ("def make(): yield 'text'", r"has shape \(\)"),
        (
            "def make():\n  yield np.random.rand(3,8,8)\n  yield np.random.rand(3,8,8), 1",
            "some samples have labels",
        ),
    ],
)
def test_wrong_python_functions(tmp_path: Path, body: str, message: str) -> None:
    spec = factory(tmp_path, body)
    with pytest.raises(DataError, match=message) as e:
        load(spec, tmp_path)
    assert "samples.py" in e.value.message


def test_integers_must_fit(tmp_path: Path) -> None:
    specs = (TensorSpec("ids", (1, 2), "int32"),)
    spec = factory(tmp_path, "def make(): yield np.array([1, 2**40])")
    with pytest.raises(DataError, match="beyond int32"):
        load(spec, tmp_path, inputs=specs)


def test_ctrl_c_in_a_function_leaves_nothing(tmp_path: Path) -> None:
    spec = factory(
        tmp_path, "def make():\n  yield np.random.rand(3,8,8)\n  raise KeyboardInterrupt"
    )
    with pytest.raises(KeyboardInterrupt):
        load(spec, tmp_path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
