"""Calibration and evaluation sets: loaded once, checked, hashed, and kept as memory-mapped files.

Samples are read one at a time and appended to raw files in a cache folder, so that memory stays
bounded however many there are. A set's id is a hash over its samples, labels and preprocessing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import codec
from edgekit.data_images import LABELS_FILE, list_images, read_images
from edgekit.data_sources import Sample, call_factory, read_npz
from edgekit.data_store import INDEX, SampleSet, evict, open_samples, store
from edgekit.errors import DataError
from edgekit.files import sha256_file, staged_dir
from edgekit.types import Preprocess, TensorSpec

__all__ = ["SampleSet", "check_disjoint", "load_samples", "open_samples"]

_FORMAT = 1
"""Part of the cache key; raised whenever the same source would give other samples."""
_KEEP = 16
_MAX_CACHE_BYTES = 8 * 2**30
_IN_USE: weakref.WeakSet[SampleSet] = weakref.WeakSet()
"""What was loaded from a cache and is still held here: its files are opened again by their path."""


def load_samples(
    spec: str | Path,
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    *,
    limit: int | None = None,
    base: Path,
    cache: Path | None = None,
    advance: Callable[[], object] | None = None,
) -> SampleSet:
    """Loads a calibration or evaluation set.

    Args:
        spec: a folder of images (sub-folders or ``labels.csv`` give labels), an ``.npz`` file, or
            ``file.py:function``, which runs the user's code.
        inputs: the model's inputs, batch dimension 1 included.
        preprocess: how an image becomes an input; part of the id for other sources, too.
        limit: take at most so many samples. Of images without labels they are spread evenly over
            the sorted list, with labels they are balanced over the classes; other sources give
            their first ones.
        base: the folder that a relative ``spec`` starts from.
        cache: where to keep the tensors for the next time: the 16 latest sets of at most 8 GiB
            together, and in any case those whose objects are alive. Without it they live in a
            temporary folder for as long as the set object.
        advance: called after each sample that is read; a set from the cache is not read again. A
            function always is: nobody knows what else it reads. The same samples share a folder.

    Raises:
        DataError: nothing there; an image that cannot be decoded; a sample of wrong shape or
            dtype, with NaN or infinity, or constant. Names the sample.
    """
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} samples leaves none.")
    source = _resolve(str(spec), base, inputs, preprocess, limit)

    def fill(entry: Path) -> None:
        store(
            entry,
            source.read(),
            source=source.spec,
            class_names=source.class_names,
            inputs=inputs,
            preprocess=preprocess,
            limit=limit,
            advance=advance,
        )

    if cache is None:
        folder = Path(tempfile.mkdtemp(prefix="edgekit-samples-"))
        try:
            entry = folder / "set"
            fill(entry)
            loaded = open_samples(entry)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(loaded, shutil.rmtree, folder, ignore_errors=True)
        return loaded
    if source.key:
        loaded = _kept(cache / source.key, fill)
    else:
        fresh = cache / f"function-{secrets.token_hex(16)}"
        fill(fresh)
        loaded = _shared(fresh, inputs)
    os.utime(loaded.path / INDEX)
    _IN_USE.add(loaded)
    in_use = [held.path for held in _IN_USE]
    evict(cache, keep=_KEEP, max_bytes=_MAX_CACHE_BYTES, in_use=in_use)
    return loaded


def check_disjoint(a: SampleSet, b: SampleSet) -> None:
    """Makes sure that no sample is in both sets.

    Raises:
        DataError: names a sample that is, as each set calls it.
    """
    names = dict(zip(a.sample_hashes, a.names, strict=True))
    for digest, name in zip(b.sample_hashes, b.names, strict=True):
        if digest in names:
            raise DataError(
                f"The sets {a.source} and {b.source} share a sample:"
                f" {names[digest]} and {name} are the same.",
                remedy="Split the data by photo, so that nothing is judged by what tuned it.",
            )


@dataclass(frozen=True)
class _Source:
    """A resolved source: ``read`` gives the samples.

    ``key`` names its cache entry; it is empty where only the samples themselves tell.
    """

    spec: str
    key: str
    read: Callable[[], Generator[Sample, None, None]]
    class_names: tuple[str, ...] = ()


def _kept(entry: Path, fill: Callable[[Path], None]) -> SampleSet:
    """The set at ``entry``, which is filled if it is missing or damaged."""
    if not entry.is_dir():
        fill(entry)
    try:
        return open_samples(entry)
    except DataError:  # a damaged cache is no error of the user's
        fill(entry)
        return open_samples(entry)


def _shared(fresh: Path, inputs: tuple[TensorSpec, ...]) -> SampleSet:
    """The set at ``fresh``, moved to where the same samples lie after every run."""
    made = open_samples(fresh)
    # Names and source are in the messages, so a set that differs in them is another one.
    parts = [_FORMAT, list(inputs), made.source, list(made.names), made.id]

    def move(entry: Path) -> None:
        with staged_dir(entry) as staging:
            for file in fresh.iterdir():
                file.rename(staging / file.name)

    try:
        return _kept(fresh.with_name(_digest(parts)), move)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _resolve(
    spec: str,
    base: Path,
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    limit: int | None,
) -> _Source:
    file, colon, function = spec.rpartition(":")
    if colon and file.endswith(".py"):
        path = _absolute(file, base)
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
        return _Source(spec, "", lambda: call_factory(path, function, inputs))
    path = _absolute(spec, base)
    parts: list[Any] = [_FORMAT, list(inputs), preprocess, limit]
    if path.is_dir():
        from PIL import __version__ as pillow

        images, class_names = list_images(path)
        if limit is not None:
            labelled = images[0].label is not None
            n = min(limit, len(images))
            picked = range(n) if labelled else (i * len(images) // n for i in range(n))
            images = tuple(images[i] for i in picked)
        parts += [str(path), spec, pillow]
        parts.append([[image.name, _file_hash(image.path), image.label] for image in images])
        return _Source(
            spec, _digest(parts), lambda: read_images(images, preprocess, inputs), class_names
        )
    if path.is_file() and path.suffix == ".npz":
        parts += [str(path), spec, _file_hash(path)]
        return _Source(spec, _digest(parts), lambda: read_npz(path, inputs))
    raise DataError(
        f"{path}: {'not a kind of data that edgekit reads' if path.exists() else 'not found'}.",
        remedy=(
            f"Give a folder of images (with sub-folders or {LABELS_FILE} for labels), an .npz file,"
            " or file.py:function."
        ),
    )


def _absolute(path: str, base: Path) -> Path:
    return (base / Path(path).expanduser()).resolve()


def _file_hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}.") from e


def _digest(parts: object) -> str:
    return hashlib.sha256(codec.to_json(parts).encode()).hexdigest()
