"""ExecuTorch: ``.pte`` files for the XNNPACK delegate.

INT8 goes through PT2E with the quantizers of :mod:`edgekit.quantize.executorch_quantizer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekit.data import open_samples
from edgekit.files import write_atomic
from edgekit.quantize import graph
from edgekit.quantize.base import ExportRequest, example_inputs, tool_versions
from edgekit.quantize.decompositions import load_program
from edgekit.quantize.dequantize_apart import dequantize_apart
from edgekit.quantize.executorch_partitioner import Partitioner
from edgekit.quantize.executorch_quantizer import CalibratedQuantizer, DynamicQuantizer
from edgekit.quantize.float_nodes import dynamic_layers, float_closure
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module
from edgekit.quantize.ranges import load_ranges

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_BATCH_NORM = ATEN._native_batch_norm_legit_no_training.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    program = load_program(request)
    example = example_inputs(request.inputs)
    if request.recipe.scheme != "float":
        program = torch.export.export(quantize(as_module(program), request), example)
    _forget_origins(program.graph_module)
    lowered = to_edge_transform_and_lower(
        program,
        transform_passes=[dequantize_apart],
        partitioner=[Partitioner()],
        # The verifier rejects operators that run well outside the delegate.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    ).to_executorch()
    write_atomic(request.out, lowered.buffer)
    return tool_versions("executorch", "torch", "torchao")


def _forget_origins(gm: fx.GraphModule) -> None:
    """Drop the record of what each node was made from, all the way back to the eager model.

    Every pass of the lowering copies and extends it, which takes a fifth of its time; only the
    debug handles are numbered after it.
    """
    for node in gm.graph.nodes:
        node.meta.pop("from_node", None)


def quantize(gm: fx.GraphModule, request: ExportRequest) -> fx.GraphModule:
    """PT2E INT8, static or dynamic: per-channel weights, activations on the calibrated grids."""
    recipe = request.recipe
    seen: Iterable[tuple[torch.Tensor, ...]] = [example_inputs(request.inputs)]
    quantizer: DynamicQuantizer | CalibratedQuantizer
    if recipe.scheme == "dynamic":
        quantizer = DynamicQuantizer(dynamic_layers(gm, recipe.float_nodes))
    else:
        assert request.ranges is not None
        kept = float_closure(gm, recipe.float_nodes)
        quantizer = CalibratedQuantizer(load_ranges(request.ranges), recipe.ranges, kept)
    apart = _set_batch_norms_apart(gm)
    prepared = prepare_pt2e(gm, quantizer)
    if isinstance(quantizer, CalibratedQuantizer) and quantizer.observes:
        # What a decomposition put in has no range yet.
        seen = _samples(request)
    with torch.inference_mode():
        # One run is enough for the weight observers, and the other activations' grids are fixed.
        for inputs in seen:
            prepared(*inputs)
    converted: fx.GraphModule = convert_pt2e(prepared)
    for node in converted.graph.nodes:
        if node.name in apart:
            node.replace_all_uses_with(node.args[0])
    converted.graph.eliminate_dead_code()
    _unwrap_pads(converted)
    return converted


def _set_batch_norms_apart(gm: fx.GraphModule) -> set[str]:
    """Put a no-op between a layer with several users and the batch norm that is one of them.

    PT2E folds batch norm into the layer without a look at who else takes in its result, and would
    give them the normalised values, too. Returns the names of the no-ops.
    """
    apart = set()
    for node in list(gm.graph.nodes):
        if node.target != _BATCH_NORM or len(node.args[0].users) == 1:
            continue
        layer = node.args[0]
        with gm.graph.inserting_before(node):
            no_op = gm.graph.call_function(ATEN.alias.default, (layer,))
        no_op.meta["val"] = layer.meta["val"]
        node.replace_input_with(layer, no_op)
        apart.add(no_op.name)
    gm.recompile()
    return apart


def _samples(request: ExportRequest) -> Iterator[tuple[torch.Tensor, ...]]:
    """The calibration samples, one at a time."""
    assert request.calibration is not None
    stacks = open_samples(request.calibration).inputs
    for i in range(len(stacks[0])):
        yield tuple(torch.from_numpy(np.array(stack[i])) for stack in stacks)


def _unwrap_pads(gm: fx.GraphModule) -> None:
    """Drop the quantize/dequantize pair behind a pad where it repeats the one before it.

    The delegate's own pass then serialises an int8 pad; with the pair in place it leaves a float
    pad between a dequantize and a quantize on the largest tensors of the network.
    """
    for pad in list(gm.graph.nodes):
        if pad.target not in graph.PADS or getattr(pad.args[0], "target", None) != _DEQUANTIZE:
            continue
        grid = pad.args[0].args[1:]
        if not all(user.target == _QUANTIZE and user.args[1:] == grid for user in pad.users):
            continue
        for quantized in list(pad.users):
            for dequantized in list(quantized.users):
                dequantized.replace_all_uses_with(pad)
                gm.graph.erase_node(dequantized)
            gm.graph.erase_node(quantized)
    gm.recompile()
