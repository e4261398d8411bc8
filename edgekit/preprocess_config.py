"""The [preprocess] table: presets of well-known pipelines, and its keys one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from edgekit.toml_reader import Section
from edgekit.types import Preprocess

PRESETS: Mapping[str, Preprocess] = {
    # torchvision's and timm's usual evaluation pipeline.
    "imagenet": Preprocess(
        resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    # Inputs in -1..1: TensorFlow's MobileNet and Inception family.
    "inception": Preprocess(resize=256, crop=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    # Inputs in 0..1, nothing else.
    "unit": Preprocess(resize=256, crop=(224, 224)),
}


def read_preprocess(table: Section) -> Preprocess:
    """Build a Preprocess from its table; ``preset`` gives what the other keys leave out."""
    preset = table.choice("preset", "", PRESETS)
    base = PRESETS[preset] if preset else Preprocess()
    color = table.choice("color", base.color, ("RGB", "BGR", "L"))
    channels = 1 if color == "L" else 3
    if color == "L" and base.color != "L":
        base = replace(base, mean=base.mean[:1], std=base.std[:1])
    mode = table.choice("resize_mode", base.resize_mode, ("shorter", "stretch"))
    kernels = ("nearest", "bilinear", "bicubic", "lanczos")
    interpolation = table.choice("interpolation", base.interpolation, kernels)
    layout = table.choice("layout", base.layout, ("NCHW", "NHWC"))
    return Preprocess(
        resize=table.integer("resize", 0, 1, 16_384) or base.resize,
        resize_mode=cast(Literal["shorter", "stretch"], mode),
        interpolation=cast(Literal["nearest", "bilinear", "bicubic", "lanczos"], interpolation),
        antialias=table.flag("antialias", base.antialias),
        crop=_crop(table, base.crop),
        scale=_scale(table, base.scale),
        mean=_per_channel(table, "mean", base.mean, channels),
        std=_per_channel(table, "std", base.std, channels),
        color=cast(Literal["RGB", "BGR", "L"], color),
        layout=cast(Literal["NCHW", "NHWC"], layout),
        dtype=table.choice("dtype", base.dtype, ("float32", "uint8")),
    )


def _crop(table: Section, default: tuple[int, int] | None) -> tuple[int, int] | None:
    value = table.raw("crop")
    if value is None:
        return default
    sides = [value, value] if isinstance(value, int) else value
    if (
        isinstance(sides, list)
        and len(sides) == 2
        and all(type(side) is int and 1 <= side <= 16_384 for side in sides)
    ):
        return (sides[0], sides[1])
    table.complain("crop", f"must be [height, width] in pixels, not {value!r}.")
    return default


def _scale(table: Section, default: float) -> float:
    value = table.number("scale", default, -1e6, 1e6)
    if value == 0:
        table.complain("scale", "must not be 0.")
    return value


def _per_channel(
    table: Section, key: str, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    value: Any = table.raw(key)
    if value is None:
        return default
    if (
        not isinstance(value, list)
        or len(value) != channels
        or not all(type(x) in (int, float) and math.isfinite(x) for x in value)
    ):
        table.complain(key, f"must be {channels} numbers, one per channel, not {value!r}.")
        return default
    if key == "std" and 0 in value:
        table.complain(key, "must not contain 0: pixels are divided by it.")
        return default
    return tuple(float(x) for x in value)
