"""Opens a TorchScript ``.pt`` file: runs it once on zeros and counts what PyTorch executes.

A TorchScript file names its operators but not their shapes, and int8 weights are opaque objects.
One run under a dispatch mode tells both exactly, control flow and all. The shapes of the inputs are
in edgekit's own files (:func:`input_files`) and in traced ones; for others (scripted, frozen) they
are guessed and a note says so.

Nothing of a file is loaded or run unless its text holds plain tensor operators only
(:mod:`edgekit.quantize.torchscript_code`): somebody else's program may do anything.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import MissingExtra, UsageError
from edgekit.quantize import torchscript_code
from edgekit.quantize.macs import size_note, summarise, unreadable
from edgekit.types import Inspection, TensorSpec

if TYPE_CHECKING:
    from edgekit.quantize.torch_counter import Counts

_LABEL = "a TorchScript program"
_INPUTS_FILE = "edgekit_inputs.json"
_GUESSES = ((1, 3, 224, 224), (1, 1, 224, 224), (1, 3, 32, 32), (1, 1, 28, 28))


def input_files(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """The ``_extra_files`` to save a program with, because freezing forgets the input shapes."""
    described = [{"shape": list(spec.shape), "dtype": spec.dtype} for spec in inputs]
    return {_INPUTS_FILE: json.dumps(described)}


def inspect(path: Path) -> Inspection:
    """Count the MACs of one inference.

    ``delegated_share`` is None: there is no delegate.

    Raises:
        UsageError: the file is damaged, or it holds weights but no program.
        MissingExtra: torch is not installed.
    """
    parts = archive_parts(path)
    notes = [size_note(path, parts)]
    try:
        code = torchscript_code.read(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise unreadable(path, _LABEL, error) from error
    if code.effects:
        notes.append(
            f"not run: its code has more than plain tensor operators ({', '.join(code.effects)})"
        )
        counts = None
    else:
        model, described = _load(path)
        counts = _run(model, _described_inputs(path, described), notes)
    if counts is None:
        return summarise(
            [],
            outside={},
            transposes=0,
            quantize_ops=0,
            weight_bytes=parts["tensors"],
            uncounted=code.products or ["operators of unknown shape"],
            notes=notes,
        )
    quantized = any(op.arithmetic in ("static", "dynamic") for op in counts.ops)
    return summarise(
        counts.ops,
        outside=counts.float_ops if quantized else {},
        transposes=counts.transposes,
        quantize_ops=counts.quantize_ops,
        weight_bytes=parts["tensors"],
        uncounted=counts.uncounted,
        notes=notes,
    )


def run_once(path: Path) -> Counts | None:
    """What one run on zeros executes; None where it cannot be run.

    Raises:
        UsageError: the file is damaged.
        MissingExtra: torch is not installed.
    """
    model, described = _load(path)
    return _run(model, _described_inputs(path, described), [])


def _load(path: Path) -> tuple[Any, str | bytes]:
    """The program, with the shapes of its inputs where it was traced, and edgekit's extra file."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "torchscript") from error

    failure: Exception | None = None
    extra: dict[str, str | bytes] = {_INPUTS_FILE: ""}
    # Restoring the shapes runs the program, which may fail where loading does not.
    for restore_shapes in (True, False):
        try:
            with warnings.catch_warnings():
                # The format is deprecated upstream; whoever inspects a file cannot change that.
                warnings.simplefilter("ignore")
                model = torch.jit.load(
                    str(path),
                    map_location="cpu",
                    _extra_files=extra,
                    _restore_shapes=restore_shapes,
                )
            return model, extra[_INPUTS_FILE]
        except (RuntimeError, ValueError) as error:
            failure = error
    assert failure is not None
    raise unreadable(path, _LABEL, _first_line(failure)) from failure


def _run(model: Any, described: list[Any], notes: list[str]) -> Counts | None:
    """Run once on zeros of the known or of guessed shapes; None where that fails."""
    import torch

    from edgekit.quantize.torch_counter import CountingMode

    stated = described or _traced_inputs(model)
    candidates = [stated] if stated else [[torch.zeros(shape)] for shape in _guesses(model)]
    reason = ""
    for inputs in candidates:
        mode = CountingMode()
        try:
            # Not inference_mode: there, composite operators arrive whole.
            with torch.no_grad(), mode, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(*inputs)
        # A foreign program may raise anything.
        except Exception as error:
            reason = reason or _first_line(error)
            continue
        engine = torch.backends.quantized.engine
        notes.append(f"run once by PyTorch {torch.__version__}, quantized engine {engine}")
        if not stated:
            shape = "x".join(str(n) for n in inputs[0].shape)
            notes.append(f"the file does not say its input; {shape} is assumed")
        return mode.counts
    notes.append(f"cannot be run on zeros here: {reason}")
    return None


def _guesses(model: Any) -> Iterator[tuple[int, ...]]:
    """Input shapes to try: what the first weight fits, then what is usual."""
    for weight in model.parameters():
        if weight.dim() == 4:
            yield (1, weight.shape[1], 224, 224)
        elif weight.dim() == 2:
            yield (1, weight.shape[1])
        break
    yield from _GUESSES


def _described_inputs(path: Path, text: str | bytes) -> list[Any]:
    """Zeros of the shapes in edgekit's extra file; empty where there is none."""
    import torch

    if not text:
        return []
    try:
        return [
            torch.zeros([int(n) for n in entry["shape"]], dtype=getattr(torch, entry["dtype"]))
            for entry in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise unreadable(path, _LABEL, f"its {_INPUTS_FILE} is invalid ({error})") from error


def _traced_inputs(model: Any) -> list[Any]:
    """Zeros of the shapes that the program was traced with; empty where they are not known."""
    import torch

    zeros = []
    for value in list(model.forward.graph.inputs())[1:]:  # the first one is the module
        kind = value.type()
        sizes = kind.sizes() if kind.kind() == "TensorType" else None
        if sizes is None:
            return []
        dtype = getattr(torch, str(kind.scalarType()).lower(), torch.float32)
        zeros.append(torch.zeros(sizes, dtype=dtype))
    return zeros


def archive_parts(path: Path) -> Mapping[str, int]:
    """Bytes that tensors, code and debug information take in the file, compressed or not."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(e.filename.split("/")[1:], e.compress_size) for e in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise unreadable(path, _LABEL, error) from error
    folders = {name[0] for name, _ in entries if name}
    if not {"code", "constants.pkl"} <= folders:
        if "data.pkl" in folders:
            raise UsageError(
                f"{path} holds weights saved by torch.save, not a TorchScript program.",
                remedy="Quantize the model itself: edgekit quantize file.py:factory "
                f"--weights {path.name}",
            )
        raise unreadable(path, _LABEL, "the archive holds no program")
    sizes: Counter[str] = Counter(tensors=0)
    for name, size in entries:
        if name and name[0] in ("data", "constants"):
            sizes["tensors"] += size
        elif name and name[0] == "code":
            sizes["debug" if name[-1].endswith(".debug_pkl") else "code"] += size
    return sizes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
