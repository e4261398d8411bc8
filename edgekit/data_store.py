"""Sample sets on disk: each sample is checked, hashed and appended to raw files, then forgotten.

A folder holds ``set.json`` and one ``input<i>.raw`` per model input (little-endian, C order).
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import codec
from edgekit.data_sources import Sample
from edgekit.errors import DataError
from edgekit.files import staged_dir
from edgekit.types import Preprocess, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

INDEX = "set.json"


@dataclass(frozen=True, eq=False)
class SampleSet:
    """A checked set of samples.

    Attributes:
        inputs: for each model input an array of shape (n, *shape of the input with batch 1), of
            the input's dtype; memory-mapped and read-only.
        labels: class indices, int64 of shape (n,), or None.
        id: SHA-256 over samples, labels and preprocessing, as hex digits.
        sample_hashes: SHA-256 of each sample's tensors.
        names: where each sample comes from, for messages.
        class_names: names by class index where the source has them, else empty.
        n: the number of samples.
        path: the folder with the files, for :func:`open_samples` in another process.
        source: what was given to :func:`load_samples`.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    id: str
    sample_hashes: tuple[str, ...]
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    n: int
    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class _Index:
    """``set.json`` in a cache entry."""

    source: str
    id: str
    specs: tuple[TensorSpec, ...]
    sample_hashes: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]


def open_samples(path: Path) -> SampleSet:
    """Opens a set that :func:`load_samples` stored, e.g. in a worker process, from its ``path``.

    Raises:
        DataError: where the folder is missing or damaged.
    """
    index_file = path / INDEX
    try:
        index = codec.from_json(
            _Index, index_file.read_bytes(), where=str(index_file), error=DataError
        )
    except OSError as e:
        raise DataError(
            f"{index_file}: cannot be read: {e.strerror}.", remedy="Remove the cache folder."
        ) from e
    n, arrays = len(index.sample_hashes), []
    for i, spec in enumerate(index.specs):
        file = path / f"input{i}.raw"
        if not file.is_file() or file.stat().st_size != n * spec.nbytes:
            raise DataError(f"{file}: is missing or damaged.", remedy="Remove the cache folder.")
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        arrays.append(np.memmap(file, dtype, mode="r", shape=(n, *spec.shape)))
    labels = None if index.labels is None else np.array(index.labels, np.int64)
    return SampleSet(
        inputs=tuple(arrays),
        labels=labels,
        id=index.id,
        sample_hashes=index.sample_hashes,
        names=index.names,
        class_names=index.class_names,
        n=n,
        path=path,
        source=index.source,
    )


def store(
    entry: Path,
    samples: Generator[Sample, None, None],
    *,
    source: str,
    class_names: tuple[str, ...],
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    limit: int | None,
    advance: Callable[[], object] | None,
) -> None:
    """Checks samples one by one and writes them to the folder ``entry``, all of them or none."""
    hashes: list[str] = []
    names: list[str] = []
    labels: list[int] = []
    with staged_dir(entry) as staging, ExitStack() as stack:
        files = [
            stack.enter_context((staging / f"input{i}.raw").open("wb")) for i in range(len(inputs))
        ]
        stack.enter_context(closing(samples))
        for sample in itertools.islice(samples, limit):
            arrays = _checked(sample, inputs)
            digest = hashlib.sha256()
            for file, array in zip(files, arrays, strict=True):
                digest.update(f"{array.dtype.name} {array.shape} ".encode())
                digest.update(array.data)
                file.write(array.data)
            hashes.append(digest.hexdigest())
            names.append(sample.name)
            if sample.label is not None:
                labels.append(sample.label)
            if len(labels) not in (0, len(names)):
                raise DataError(
                    f"{sample.name}: some samples have labels and some have none.",
                    remedy="Give every sample a label, or none.",
                )
            if advance is not None:
                advance()
        if not names:
            raise DataError(
                f"{source}: has no samples.", remedy="Give real ones; a few dozen are enough."
            )
        index = _Index(
            source=source,
            id=hashlib.sha256(codec.to_json([preprocess, hashes, labels]).encode()).hexdigest(),
            specs=inputs,
            sample_hashes=tuple(hashes),
            names=tuple(names),
            labels=tuple(labels) or None,
            class_names=class_names,
        )
        (staging / INDEX).write_text(codec.to_json(index), encoding="utf-8")


