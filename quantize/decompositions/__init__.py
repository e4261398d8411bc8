"""Operators that a runtime cannot convert, taken apart into ones that it can.

A decomposition is one file with ``TARGETS`` (the overloads it is for) and ``expand(node, emit)``:
it emits the operators that come first and returns the call that takes the node's place, or None
where this node is not for it. One line below registers it with the runtimes that need it. All are
exact up to float rounding (> 100 dB); tests hold them to it.

Nodes keep their names, so the ranges of the calibration, which ran the program as it was, still
apply to what they compute.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from edgekit.quantize.base import ExportRequest
from edgekit.quantize.check import Verdict, worst
from edgekit.quantize.dead_channels import raise_dead_channels
from edgekit.quantize.ranges import load_ranges

#: A call: operator, positional and keyword arguments.
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
#: Adds an operator before the node that is taken apart, and returns its node.
Emit = Callable[..., fx.Node]

#: Whether a placeholder is a weight or another constant, in the ``meta`` of placeholders.
CONSTANT = "edgekit_constant"

#: Modules of this package, with the runtimes that they are for.
DECOMPOSITIONS: dict[str, tuple[str, ...]] = {
    "adaptive_max_pool": ("executorch", "onnx", "tflite"),
    "attention_rank": ("onnx",),
    "constant_first": ("tflite",),
    "output_padding": ("tflite",),
    "planar_average": ("executorch", "tflite"),
}


@dataclass(frozen=True)
class Decomposed:
    """What was taken apart: by node, the decomposition's name and the nodes there are instead."""

    parts: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def verdicts(self, found: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Verdicts on the nodes that there were before: the worst of their parts'."""
        inner = {name for _, names in self.parts.values() for name in names}
        merged = {name: verdict for name, verdict in found.items() if name not in inner}
        for node, (decomposition, names) in self.parts.items():
            verdict = worst([found[name] for name in names])
            merged[node] = replace(verdict, rewritten=decomposition)
        return merged


def load_program(request: ExportRequest) -> torch.export.ExportedProgram:
    """The program of a request, as its runtime can convert it and hold it.

    What it cannot convert is taken apart, and in static recipes every bias fits its integers.
    """
    program = torch.export.load(request.program)
    if request.recipe.scheme == "static":
        assert request.ranges is not None
        program = raise_dead_channels(program, load_ranges(request.ranges), request.recipe)
    decompose(program, request.runtime)
    return program


def decompose(program: torch.export.ExportedProgram, runtime: str) -> Decomposed:
    """Take apart what ``runtime`` cannot convert, in place."""
    graph = program.graph_module.graph
    inputs = set(program.graph_signature.user_inputs)
    for node in graph.find_nodes(op="placeholder"):
        node.meta[CONSTANT] = node.name not in inputs
    parts: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, runtimes in DECOMPOSITIONS.items():
        if runtime not in runtimes:
            continue
        module = importlib.import_module(f"{__name__}.{name}")
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in module.TARGETS:
                # An operator with several results is known by itself, not by the one that is used.
                whole = node.args[0] if node.target is operator.getitem else node
                added = _replace(graph, node, module.expand)
                if added is not None:
                    parts[whole.name] = (name, (*added, node.name))
    if parts:
        graph.eliminate_dead_code()
        graph.lint()
        program.graph_module.recompile()
    return Decomposed(parts)


def _replace(
    graph: fx.Graph, node: fx.Node, expand: Callable[[fx.Node, Emit], Call | None]
) -> tuple[str, ...] | None:
    """The names of the nodes that were added before ``node``; None where it was left alone."""
    added: list[str] = []

    def emit(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with graph.inserting_before(node):
            made = graph.call_function(target, args, kwargs)
        made.meta = {**node.meta, "val": _value(node, target, args, kwargs)}
        made.meta.pop("from_node", None)
        added.append(made.name)
        return made

    call = expand(node, emit)
    if call is None:
        return None
    node.target, node.args, node.kwargs = call
    return tuple(added)


def _value(node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the call gives, as a tensor without contents."""
    args, kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    with node.meta["val"].fake_mode:
        return target(*args, **kwargs)
