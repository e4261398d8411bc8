"""Samples from an ``.npz`` file or a Python function (images: :mod:`edgekit.data_images`).

Each source is an iterator that holds one sample at a time. What a sample must be like is checked
in :mod:`edgekit.data_store`, alike for all sources.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import sys
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import DataError
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# NotImplementedError and RuntimeError: a compression method that Python lacks, encryption.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_ALONE = "Call the function in a Python session of your own to see where."


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as its source gives it: ``arrays`` in the order of the model's inputs."""

    name: str
    arrays: tuple[Array, ...]
    label: int | None


def read_npz(path: Path, inputs: Sequence[TensorSpec]) -> Generator[Sample, None, None]:
    """Reads arrays that are named as the inputs (or the only array), one sample at a time.

    Arrays have shape (n, ...) with or without the model's batch dimension of 1; ``labels`` is an
    optional integer array of shape (n,).
    """
    try:
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            data = names - {"labels"}
            wanted = [spec.name for spec in inputs]
            if data != set(wanted):
                if len(data) != 1 or len(wanted) != 1:
                    raise DataError(
                        f"{path}: has the arrays {sorted(data)}, but the inputs are {wanted}.",
                        remedy="Name the arrays as the inputs of the model.",
                    )
                wanted = sorted(data)
            readers = [_rows(archive, name, path, stack) for name in wanted]
            labels = _rows(archive, "labels", path, stack) if "labels" in names else None
            for i, arrays in enumerate(_together([*readers, *([labels] if labels else [])], path)):
                name = f"{path}[{i}]"
                label = None if labels is None else _label(arrays.pop(), name)
                yield Sample(name, tuple(arrays), label)
    except _UNREADABLE as e:
        raise DataError(
            f"{path}: not a readable .npz file: {e}.",
            remedy="Write it with numpy.savez(path, input=samples), samples along the first axis.",
        ) from e


def call_factory(
    path: Path, function: str, inputs: Sequence[TensorSpec]
) -> Generator[Sample, None, None]:
    """Runs ``function`` of a Python file; each item it yields is one sample.

    A sample is an array (or anything numpy can read, such as a CPU tensor), a tuple of arrays in
    the order of the inputs, or a mapping from input names to arrays. Labels come as
    ``(sample, label)`` or under the key ``"label"``.
    """
    where = f"{path}:{function}"
    with _folder_on_path(path.parent):
        factory = _function(path, function)
        try:
            items = iter(factory())
        except Exception as e:
            raise DataError(f"{where} raised {type(e).__name__}: {e}.", remedy=_ALONE) from e
        for i in itertools.count():
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as e:
                raise DataError(
                    f"{where} raised {type(e).__name__} at sample {i}: {e}.", remedy=_ALONE
                ) from e
            yield _as_sample(item, inputs, f"{where}[{i}]")


def _rows(
    archive: zipfile.ZipFile, name: str, path: Path, stack: contextlib.ExitStack
) -> tuple[int, Iterator[Array]]:
    """The length of an array in an ``.npz`` and an iterator over its first axis."""
    file = stack.enter_context(archive.open(f"{name}.npy"))
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject or not shape:
        raise DataError(
            f"{path}: {name} has dtype {dtype} and shape {shape}; it needs samples.",
            remedy="Stack numbers, one sample after the other, along a first axis.",
        )
    if fortran:  # the samples lie scattered, so that there is nothing to stream
        with np.load(path, allow_pickle=False) as arrays:
            return shape[0], iter(arrays[name])
    return shape[0], _stream(file, shape, dtype)


def _stream(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Array]:
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    for _ in range(shape[0]):
        if len(data := file.read(size)) != size:
            raise EOFError("it ends early")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


def _together(readers: Sequence[tuple[int, Iterator[Array]]], path: Path) -> Iterator[list[Array]]:
    lengths = [n for n, _ in readers]
    if len(set(lengths)) != 1:
        raise DataError(
            f"{path}: the arrays have different lengths: {lengths}.",
            remedy="Give each array one row per sample.",
        )
    for rows in zip(*(rows for _, rows in readers), strict=True):
        yield list(rows)


@contextlib.contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    """Lets the user's file import its neighbours, and only while it runs."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _function(path: Path, function: str) -> Callable[[], Iterable[Any]]:
    # A private name: the user's file may be called quantize.py, or like a module it imports.
    name = f"_edgekit_user_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file.", remedy="Give file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise DataError(
            f"{path}: importing it raised {type(e).__name__}: {e}.", remedy=_ALONE
        ) from e
    found: Callable[[], Iterable[Any]] | None = getattr(module, function, None)
    if not callable(found):
        raise DataError(f"{path}: has no function {function}.", remedy="Give file.py:function.")
    return found


def _as_sample(item: Any, inputs: Sequence[TensorSpec], name: str) -> Sample:
    label: int | None = None
    if isinstance(item, Mapping):
        item = dict(item)
        if "label" in item and "label" not in {spec.name for spec in inputs}:
            label = _label(item.pop("label"), name)
        if set(item) != {spec.name for spec in inputs}:
            raise DataError(
                f"{name}: has the entries {sorted(map(str, item))}, but the inputs are"
                f" {[spec.name for spec in inputs]}.",
                remedy="Name the entries as the inputs of the model.",
            )
        parts = [item[spec.name] for spec in inputs]
    elif isinstance(item, (tuple, list)):
        parts = list(item)
        # No input is a scalar, because all have a batch dimension: so this is a label.
        if len(parts) == 2 and _as_array(parts[1], name).ndim == 0:
            label = _label(parts[1], name)
            parts = list(parts[0]) if isinstance(parts[0], (tuple, list)) else [parts[0]]
    else:
        parts = [item]
    return Sample(name, tuple(_as_array(part, name) for part in parts), label)


def _as_array(value: Any, name: str) -> Array:
    try:
        if hasattr(value, "detach"):  # a torch tensor that requires gradients
            value = value.detach()
        return np.asarray(value)
    except Exception as e:
        raise DataError(
            f"{name}: {type(value).__name__} is not an array: {e}.",
            remedy="Give numpy arrays or torch tensors.",
        ) from e


def _label(value: Any, name: str) -> int:
    array = _as_array(value, name)
    if array.ndim != 0 or array.dtype.kind not in "iu" or not 0 <= int(array) < 2**53:
        raise DataError(
            f"{name}: {value!r:.80} is not a class index.",
            remedy="Give whole numbers from 0 on, as the model's outputs are ordered.",
        )
    return int(array)
