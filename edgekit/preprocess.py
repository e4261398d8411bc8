"""From an image to a model input, as torchvision does it for PIL images; numpy and Pillow only.

The steps are torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize``, rounding
included, so that a model sees at calibration and on the device what it saw in training. Like
torchvision's image folder, a photo's EXIF orientation is not applied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Preprocess

    Array = NDArray[Any]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def preprocess_image(image: Image.Image, how: Preprocess) -> Array:
    """Resizes, crops, scales and normalises one image.

    Args:
        image: any Pillow image of 8 bits per channel; an alpha channel is dropped.
        how: the steps.

    Returns:
        shape (1, C, H, W) or (1, H, W, C) by ``how.layout``, dtype ``how.dtype``; an integer dtype
        is rounded and clipped to its range.

    Raises:
        DataError: for images of more than 8 bits per channel, and for ``lanczos`` without
            antialiasing, which torchvision has not either.
    """
    pixels = _cropped(_resized(_in_color(image, how), how), how)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if how.color == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values = (_scaled(pixels.astype(np.float32), how.scale) - mean) / std
    if how.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(how.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values[None], dtype=dtype)


def output_shape(how: Preprocess) -> tuple[int, ...] | None:
    """The shape of every result, or None where it depends on the image."""
    if how.crop is not None:
        size = how.crop
    elif how.resize is not None and how.resize_mode == "stretch":
        size = (how.resize, how.resize)
    else:
        return None
    channels = 1 if how.color == "L" else 3
    return (1, channels, *size) if how.layout == "NCHW" else (1, *size, channels)


def _scaled(values: Array, scale: float) -> Array:
    # torchvision divides by 255; multiplying with 1/255 differs in the last bit.
    divisor = round(1 / scale)
    if divisor and scale == 1 / divisor:
        return values / np.float32(divisor)
    return values * np.float32(scale)


def _in_color(image: Image.Image, how: Preprocess) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"an image of mode {image.mode} has more than 8 bits per channel, which conversion to"
            f" {how.color} would clip",
            remedy="Convert it to 8 bits per channel first.",
        )
    return image.convert("L" if how.color == "L" else "RGB")


def _resized(image: Image.Image, how: Preprocess) -> Array:
    if how.resize is None:
        return np.asarray(image)
    width, height = image.size
    if how.resize_mode == "stretch":
        size = (how.resize, how.resize)
    elif width <= height:
        size = (how.resize, int(how.resize * height / width))
    else:
        size = (int(how.resize * width / height), how.resize)
    if size == image.size:
        return np.asarray(image)
    if how.antialias or how.interpolation == "nearest":
        # Pillow always antialiases; "nearest" has nothing to antialias.
        return np.asarray(image.resize(size, _RESAMPLING[how.interpolation]))
    if how.interpolation == "lanczos":
        raise DataError(
            "lanczos without antialiasing does not exist", remedy="Set antialias = true."
        )
    return _interpolated(np.asarray(image), size[1], size[0], how.interpolation == "bicubic")


def _interpolated(pixels: Array, height: int, width: int, cubic: bool) -> Array:
    """torch's ``interpolate(antialias=False, align_corners=False)`` of an 8-bit image."""
    values = pixels.astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        values = _along(values, axis, size, cubic)
    result: Array = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result


def _along(values: Array, axis: int, size: int, cubic: bool) -> Array:
    length = values.shape[axis]
    at = (np.arange(size) + 0.5) * (length / size) - 0.5
    if not cubic:
        at = np.maximum(at, 0)
    base = np.floor(at).astype(np.int64)
    t = at - base
    taps = {-1: _cubic(1 + t), 0: _cubic(t), 1: _cubic(1 - t), 2: _cubic(2 - t)}
    if not cubic:
        taps = {0: 1 - t, 1: t}
    shape = [1] * values.ndim
    shape[axis] = size
    result: Array = np.zeros((), np.float32)
    for offset, weight in taps.items():
        index = np.clip(base + offset, 0, length - 1)
        result = result + values.take(index, axis) * weight.astype(np.float32).reshape(shape)
    return result


def _cubic(x: Array) -> Array:
    """The cubic convolution kernel for 0 <= x <= 2 with torch's a = -0.75."""
    a = -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    result: Array = np.where(x <= 1, near, far)
    return result


def _cropped(pixels: Array, how: Preprocess) -> Array:
    """The centre crop; an image that is too small is padded with black, as torchvision does."""
    if how.crop is None:
        return pixels
    (height, width), (h, w) = how.crop, pixels.shape[:2]
    if width > w or height > h:
        left, top = max(0, width - w) // 2, max(0, height - h) // 2
        right, bottom = math.ceil(max(0, width - w) / 2), math.ceil(max(0, height - h) / 2)
        sides = [(top, bottom), (left, right)] + [(0, 0)] * (pixels.ndim - 2)
        pixels = np.pad(pixels, sides)
        h, w = pixels.shape[:2]
    # round() to even, as torchvision does.
    top, left = round((h - height) / 2), round((w - width) / 2)
    return pixels[top : top + height, left : left + width]
