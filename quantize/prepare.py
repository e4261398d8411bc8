"""From an eager model to the one program that every artifact is made from.

``torch.export``, functionalisation, then clean-up that every converter profits from: batch norm and
symmetric pads folded into convolutions, operators that do nothing removed, a weight and a bias of
its own for every layer (:mod:`edgekit.quantize.passes`). The result must compute what the eager
model computes; :func:`edgekit.quantize.equal.prove_equal` proves it on real samples before anything
else happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from edgekit.errors import SourceError
from edgekit.quantize.graph import ATEN
from edgekit.quantize.passes import PASSES

#: Floats of these widths are cast where a model is held in them, and refused inside of one.
_OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)


def as_float32(
    module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> tuple[tuple[torch.Tensor, ...], tuple[str, ...]]:
    """Cast a half or double precision model to float32, in place; a float32 one is left alone.

    Returns:
        The example inputs as contiguous float32 (integer ones keep their dtype), and notes for the
        user: one if anything was cast, else none.
    """
    held = {value.dtype for value in (*module.parameters(), *module.buffers(), *example_inputs)}
    cast = sorted(str(dtype).removeprefix("torch.") for dtype in held & set(_OTHER_FLOATS))
    if cast:
        module.float()
    inputs = tuple(
        # ExecuTorch takes the example's strides literally, and views may have some that are zero.
        torch.empty(v.shape, dtype=torch.float32 if v.is_floating_point() else v.dtype).copy_(v)
        for v in example_inputs
    )
    if not cast:
        return inputs, ()
    names = " and ".join(cast)
    return inputs, (f"The model is in {names}; it was cast to float32, which edgekit starts from.",)


def export_program(
    module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """``torch.export`` with functional operators; the batch size is that of the example.

    Raises:
        SourceError: the model cannot be exported; says where.
    """
    try:
        with torch.no_grad():
            exported = torch.export.export(module, example_inputs)
        functional: torch.export.ExportedProgram = exported.run_decompositions({})
    except Exception as error:
        raise SourceError(
            f"torch.export cannot trace the model: {_first_line(error)}",
            remedy="Control flow that depends on data must be rewritten as arithmetic, for example "
            "with torch.where, or the model wrapped so that forward() takes and returns tensors "
            "only.",
        ) from error
    _refuse_unsupported(functional)
    return functional


def prepare(
    exported: torch.export.ExportedProgram, example_inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Clean the program up; returns it with the names of the passes that changed something.

    Raises:
        SourceError: the model keeps state between its runs.
    """
    gm = as_module(exported)
    _forget_state(gm)
    applied = []
    for graph_pass in PASSES:
        if graph_pass(gm):
            applied.append(graph_pass.__name__)
            gm.graph.eliminate_dead_code()
            gm.recompile()
    return re_export(gm, example_inputs), tuple(applied)


def as_module(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a graph module whose weights are ``get_attr`` nodes, without guards."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def re_export(
    gm: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """Make an edited graph module an exported program again, with node names settled.

    What edits put in has to be functional, as everything else in the graph is by now.
    """
    gm.graph.lint()
    gm.recompile()
    with torch.no_grad():
        exported: torch.export.ExportedProgram = torch.export.export(gm, example_inputs)
    return exported


def with_constants(
    exported: torch.export.ExportedProgram, constants: Mapping[str, torch.Tensor]
) -> torch.export.ExportedProgram:
    """The program with other weights or biases, by the names of its ``get_attr`` nodes.

    ``exported`` itself is changed: exporting a large graph again takes seconds.
    """
    for name, value in constants.items():
        held = exported.state_dict if name in exported.state_dict else exported.constants
        is_parameter = isinstance(held[name], torch.nn.Parameter)
        held[name] = torch.nn.Parameter(value, requires_grad=False) if is_parameter else value
    return exported


def run(
    exported: torch.export.ExportedProgram | fx.GraphModule, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The outputs as a flat tuple, whatever structure the model returns."""
    module = exported if isinstance(exported, fx.GraphModule) else as_module(exported)
    with torch.inference_mode():
        return flatten(module(*inputs))


def flatten(outputs: Any) -> tuple[torch.Tensor, ...]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _forget_state(gm: fx.GraphModule) -> None:
    """Nothing is written to buffers and inputs any more, as in-place operators do.

    A model that reads what it wrote to a buffer is refused.
    """
    written = []
    for node in list(gm.graph.nodes):
        if node.target == ATEN.copy_.default and node.args[0].op in ("get_attr", "placeholder"):
            if node.args[0].op == "get_attr":
                written.append(node.args[0])
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    for buffer in written:
        if buffer.users:
            raise SourceError(
                f"The model keeps state between its runs: forward() reads the buffer "
                f"{buffer.target!r} and writes to it.",
                remedy="Make the state an input and an output of the model.",
            )


def _refuse_unsupported(exported: torch.export.ExportedProgram) -> None:
    """What no runtime of ours could be given, while it can still be named."""
    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise SourceError(
                f"The model has control flow, which edgekit does not support: {node.target} at "
                f"node {node.name!r}.",
                remedy="Compute both branches and choose with torch.where, or unroll the loop.",
            )
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in _OTHER_FLOATS[:2]:
            raise SourceError(
                f"The model casts to {value.dtype} inside forward(), at node {node.name!r}.",
                remedy="Remove the cast, or make it depend on the dtype of the input.",
            )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
