"""Calibration and evaluation sets from real files."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit import data
from edgekit.data import SampleSet, check_disjoint, load_samples, open_samples
from edgekit.errors import DataError
from edgekit.preprocess import preprocess_image
from edgekit.types import Preprocess, TensorSpec

SPEC = (TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW"),)
HOW = Preprocess(resize=8, crop=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def load(spec: str, base: Path, **more: Any) -> SampleSet:
    return load_samples(spec, more.pop("inputs", SPEC), more.pop("how", HOW), base=base, **more)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(10):
        image(tmp_path / f"photos/{i}.png", i)
    return tmp_path / "photos"


# Image folders


def test_a_folder_of_images(photos: Path) -> None:
    ticks: list[int] = []
    (photos / "notes.txt").write_text("not an image")
    (photos / "._0.png").write_text("what a Mac leaves")
    loaded = load("photos", photos.parent, advance=lambda: ticks.append(1))
    assert (loaded.n, loaded.labels, loaded.class_names, len(ticks)) == (10, None, (), 10)
    assert loaded.names == tuple(str(photos / f"{i}.png") for i in range(10))
    (x,) = loaded.inputs
    assert x.shape == (10, 1, 3, 8, 8)
    assert x.dtype == np.float32
    assert isinstance(x, np.memmap)
    assert not x.flags.writeable
    for i in range(10):
        with Image.open(photos / f"{i}.png") as original:
            np.testing.assert_array_equal(x[i], preprocess_image(original, HOW))


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "pgm", "png", "ppm", "tiff", "webp"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    image(tmp_path / f"d/a.{suffix}", 1)
    assert load("d", tmp_path).n == 1


def test_sub_folders_are_classes_that_take_turns(tmp_path: Path) -> None:
    for i, name in enumerate(["cat/a", "cat/b", "cat/c", "ant/a", "ant/deep/b"]):
        image(tmp_path / f"d/{name}.png", i)
    loaded = load("d", tmp_path)
    assert loaded.class_names == ("ant", "cat")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 0, 1, 1]
    assert load("d", tmp_path, limit=2).names == loaded.names[:2]


def test_numeric_sub_folders_are_the_labels(tmp_path: Path) -> None:
    for i, name in enumerate(["10", "9", "281"]):
        image(tmp_path / f"d/{name}/a.png", i)
    loaded = load("d", tmp_path)
    assert loaded.labels is not None
    assert (loaded.labels.tolist(), loaded.class_names) == ([9, 10, 281], ())


def test_a_labels_file(photos: Path) -> None:
    rows = "".join(f"{i}.png,{7 + i % 2}\n" for i in range(10))
    (photos / "labels.csv").write_text("\ufefffile,label\n" + rows)
    loaded = load("photos", photos.parent)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [7, 8] * 5
    (photos / "labels.csv").write_text(
        "file,label\n" + rows.replace(",7", ",b").replace(",8", ",a")
    )
    named = load("photos", photos.parent)
    assert named.labels is not None
    assert (named.class_names, named.labels.tolist()) == (("a", "b"), [0, 1] * 5)
    assert named.id != loaded.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.png,1\n", "first line is not file,label"),
        ("", "first line is not file,label"),
        ("file,label\n0.png,1\n0.png,1\n", "line 3: 0.png occurs twice"),
        ("file,label\nnope.png,1\n", "line 2: there is no nope.png"),
        ("file,label\n0.png,1\n", "1.png has no label"),
        ("file,label\n0.png\n", "line 2: a file or label is missing"),
        ("file,label\n" + "".join(f"{i}.png,{i or 'x'}\n" for i in range(10)), "mix numbers"),
        (b"file,label\n\xff", "cannot be read"),
    ],
)
def test_a_wrong_labels_file(photos: Path, text: str | bytes, message: str) -> None:
    (photos / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as e:
        load("photos", photos.parent)
    assert "labels.csv" in e.value.message


def test_a_limit_spreads_over_the_photos(photos: Path) -> None:
    names = [Path(name).name for name in load("photos", photos.parent, limit=4).names]
    assert names == ["0.png", "2.png", "5.png", "7.png"]
    assert load("photos", photos.parent, limit=99).n == 10
    with pytest.raises(DataError, match="limit of 0"):
        load("photos", photos.parent, limit=0)


def test_a_damaged_image_is_named(photos: Path) -> None:
    content = (photos / "3.png").read_bytes()
    for damaged in (content[: len(content) // 2], b"no image", b""):
        (photos / "3.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"3\.png: cannot be decoded"):
            load("photos", photos.parent)


def test_a_constant_image_is_named(photos: Path) -> None:
    Image.new("L", (10, 10), 77).save(photos / "4.png")
    with pytest.raises(DataError, match=r"4\.png: all values are the same"):
        load("photos", photos.parent)


def test_a_deep_image_is_named(photos: Path) -> None:
    Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 600).save(photos / "5.png")
    with pytest.raises(DataError, match=r"5\.png: .*more than 8 bits"):
        load("photos", photos.parent)


def test_images_need_the_right_preprocessing(photos: Path) -> None:
    with pytest.raises(DataError, match="need preprocessing"):
        load("photos", photos.parent, how=None)
    with pytest.raises(DataError, match=r"gives \(1, 3, 9, 9\), but .* \(1, 3, 8, 8\)"):
        load("photos", photos.parent, how=Preprocess(crop=(9, 9)))
    with pytest.raises(DataError, match=r"0\.png: has shape \(1, 3, 8, 9\)"):
        load("photos", photos.parent, how=Preprocess(resize=8))
    with pytest.raises(DataError, match="feeds one input, but the model has 2"):
        load("photos", photos.parent, inputs=SPEC * 2)


def test_folders_that_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        load("empty", tmp_path)
    image(tmp_path / "both/a.png", 0)
    image(tmp_path / "both/cat/a.png", 0)
    with pytest.raises(DataError, match="both beside and inside"):
        load("both", tmp_path)
    with pytest.raises(DataError, match="not found"):
        load("nowhere", tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="not a kind of data") as e:
        load("data.parquet", tmp_path)
    assert ".npz" in e.value.remedy


# Ids, cache, memory


def test_the_id_tells_sets_apart(photos: Path) -> None:
    base = photos.parent
    a = load("photos", base)
    assert a.id == load("photos", base).id
    assert a.id != load("photos", base, limit=9).id
    other = Preprocess(resize=8, crop=(8, 8))
    assert a.id != load("photos", base, how=other).id
    shutil.copytree(photos, base / "copy")
    assert a.id == load("copy", base).id
    image(base / "copy/0.png", 99)
    assert a.id != load("copy", base).id
    digest = hashlib.sha256(b"float32 (1, 3, 8, 8) " + a.inputs[0][4].tobytes()).hexdigest()
    assert a.sample_hashes[4] == digest


def test_a_sample_in_both_sets_is_named(photos: Path) -> None:
    for i in (20, 21):
        image(photos.parent / f"other/{i}.png", i)
    a, b = load("photos", photos.parent), load("other", photos.parent)
    check_disjoint(a, b)
    shutil.copy(photos / "6.png", photos.parent / "other/renamed.png")
    with pytest.raises(DataError, match=r"6\.png and .*renamed\.png are the same"):
        check_disjoint(a, load("other", photos.parent))


def test_the_cache_is_used_until_something_changes(photos: Path) -> None:
    cache, ticks = photos.parent / "cache", list[int]()

    def again() -> SampleSet:
        ticks.clear()
        return load("photos", photos.parent, cache=cache, advance=lambda: ticks.append(1))

    first = again()
    assert len(ticks) == 10
    second = again()
    assert (len(ticks), second.id, second.path) == (0, first.id, first.path)
    image(photos / "0.png", 50)
    third = again()
    assert len(ticks) == 10
    assert third.id != first.id
    (third.path / "input0.raw").write_bytes(b"damaged")
    assert again().id == third.id
    assert len(ticks) == 10


def test_a_stored_set_is_opened_by_its_path(photos: Path) -> None:
    loaded = load("photos", photos.parent, cache=photos.parent / "cache")
    opened = open_samples(loaded.path)
    assert (opened.id, opened.names) == (loaded.id, loaded.names)
    np.testing.assert_array_equal(opened.inputs[0], loaded.inputs[0])
    with pytest.raises(DataError, match="cannot be read"):
        open_samples(photos)


def test_a_temporary_set_goes_with_its_object(photos: Path) -> None:
    loaded = load("photos", photos.parent)
    path, x = loaded.path, loaded.inputs[0]
    assert path.is_dir()
    del loaded
    assert not path.exists()
    assert np.isfinite(x).all()  # mapped files outlive their names


def test_the_cache_keeps_the_latest_sets(photos: Path) -> None:
    cache = photos.parent / "cache"
    for limit in range(1, 11):
        for how in (HOW, Preprocess(resize=8, crop=(8, 8))):
            last = load("photos", photos.parent, limit=limit, how=how, cache=cache)
    assert len(list(cache.iterdir())) == 16
    assert last.path.is_dir()


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((5, 1, 3, 8, 8), np.float32))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "def samples():\n    return np.load(Path(__file__).with_name('x.npy'))\n"
    )
    return tmp_path


def test_the_same_samples_of_a_function_share_a_folder(factory: Path) -> None:
    cache, ticks = factory / "cache", list[int]()

    def again() -> SampleSet:
        ticks.clear()
        return load("mine.py:samples", factory, cache=cache, advance=lambda: ticks.append(1))

    def folders() -> set[Path]:
        return set(cache.iterdir())

    first = again()
    assert folders() == {first.path} and len(ticks) == 5
    second = again()
    assert (second.path, len(ticks)) == (first.path, 5)  # the function ran, though
    assert folders() == {first.path}
    assert Path(str(second.inputs[0].filename)).parent == first.path  # type: ignore[attr-defined]
    (first.path / "input0.raw").write_bytes(b"damaged")
    third = again()
    assert third.path == first.path and folders() == {first.path}
    np.testing.assert_array_equal(third.inputs[0], np.load(factory / "x.npy"))
    np.save(factory / "x.npy", np.random.default_rng(1).random((5, 1, 3, 8, 8), np.float32))
    other = again()
    assert other.id != first.id and folders() == {first.path, other.path}


def test_the_cache_is_bounded_by_bytes_but_keeps_what_is_in_use(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = photos.parent / "cache"

    def sizes(limits: range) -> list[SampleSet]:
        return [load("photos", photos.parent, limit=limit, cache=cache) for limit in limits]

    held = sizes(range(1, 4))
    bytes_used = sum(file.stat().st_size for file in cache.glob("*/*"))
    monkeypatch.setattr(data, "_MAX_CACHE_BYTES", bytes_used - 1)
    monkeypatch.setattr(data, "_KEEP", 2)
    held += sizes(range(4, 6))
    assert all(one.path.is_dir() for one in held), "all in use"
    newest, paths = held.pop(), [one.path for one in held]
    held.clear()
    last = load("photos", photos.parent, limit=1, cache=cache)
    assert last.path == paths[0]
    assert set(cache.iterdir()) == {last.path, newest.path}
    path = newest.path
    del newest
    monkeypatch.setattr(data, "_MAX_CACHE_BYTES", 0)
    monkeypatch.setattr(data, "_KEEP", 16)
    load("photos", photos.parent, limit=1, cache=cache)
    assert set(cache.iterdir()) == {last.path} and not path.exists()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    specs = (TensorSpec("x", (1, 3, 128, 128), "float32"),)
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((100, 3, 128, 128), np.float32))
    tracemalloc.start()
    try:
        loaded = load("a.npz", tmp_path, inputs=specs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loaded.inputs[0].nbytes == 100 * 3 * 128 * 128 * 4
    assert peak < loaded.inputs[0].nbytes / 5
