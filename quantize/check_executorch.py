"""What ExecuTorch makes of each operator: XNNPACK's partitioner and quantizer, and the kernels.

The program is lowered as the exporter does it, up to the point where the partitioner is asked what
it takes; nothing is delegated and nothing written. What it leaves needs a kernel in the runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from executorch.extension.pybindings.portable_lib import _get_operator_names
from torch import fx
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekit.quantize.check import Verdict, worst
from edgekit.quantize.decompositions import decompose
from edgekit.quantize.executorch_partitioner import Partitioner
from edgekit.quantize.executorch_quantizer import CalibratedQuantizer
from edgekit.quantize.origins import calls, mark, marked
from edgekit.quantize.prepare import as_module

_PARTITIONER_LOG = "executorch.backends.xnnpack.partition"


def check(program: torch.export.ExportedProgram) -> Mapping[str, Verdict]:
    """See :class:`edgekit.quantize.check.Checker`."""
    rewritten = decompose(program, "executorch")
    int8 = _annotated(as_module(program))
    mark(program)
    parts: dict[str, list[Verdict]] = {}
    for name, verdict in _lowered(program):
        parts.setdefault(name, []).append(verdict)
    found = {}
    for node in calls(as_module(program)):
        verdict = worst(parts[node.name]) if node.name in parts else Verdict("converts")
        if verdict.fate == "float" and node.name in int8:
            verdict = Verdict("int8")
        found[node.name] = verdict
    return rewritten.verdicts(found)


def _annotated(gm: fx.GraphModule) -> set[str]:
    """Names of the nodes that the exporter's quantizer makes int8."""
    CalibratedQuantizer({}, "minmax", frozenset()).annotate(gm)
    return {
        node.name
        for node in gm.graph.nodes
        if getattr(node.meta.get(Q_ANNOTATION_KEY), "_annotated", False)
    }


class _Asked(Exception):
    """Ends the lowering once the partitioner was asked."""


class _Recorder(Partitioner):
    """The partitioner of the exporter, which only notes what it would take."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[fx.Node] = set()
        self.graph: fx.Graph | None = None
        self.reasons: dict[str, str] = {}

    def partition(self, exported_program: torch.export.ExportedProgram) -> Any:
        self.graph = exported_program.graph_module.graph
        with _reasons() as self.reasons:
            for group in self.get_matched_nodes_from_configs(exported_program):
                self.taken.update(group)
        raise _Asked


def _lowered(program: torch.export.ExportedProgram) -> Iterator[tuple[str, Verdict]]:
    """The name of the prepared node and a verdict, for each node of the edge program."""
    recorder = _Recorder()
    with suppress(_Asked):
        to_edge_transform_and_lower(
            program,
            partitioner=[recorder],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
    assert recorder.graph is not None
    kernels = set(_get_operator_names())
    for node in recorder.graph.nodes:
        name = marked(node)
        if node.op != "call_function" or name is None:
            continue
        if not isinstance(node.target, EdgeOpOverload):
            continue
        if node in recorder.taken:
            yield name, Verdict("float")
        else:
            yield name, _outside(node, recorder.reasons.get(node.name, ""), kernels)


def _outside(node: fx.Node, reason: str, kernels: set[str]) -> Verdict:
    target: Any = node.target
    op = target._schema.name
    try:
        out = target.to_out_variant()._schema
    except RuntimeError:
        return Verdict(
            "fails",
            f"ExecuTorch has no form of {op} that writes into planned memory",
            remedy="Write it with other operators in forward(), or leave executorch out.",
        )
    kernel = f"{out.name}.{out.overload_name}"
    if kernel not in kernels:
        return Verdict(
            "fails",
            f"the runtime has no kernel for {kernel}",
            remedy="Write it with other operators in forward(), or leave executorch out.",
        )
    why = reason or f"XNNPACK has no {op.removeprefix('aten::')}"
    return Verdict("outside", why)


@contextmanager
def _reasons() -> Iterator[dict[str, str]]:
    """Why the partitioner refused nodes, by name: it only says so in its log."""
    found: dict[str, str] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said: Any = record.msg
            if isinstance(getattr(said, "node", None), fx.Node):
                found.setdefault(said.node.name, str(said.reason))

    logger, listener = logging.getLogger(_PARTITIONER_LOG), Listener()
    before, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before)
        logger.propagate = propagate
