"""Proof that a changed program computes what the one before computed, and where it does not.

What preparation and rewrites may change is the rounding of float32 sums, which is far below 100 dB
for most networks. Deep ones amplify it until it is more; there, both are run in float64, where
sums are exact enough that only a real difference is left.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit import quality
from edgekit.errors import SourceError
from edgekit.quantize.capture import Capture
from edgekit.quantize.origins import module_of, source_of
from edgekit.quantize.prepare import export_program, flatten

#: What a change may cost.
MIN_SQNR_DB = 100.0
#: Tensors on the way that agree so well are the same one.
_SAME_DB = 60.0

Sample = tuple[torch.Tensor, ...]
Outputs = list[np.ndarray[Any, Any]]


def prove_equal(
    reference: torch.nn.Module,
    changed: fx.GraphModule,
    samples: Sequence[Sample],
    names: Sequence[str],
    change: str,
) -> float:
    """SQNR in dB of the changed program against the reference, the worst output tensor's.

    In float32, or where that is below :data:`MIN_SQNR_DB`, in float64. Both modules are float32
    ones, and are so afterwards.

    Args:
        reference: a model or program in eval mode.
        samples: inputs with batch dimension, at least one.
        names: of the outputs.
        change: what made the one into the other, for the error.

    Raises:
        SourceError: they do not compute the same; names the output and the node where it begins.
    """
    sqnr_db, name = _worst(_run(reference, samples), _run(changed, samples), names)
    if sqnr_db >= MIN_SQNR_DB:
        return sqnr_db
    try:
        wanted, given = _in_float64(reference, samples), _in_float64(changed, samples)
    except Exception:
        # It casts to float32 on its way, or asserts that it is given that: float32 has to decide.
        traceback.print_exc()
    else:
        precise_db, precise_name = _worst(wanted, given, names)
        if precise_db >= MIN_SQNR_DB:
            return precise_db
        sqnr_db, name = max((sqnr_db, name), (precise_db, precise_name))
    raise SourceError(
        f"The program does not compute the same after {change} as before: output {name!r} agrees "
        f"to {sqnr_db:.1f} dB only (at least {MIN_SQNR_DB:.0f} needed)."
        f"{_where(reference, changed, samples[0])}",
        remedy="Is the model deterministic in eval mode? If so, this is a bug in edgekit.",
    )


def _worst(wanted: Outputs, given: Outputs, names: Sequence[str]) -> tuple[float, str]:
    return min(
        (quality.sqnr_db(a, b), name) for a, b, name in zip(wanted, given, names, strict=True)
    )


def _run(module: torch.nn.Module, samples: Sequence[Sample]) -> Outputs:
    """The outputs, each with all samples stacked along a new first axis."""
    with torch.inference_mode():
        # Models may write to their inputs.
        given = (tuple(value.clone() for value in sample) for sample in samples)
        rows = [[value.numpy() for value in flatten(module(*sample))] for sample in given]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _in_float64(module: torch.nn.Module, samples: Sequence[Sample]) -> Outputs:
    wide = [tuple(v.double() if v.is_floating_point() else v for v in one) for one in samples]
    try:
        return _run(module.double(), wide)
    finally:
        module.float()  # which gives back the very same numbers


def _where(reference: torch.nn.Module, changed: fx.GraphModule, sample: Sample) -> str:
    """A sentence that names the first node of the reference from which on nothing agrees.

    Raises nothing: the search must not hide the error that it is about.
    """
    try:
        node = first_difference(reference, changed, sample)
    except Exception:
        traceback.print_exc()
        return ""
    if node is None:
        return ""
    path, _ = module_of(node)
    place = ", ".join(filter(None, (path, source_of(node))))
    return f" The difference begins at node {node.name!r}{f' ({place})' if place else ''}."


def first_difference(
    reference: torch.nn.Module, changed: fx.GraphModule, sample: Sample
) -> fx.Node | None:
    """The first node of the reference whose value, and all that is made of it, ``changed`` lacks.

    A node that was merged with a later one is none: the later one's value is there.
    """
    program = reference
    if not isinstance(program, fx.GraphModule):
        exported = export_program(program, sample).module(check_guards=False)
        assert isinstance(exported, fx.GraphModule)
        program = exported
    there: defaultdict[tuple[int, ...], list[np.ndarray[Any, Any]]] = defaultdict(list)
    for value in _values(changed, sample).values():
        there[value.shape].append(value)
    lacking: list[fx.Node] = []
    found: set[fx.Node] = set()
    values = _values(program, sample)
    for node in reversed(program.graph.nodes):
        if found & node.users.keys():
            found.add(node)
        elif node in values:
            wanted = values[node]
            same = any(_same(wanted, other) for other in there[wanted.shape])
            found.add(node) if same else lacking.append(node)
    return lacking[-1] if lacking else None


def _same(value: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if value.size == 0 or np.isnan(value).any():
        return np.array_equal(value, other, equal_nan=True)
    return quality.sqnr_db(value, other) >= _SAME_DB


def _values(gm: fx.GraphModule, sample: Sample) -> dict[fx.Node, np.ndarray[Any, Any]]:
    """Every float tensor that an operator of the program gives."""
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    capture = Capture(gm, {node.name for node in nodes})
    capture.run_sample(sample)
    values = ((node, capture.values.get(node.name)) for node in nodes)
    return {node: v for node, v in values if v is not None and v.dtype.kind == "f"}
