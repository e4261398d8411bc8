"""Samples from a folder of images: which files, which labels, in which order."""

from __future__ import annotations

import csv
import itertools
import os
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.data_sources import Sample
from edgekit.errors import DataError
from edgekit.types import Preprocess, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LABELS_FILE = "labels.csv"
_PREPROCESS_REMEDY = "Describe it under [preprocess] in edgekit.toml."
_LABELS_REMEDY = f"The lines of {LABELS_FILE}: file,label first, then one for each image."


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of a folder; ``label`` is a class index or None."""

    path: Path
    name: str
    label: int | None


def list_images(folder: Path) -> tuple[tuple[ImageFile, ...], tuple[str, ...]]:
    """The images of a folder and the names of their classes, in a reproducible order.

    Labels come from ``labels.csv`` (columns ``file,label``) or else from sub-folders: their names
    in sorted order are the classes, unless all names are numbers, which then are the labels.
    Labelled images take turns by class, so that every beginning of the list is balanced.

    Raises:
        DataError: no image; images both beside and inside sub-folders; a wrong ``labels.csv``.
    """
    if (folder / LABELS_FILE).is_file():
        found, classes = _from_labels_file(folder)
    else:
        found, classes = _from_folders(folder)
    if not found:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder}: no image in this folder.", remedy=f"Known are: {known}")
    by_label: dict[int | None, list[ImageFile]] = defaultdict(list)
    for image in sorted(found, key=lambda image: image.name):
        by_label[image.label].append(image)
    groups = [by_label[label] for label in sorted(by_label, key=lambda label: label or 0)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return tuple(image for image in turns if image is not None), classes


def read_images(
    images: Iterable[ImageFile], preprocess: Preprocess | None, inputs: Sequence[TensorSpec]
) -> Generator[Sample, None, None]:
    """Decodes and preprocesses image files one by one."""
    from edgekit.preprocess import output_shape, preprocess_image

    if preprocess is None:
        raise DataError("Images need preprocessing.", remedy=_PREPROCESS_REMEDY)
    if len(inputs) != 1:
        raise DataError(
            f"An image folder feeds one input, but the model has {len(inputs)}.",
            remedy="Give an .npz file or a Python function instead.",
        )
    shape = output_shape(preprocess)
    if shape is not None and shape != inputs[0].shape:
        raise DataError(
            f"Preprocessing gives {shape}, but the model's input {inputs[0].name!r} is"
            f" {inputs[0].shape}.",
            remedy=_PREPROCESS_REMEDY,
        )
    for image in images:
        decoded = _decoded(image.path)
        try:
            array = preprocess_image(decoded, preprocess)
        except DataError as e:
            raise DataError(f"{image.path}: {e.message}.", remedy=e.remedy) from e
        yield Sample(str(image.path), (array,), image.label)


def _from_labels_file(folder: Path) -> tuple[list[ImageFile], tuple[str, ...]]:
    path = folder / LABELS_FILE
    try:
        labels = _labels(path)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read: {e}.", remedy=_LABELS_REMEDY) from e
    if unlabelled := sorted(set(_image_names(folder)) - set(labels)):
        raise DataError(f"{path}: {unlabelled[0]} has no label.", remedy=_LABELS_REMEDY)
    index, classes = _indices(set(labels.values()), path)
    return [ImageFile(folder / n, n, index[label]) for n, label in labels.items()], classes


def _labels(path: Path) -> dict[str, str]:
    """File name -> label, as they stand in ``labels.csv``."""
    labels: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.DictReader(f)
        if reader.fieldnames is None or not {"file", "label"} <= set(reader.fieldnames):
            raise DataError(f"{path}: the first line is not file,label.", remedy=_LABELS_REMEDY)
        for row in reader:
            name, label = row["file"], row["label"]
            if not name or not label:
                raise DataError(
                    f"{path}, line {reader.line_num}: a file or label is missing.",
                    remedy=_LABELS_REMEDY,
                )
            if name in labels:
                raise DataError(
                    f"{path}, line {reader.line_num}: {name} occurs twice.", remedy=_LABELS_REMEDY
                )
            if not (path.parent / name).is_file():
                raise DataError(
                    f"{path}, line {reader.line_num}: there is no {name}.", remedy=_LABELS_REMEDY
                )
            labels[name] = label
    return labels


def _from_folders(folder: Path) -> tuple[list[ImageFile], tuple[str, ...]]:
    loose = [path.name for path in folder.iterdir() if _is_image(path)]
    inside: dict[str, list[str]] = {}
    for child in folder.iterdir():
        if child.is_dir() and (names := [f"{child.name}/{n}" for n in _image_names(child)]):
            inside[child.name] = names
    if loose and inside:
        raise DataError(
            f"{folder}: has images both beside and inside sub-folders ({sorted(loose)[0]},"
            f" {min(inside)}/), so that it is unclear whether the sub-folders are classes.",
            remedy="Put every image into a sub-folder of its class, or none.",
        )
    if loose:
        return [ImageFile(folder / name, name, None) for name in loose], ()
    index, classes = _indices(set(inside), folder)
    found = [
        ImageFile(folder / name, name, index[label]) for label in inside for name in inside[label]
    ]
    return found, classes


def _indices(names: set[str], where: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    numbers = {name for name in names if name.isascii() and name.isdigit()}
    if numbers == names:
        return {name: int(name) for name in names}, ()
    if numbers:
        raise DataError(
            f"{where}: the labels mix numbers and names ({min(numbers)}, {min(names - numbers)}).",
            remedy="Use class indices throughout, or class names throughout.",
        )
    classes = tuple(sorted(names))
    return {name: i for i, name in enumerate(classes)}, classes


def _image_names(folder: Path) -> list[str]:
    """Relative paths of the images below a folder, with forward slashes."""
    names = []
    for parent, _, files in os.walk(folder):
        paths = (Path(parent, name) for name in files)
        names += [path.relative_to(folder).as_posix() for path in paths if _is_image(path)]
    return names


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _decoded(path: Path) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.copy()
    except Exception as e:  # Pillow's plugins raise whatever a damaged file makes them stumble on
        raise DataError(
            f"{path}: cannot be decoded as an image: {e}.", remedy="Replace it, or leave it out."
        ) from e
