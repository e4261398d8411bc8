"""TorchScript: ``.pt`` files, INT8 by FX graph-mode quantization for the qnnpack engine.

Legacy: upstream has deprecated TorchScript; people still ship it. Weights are per channel, and
activations take the ranges of edgekit's calibration: observers are placed by FX and then replaced
by fixed ones, so nothing is calibrated twice. Dynamic INT8 replaces the linear layers one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import QConfig, get_default_qconfig_mapping
from torch.ao.quantization.observer import (
    FixedQParamsObserver,
    HistogramObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from edgekit.quantize import graph
from edgekit.quantize.base import ExportRequest, example_inputs, tool_versions
from edgekit.quantize.decompositions import load_program
from edgekit.quantize.fixed_grids import lost_on_fixed_grids
from edgekit.quantize.float_nodes import dynamic_layers, float_closure
from edgekit.quantize.inspect_torchscript import input_files
from edgekit.quantize.prepare import as_module
from edgekit.quantize.ranges import Range, load_ranges
from edgekit.quantize.rebuild import to_modules
from edgekit.quantize.simulate import Grid, activation_grid

#: The engine of ARM devices; a file made for it also runs on x86 under the same engine.
ENGINE = "qnnpack"
#: QNNPACK adds only what has so many steps of the sum's grid in one of its own.
_ADDED_STEPS = (2.0**-14, 2.0**8)
#: What FX fuses must share one configuration.
_LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ReLU)

_WEIGHT = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8,
    qscheme=torch.per_channel_symmetric,
    quant_min=-127,
    quant_max=127,
    eps=2**-23,
)
#: Activations that always give a tensor of their own.
_NEVER_IN_PLACE = ("aten::prelu", "aten::glu", "aten::hardshrink")


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    gm = as_module(load_program(request))
    example = example_inputs(request.inputs)
    if request.recipe.scheme == "float":
        frozen = _trace(gm, example)
    else:
        make = quantize_dynamic if request.recipe.scheme == "dynamic" else quantize
        with _engine(ENGINE):
            frozen = _trace(make(gm, request), example)
    partial = request.out.with_name(request.out.name + ".part")
    # Freezing drops the shapes of the inputs, which inspection needs.
    torch.jit.save(frozen, str(partial), _extra_files=input_files(request.inputs))
    partial.replace(request.out)
    return tool_versions("torch")


def _trace(module: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced.eval())
    # Activations of what nobody else reads write where they read: the pages of a new tensor cost
    # more than a SiLU itself. PyTorch's pass breaks on the ones that cannot.
    if not any(node.kind() in _NEVER_IN_PLACE for node in frozen.graph.nodes()):
        torch._C._jit_pass_functional_to_inplace_activation(frozen.graph)  # type: ignore[attr-defined]
    return frozen


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Weights are packed for the engine that is current; it is a global of PyTorch's."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def quantize_dynamic(gm: fx.GraphModule, request: ExportRequest) -> fx.GraphModule:
    """Linear layers with per-channel int8 weights, whose inputs are quantized when they arrive."""
    linears = dynamic_layers(gm, request.recipe.float_nodes)
    rebuilt = to_modules(gm, {node.name for node in gm.graph.nodes} - linears)
    for name in linears:
        linear = rebuilt.get_submodule(name)
        linear.qconfig = QConfig(activation=PlaceholderObserver, weight=_WEIGHT)  # type: ignore[assignment]
        setattr(rebuilt, name, DynamicLinear.from_float(linear))
    return rebuilt


def quantize(gm: fx.GraphModule, request: ExportRequest) -> fx.GraphModule:
    """FX static INT8: per-channel weights, activations on the calibrated grids."""
    assert request.ranges is not None
    ranges, kind = load_ranges(request.ranges), request.recipe.ranges
    float_nodes = {
        *request.recipe.float_nodes,
        *lost_on_fixed_grids(gm, ranges),
        *_odd_additions(gm, ranges, kind),
        # In int8 an average is on the grid of what it is of, which is coarse for it.
        *(node.name for node in gm.graph.nodes if node.target in graph.AVERAGES),
    }
    # FX would look for the ranges of integers.
    integers = {node.name for node in gm.graph.nodes if graph.gives_integers(node)}
    rebuilt = to_modules(gm, float_closure(gm, float_nodes) | integers)
    prepared = prepare_fx(rebuilt, _qconfig_mapping(), example_inputs(request.inputs))
    names = _names(gm, rebuilt, prepared)
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        observer = prepared.get_submodule(node.target)
        if not isinstance(observer, HistogramObserver):
            continue
        source = node.args[0]
        if source.op == "get_attr":
            # A constant is no activation: it is all there is to see of its range.
            observer(graph.attribute(prepared, source.target))
        else:
            fixed = _fixed_observer(ranges[names[source]], kind)
            setattr(prepared, node.target, fixed)
    joined = {
        node.name: activation_grid(*ranges[names[node]].of(kind))
        for node in prepared.graph.nodes
        if node.target is torch.cat and names[node] in ranges
    }
    converted: fx.GraphModule = convert_fx(prepared)
    _join_on_own_grids(converted, joined)
    return converted


def _join_on_own_grids(converted: fx.GraphModule, grids: Mapping[str, Grid]) -> None:
    """Give concatenations of quantized tensors the grids calibrated for them, by name.

    FX leaves ``torch.cat``, which takes that of its first operand and clips the others to it.
    """
    for node in list(converted.graph.nodes):
        if node.target is not torch.cat or node.name not in grids:
            continue
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        if any(part.target == "dequantize" for part in parts):
            continue  # in float
        grid = grids[node.name]
        with converted.graph.inserting_before(node):
            # quint8 is int8 moved up by 128: the same grid.
            joined = converted.graph.call_function(
                torch.ops.quantized.cat, (parts, axis, grid.scale, grid.zero_point + 128)
            )
        node.replace_all_uses_with(joined)
        converted.graph.erase_node(node)
    converted.recompile()


def _odd_additions(gm: fx.GraphModule, ranges: Mapping[str, Range], kind: str) -> set[str]:
    """Additions that the engine refuses when the file is made or loaded: they stay in float.

    A branch that is multiplied by almost nothing, as ConvNeXt's are before training, makes some.
    """

    def scale(node: Any) -> float | None:
        found = ranges.get(node.name) if isinstance(node, fx.Node) else None
        return None if found is None else activation_grid(*found.of(kind)).scale

    odd = set()
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target not in graph.ADDITIONS:
            continue
        sum_scale = scale(graph.fused_activation(node) or node)
        scales = [scale(operand) for operand in node.args[:2]]
        least, most = _ADDED_STEPS
        if any(s and sum_scale and not least <= s / sum_scale < most for s in scales):
            odd.add(node.name)
    return odd


def _names(
    gm: fx.GraphModule, rebuilt: fx.GraphModule, prepared: fx.GraphModule
) -> dict[fx.Node, str]:
    """For each node that FX prepared, the node of the program whose value it has.

    Preparation traces anew, which keeps the order and the names of submodules, not those of
    functions; and a layer that was fused with its activation has the activation's value.
    """
    fused = {
        layer.name: layer.activation.name
        for layer in graph.layers(gm)
        if layer.activation is not None
    }
    names = {
        node: fused.get(node.target, node.target)
        for node in prepared.graph.nodes
        if node.op == "call_module"
    }
    functions = ("placeholder", "call_function")
    before = [node for node in rebuilt.graph.nodes if node.op in functions]
    after = [node for node in prepared.graph.nodes if node.op in functions]
    for old, new in zip(before, after, strict=True):
        names[new] = old.name
    return names


def _qconfig_mapping() -> Any:
    config = QConfig(activation=HistogramObserver.with_args(reduce_range=False), weight=_WEIGHT)
    mapping = get_default_qconfig_mapping(ENGINE).set_global(config)
    for layer_type in _LAYER_TYPES:
        mapping.set_object_type(layer_type, config)
    return mapping


def _fixed_observer(found: Range, kind: str) -> FixedQParamsObserver:
    grid = activation_grid(*found.of(kind))
    # quint8 is int8 moved up by 128: the same grid.
    return FixedQParamsObserver(scale=grid.scale, zero_point=grid.zero_point + 128)
