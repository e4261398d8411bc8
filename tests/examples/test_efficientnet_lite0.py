"""The demo's inputs: photo sets that share nothing and are made once, and a trained model."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = load("photos")
    monkeypatch.setattr(module, "PHOTOS", tmp_path / "photos")
    return module


def test_no_photo_is_in_two_sets(photos: types.ModuleType) -> None:
    sources = [photos.sources(photo_set) for photo_set in photos.SETS]
    hashes = [sha256 for source in sources for sha256 in source.values()]
    assert [len(source) for source in sources] == [9, 9, 2]
    assert len(set(hashes)) == len(hashes)


def test_a_set_is_made_once_and_mended(photos: types.ModuleType) -> None:
    choose = photos.SETS[1]
    assert photos.make(choose) == 36
    made = sorted((photos.PHOTOS / "choose").iterdir())
    assert {Image.open(path).size for path in made} == {(224, 224)}
    assert photos.is_current(choose)
    before = made[7].read_bytes()
    made[7].write_bytes(b"damaged")
    assert not photos.is_current(choose)
    photos.make(choose)
    assert made[7].read_bytes() == before, "the crops are not the same every time"


def test_another_source_is_refused(
    photos: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "sources", lambda _: {"skimage/data/coffee.png": "0" * 64})
    with pytest.raises(ValueError, match=r"coffee\.png is not the photo"):
        photos.make(photos.SETS[0])
    assert not (photos.PHOTOS / "calib").exists()


def test_without_apt_the_test_set_is_left_out(
    photos: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photos, "SETS", photos.SETS[2:])
    monkeypatch.setenv("PATH", "")
    assert photos.main() == 0
    assert "no apt-get here" in capfd.readouterr().err
    assert not (photos.PHOTOS / "test").exists()


def test_the_model_is_trained_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import skimage
    import torch

    model_file = load("model")
    model = model_file.build()
    assert not model.training
    assert capfd.readouterr().out == ""
    cat = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").resize((224, 224))
    pixels = torch.from_numpy((np.asarray(cat, dtype=np.float32) - 127) / 128)
    with torch.no_grad():
        scores = model(pixels.permute(2, 0, 1)[None])
    assert scores.shape == model(*model_file.example_inputs()).shape == (1, 1000)
    assert int(scores.argmax()) in range(281, 286), "ImageNet's five domestic cats"
