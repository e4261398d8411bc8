"""Where in the model a converter fails: what to add to an error that it raised.

The exporter that failed is given parts of its program, first as float, then, where only the INT8
conversion fails, with the ranges and one sample of the values that flow into the part.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.data import load_samples, open_samples
from edgekit.errors import EdgekitError
from edgekit.quantize.base import ExportRequest
from edgekit.quantize.narrow import Culprit, smallest_failure
from edgekit.quantize.parts import example
from edgekit.quantize.prepare import as_module, re_export
from edgekit.quantize.ranges import load_ranges, save_ranges
from edgekit.quantize.recipes import FP32
from edgekit.types import TensorSpec

#: Anything that writes ``request.out``; what it returns is not looked at.
Export = Callable[[ExportRequest], Mapping[str, str]]


def where(request: ExportRequest, export: Export, error: BaseException) -> str:
    """A sentence that names the smallest part that fails, for the error's message; may be empty.

    Raises nothing: the search must not hide the error that it is about.
    """
    try:
        culprit = locate(request, export, error)
    except Exception:
        traceback.print_exc()
        return ""
    return f" The smallest part that fails by itself is {culprit}." if culprit else ""


def locate(request: ExportRequest, export: Export, error: BaseException) -> Culprit | None:
    """The smallest part of the request's program on which ``export`` raises such an error again.

    Returns:
        None where no part fails by itself, or none that is smaller than the program.
    """
    gm = as_module(torch.export.load(request.program))
    with tempfile.TemporaryDirectory(prefix="edgekit-locate-") as name:
        folder = Path(name)
        as_float = replace(request, recipe=FP32, ranges=None, calibration=None)
        if _fails(lambda: export(replace(as_float, out=folder / "whole")), error):
            request, values = as_float, {}
        else:
            values = _values(gm, request.calibration)
        tries = iter(range(10**6))

        def fails(part: fx.GraphModule) -> bool:
            inputs = example(part)
            if not inputs:
                return False
            work = folder / str(next(tries))
            work.mkdir()
            return _fails(lambda: export(_request(part, inputs, request, values, work)), error)

        return smallest_failure(gm, fails)


def _fails(call: Callable[[], Any], error: BaseException) -> bool:
    """Whether the call raises what ``error`` was raised from: the same class of root cause."""
    try:
        # Converters print what they like, and the log has it once already.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
    except EdgekitError:
        return False
    # Converters raise whatever they like.
    except Exception as raised:
        return type(root_cause(raised)) is type(root_cause(error))
    return False


def root_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _request(
    part: fx.GraphModule,
    inputs: tuple[torch.Tensor, ...],
    whole: ExportRequest,
    values: Mapping[str, np.ndarray],
    folder: Path,
) -> ExportRequest:
    """The whole program's request for a part of it; everything that goes by node names follows."""
    before = [node.name for node in _computed(part)]
    program = re_export(part, inputs)
    torch.export.save(program, folder / "program.pt2")
    names = dict(zip(before, (n.name for n in _computed(as_module(program))), strict=True))
    placed = [node.name for node in part.graph.nodes if node.op == "placeholder"]
    specs = tuple(
        TensorSpec(f"input_{i}", tuple(v.shape), str(v.dtype).removeprefix("torch."))
        for i, v in enumerate(inputs)
    )
    recipe = whole.recipe
    kept = tuple(names[name] for name in recipe.float_nodes if name in names)
    made = replace(
        whole,
        program=folder / "program.pt2",
        inputs=specs,
        out=folder / whole.out.name,
        recipe=replace(recipe, float_nodes=kept),
    )
    if whole.ranges is not None:
        ranges = load_ranges(whole.ranges)
        known = {names[name]: ranges[name] for name in names if name in ranges}
        save_ranges(folder / "ranges.json", known)
        made = replace(made, ranges=folder / "ranges.json")
    if whole.calibration is not None:
        arrays = {s.name: values[n][None] for s, n in zip(specs, placed, strict=True)}
        np.savez(folder / "sample.npz", **arrays)  # type: ignore[arg-type]
        found = load_samples(
            folder / "sample.npz", specs, None, base=folder, cache=folder / "samples"
        )
        made = replace(made, calibration=found.path)
    return made


def _computed(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op in ("placeholder", "call_function")]


def _values(gm: fx.GraphModule, calibration: Path | None) -> dict[str, np.ndarray]:
    """Every tensor of the program on the first calibration sample, by node."""
    if calibration is None:
        return {}
    found: dict[str, np.ndarray] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and n.op != "get_attr":
                found[n.name] = value.numpy()
            return value

    sample = [torch.from_numpy(np.array(stack[0])) for stack in open_samples(calibration).inputs]
    with torch.inference_mode():
        Recorder(gm).run(*sample)
    return found
