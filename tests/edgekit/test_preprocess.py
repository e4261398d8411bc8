"""Preprocessing against torchvision itself, on every kind of image and every setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit.errors import DataError
from edgekit.preprocess import output_shape, preprocess_image
from edgekit.types import Preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes with an edge: what resizing by a wrong grid would shift."""
    y, x = np.mgrid[:height, :width]
    periods = np.array([2.0, 3.0, 5.0])
    wave = 127 + 90 * np.sin(x / 3)[..., None] * np.cos(y[..., None] / periods)
    wave[height // 3 :, width // 4 : width // 2] = (250, 5, 120)
    return Image.fromarray(wave.astype(np.uint8)).convert(mode)


def by_torchvision(image: Image.Image, how: Preprocess) -> Any:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as f

    image = image.convert("L" if how.color == "L" else "RGB")
    mode = InterpolationMode(how.interpolation)
    if how.resize is not None:
        size = [how.resize] * (1 if how.resize_mode == "shorter" else 2)
        image = f.resize(image, size, mode, antialias=how.antialias)
    if how.crop is not None:
        image = f.center_crop(image, list(how.crop))
    tensor = f.to_tensor(image)
    if how.color == "BGR":
        tensor = tensor.flip(0)
    tensor = f.normalize(tensor, how.mean, how.std).numpy()
    return tensor[None] if how.layout == "NCHW" else tensor.transpose(1, 2, 0)[None]


@pytest.mark.parametrize("size", [(64, 64), (97, 61), (61, 97), (31, 40), (224, 33)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize_mode", ["shorter", "stretch"])
def test_resize_and_crop_are_torchvisions_to_the_bit(
    size: tuple[int, int], interpolation: Any, resize_mode: Any
) -> None:
    how = Preprocess(resize=36, resize_mode=resize_mode, interpolation=interpolation, crop=(32, 30))
    ours = preprocess_image(photo(*size), how)
    assert ours.dtype == np.float32
    assert ours.shape == output_shape(how) == (1, 3, 32, 30)
    np.testing.assert_array_equal(ours, by_torchvision(photo(*size), how))


def test_normalisation_is_torchvisions_to_the_bit() -> None:
    how = Preprocess(resize=36, crop=(32, 32), **IMAGENET)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        preprocess_image(photo(50, 40), how), by_torchvision(photo(50, 40), how)
    )


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_every_crop_is_torchvisions_padding_included(
    width: int, height: int, crop: tuple[int, int]
) -> None:
    how = Preprocess(crop=crop)
    image = photo(width, height)
    np.testing.assert_array_equal(preprocess_image(image, how), by_torchvision(image, how))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(64, 64), (97, 61), (20, 30)])
def test_resizing_without_antialiasing_is_that_of_torch_tensors(
    size: tuple[int, int], interpolation: Any
) -> None:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as f

    image = photo(*size)
    how = Preprocess(resize=33, interpolation=interpolation, antialias=False)
    tensor = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    theirs = f.resize(tensor, [33], InterpolationMode(interpolation), antialias=False).numpy()
    ours = np.rint(preprocess_image(image, how) * 255)[0]
    # Both round to 8 bits; a tie may fall either way.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.001
    if min(size) < 33:
        return  # nothing to antialias in an enlargement
    smooth = preprocess_image(image, Preprocess(resize=33, interpolation=interpolation))
    assert np.abs(np.rint(smooth * 255)[0] - theirs).max() > 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_colors_and_layouts(mode: str, color: Any, layout: Any) -> None:
    n = 1 if color == "L" else 3
    how = Preprocess(
        resize=16,
        crop=(12, 14),
        color=color,
        layout=layout,
        mean=(0.1, 0.2, 0.3)[:n],
        std=(0.5, 0.6, 0.7)[:n],
    )
    ours = preprocess_image(photo(20, 24, mode), how)
    assert ours.shape == output_shape(how)
    np.testing.assert_array_equal(ours, by_torchvision(photo(20, 24, mode), how))


def test_integer_dtypes_are_rounded_and_clipped() -> None:
    image = Image.fromarray(np.array([[[0, 100, 255]]], np.uint8))
    raw = preprocess_image(image, Preprocess(scale=1.0, dtype="uint8"))
    assert raw.ravel().tolist() == [0, 100, 255]
    shifted = preprocess_image(image, Preprocess(scale=1.0, mean=(128.0,) * 3, dtype="int8"))
    assert shifted.ravel().tolist() == [-128, -28, 127]
    assert shifted.dtype == np.int8
    high = preprocess_image(image, Preprocess(scale=2.0, dtype="uint8"))
    assert high.ravel().tolist() == [0, 200, 255]


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_deep_images_are_refused_instead_of_clipped(mode: str) -> None:
    with pytest.raises(DataError, match="more than 8 bits") as e:
        preprocess_image(Image.new(mode, (8, 8)), Preprocess())
    assert e.value.remedy


def test_lanczos_without_antialiasing_is_refused() -> None:
    how = Preprocess(resize=4, interpolation="lanczos", antialias=False)
    with pytest.raises(DataError, match="lanczos"):
        preprocess_image(photo(8, 8), how)


def test_the_output_shape_is_unknown_without_crop_or_stretch() -> None:
    assert output_shape(Preprocess(resize=8)) is None
    assert output_shape(Preprocess(resize=8, resize_mode="stretch", layout="NHWC")) == (1, 8, 8, 3)