def _checked(sample: Sample, inputs: Sequence[TensorSpec]) -> list[Array]:
    """The tensors of a sample in the shapes and dtypes of the inputs, little-endian."""
    if len(sample.arrays) != len(inputs):
        raise DataError(
            f"{sample.name}: has {len(sample.arrays)} arrays, but the model has {len(inputs)}"
            " inputs.",
            remedy="Give one array per input of the model, in their order.",
        )
    arrays = [
        _converted(array, spec, sample.name)
        for array, spec in zip(sample.arrays, inputs, strict=True)
    ]
    real = [array for array in arrays if array.dtype.kind == "f"]
    if any(not np.isfinite(array).all() for array in real):
        raise DataError(
            f"{sample.name}: contains NaN or infinity.",
            remedy="Leave this sample out, or mend what makes it.",
        )
    # Integers are left out: a mask of ones or a constant token is ordinary.
    wide = [array for array in real if array.size > 1]
    if wide and all(array.min() == array.max() for array in wide):
        raise DataError(
            f"{sample.name}: all values are the same ({wide[0].flat[0]}).",
            remedy="Leave this sample out: no real input looks like that.",
        )
    return arrays


def _converted(array: Array, spec: TensorSpec, name: str) -> Array:
    one = spec.shape[1:] if spec.shape[:1] == (1,) else spec.shape
    if array.shape not in (spec.shape, one):
        remedy = "Resize or transpose it; a batch dimension of 1 may be left out."
        if array.shape in (spec.shape[1:], (1, *spec.shape[1:])):
            remedy = (
                f"The model takes {spec.shape[0]} at once: give samples of so many each, or a "
                f"model with a batch of 1 (--input 1x{'x'.join(map(str, spec.shape[1:]))})."
            )
        raise DataError(
            f"{name}: has shape {array.shape}, but the input {spec.name!r} is {spec.shape}.",
            remedy=remedy,
        )
    dtype = np.dtype(spec.dtype)
    kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b"}
    if array.dtype.kind not in kinds[dtype.kind]:
        raise DataError(
            f"{name}: has dtype {array.dtype}, but the input {spec.name!r} is {spec.dtype}.",
            remedy="Convert it, normalised as the model wants it.",
        )
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DataError(
                f"{name}: has values beyond {spec.dtype}.",
                remedy="Give what the model is fed in use: the right indices, the right type.",
            )
    with np.errstate(over="ignore"):  # the check for infinity follows
        return np.ascontiguousarray(array.reshape(spec.shape), dtype.newbyteorder("<"))


def evict(cache: Path, *, keep: int, max_bytes: int, in_use: Collection[Path] = ()) -> None:
    """Removes old entries, so that at most ``keep`` of ``max_bytes`` together are left.

    Those ``in_use`` stay in any case, and count. Mapped files live on until they are closed.
    """
    entries = []
    for index in cache.glob(f"*/{INDEX}"):
        entry = index.parent
        try:
            size = sum(file.stat().st_size for file in entry.iterdir())
            entries.append((entry in in_use, index.stat().st_mtime_ns, entry, size))
        except FileNotFoundError:  # another process evicted it
            continue
    count = total = 0
    for used, _, entry, size in sorted(entries, reverse=True):
        count, total = count + 1, total + size
        if not used and (count > keep or total > max_bytes):
            shutil.rmtree(entry, ignore_errors=True)
            count, total = count - 1, total - size
