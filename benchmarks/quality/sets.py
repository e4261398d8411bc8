"""The three disjoint sets of a case, as .npz files: calibrate, choose, report.

A function gives the arrays of one set by name, one row per sample without the batch dimension;
``labels`` are there where the metric needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.quality.cases import EXAMPLE, Case

ROLES = ("calib", "choose", "report")
#: The example's folders; no photo is in two of them.
_FOLDERS = {"calib": "calib", "choose": "choose", "report": "test"}

Arrays = dict[str, np.ndarray]


def write_sets(case: Case, folder: Path) -> None:
    """Write ``calib.npz``, ``choose.npz`` and ``report.npz`` with the case's numbers of samples."""
    make = SETS[case.sets]
    for role, count in zip(ROLES, case.counts, strict=True):
        np.savez(folder / f"{role}.npz", **make(role, count))  # type: ignore[arg-type]


def photos(role: str, count: int) -> Arrays:
    """Crops of 224x224, ``(pixel - 127) / 128``, spread evenly over the set's photos."""
    stack = [np.asarray(picture, np.float32) for picture in _pictures(role, count)]
    return {"input": ((np.stack(stack) - 127) / 128).transpose(0, 3, 1, 2)}


def photos_at_320(role: str, count: int) -> Arrays:
    """The same, enlarged to 320x320, in 0..1."""
    stack = [
        np.asarray(picture.resize((320, 320), Image.Resampling.BICUBIC), np.float32)
        for picture in _pictures(role, count)
    ]
    return {"input": (np.stack(stack) / 255).transpose(0, 3, 1, 2)}


def digits(role: str, count: int) -> Arrays:
    """Handwritten digits of 64x64 with their labels."""
    from benchmarks.models.digits import samples

    images, labels = samples(role, limit=count)
    return {"input": images, "labels": labels}


def digits_at_224(role: str, count: int) -> Arrays:
    """The same, enlarged to 224x224, without labels."""
    from benchmarks.models.digits import samples

    return {"input": samples(role, 224, count)[0]}


def sentences(role: str, count: int) -> Arrays:
    """Tokens and masks, by the names of the model's inputs."""
    from benchmarks.models.minilm import samples

    return {name: stack[:, 0] for name, stack in samples(role, count).items()}


def noise(role: str, count: int) -> Arrays:
    """Standard-normal images of 32x32."""
    rng = np.random.default_rng(ROLES.index(role))
    return {"input": rng.normal(size=(count, 3, 32, 32)).astype(np.float32)}


SETS: dict[str, Callable[[str, int], Arrays]] = {
    made.__name__: made for made in (photos, photos_at_320, digits, digits_at_224, sentences, noise)
}


def _pictures(role: str, count: int) -> list[Image.Image]:
    paths = sorted((EXAMPLE / "photos" / _FOLDERS[role]).glob("*.png"))
    if len(paths) < count:
        raise FileNotFoundError(f"photos/{_FOLDERS[role]} is not made yet: run `make photos`")
    picked = [paths[i * len(paths) // count] for i in range(count)]
    return [Image.open(path).convert("RGB") for path in picked]
