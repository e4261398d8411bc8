"""ExecuTorch: ``.pte`` files for the XNNPACK delegate.

INT8 goes through PT2E with XNNPACK's own quantizer, extended in three places: layers fused with
ReLU6 are one pattern, activations take the ranges of edgekit's calibration instead of observers,
and pads share the scale of what they pad.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import fx
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekit.files import write_atomic
from edgekit.quantize import graph
from edgekit.quantize.base import ExportRequest, example_inputs, tool_versions
from edgekit.quantize.calibrate import Range, load_ranges
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module
from edgekit.quantize.simulate import activation_grid

_PADS = (ATEN.pad.default, ATEN.constant_pad_nd.default)
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    program = torch.export.load(request.program)
    example = example_inputs(request.inputs)
    if request.recipe.precision == "int8":
        assert request.ranges is not None
        ranges = load_ranges(request.ranges)
        quantized = quantize(as_module(program), ranges, request.recipe.ranges, example)
        program = torch.export.export(quantized, example)
    _forget_origins(program.graph_module)
    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
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


def quantize(
    gm: fx.GraphModule,
    ranges: Mapping[str, Range],
    kind: str,
    example: tuple[torch.Tensor, ...],
) -> fx.GraphModule:
    """PT2E static INT8: per-channel weights, activations on the calibrated grids."""
    prepared = prepare_pt2e(gm, _CalibratedQuantizer(ranges, kind))
    with torch.inference_mode():
        # One run for the weight observers; the activations' grids are fixed already.
        prepared(*example)
    converted: fx.GraphModule = convert_pt2e(prepared)
    _unwrap_pads(converted)
    return converted


class _CalibratedQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """XNNPACK's quantizer with ReLU6 patterns, shared pads and known activation ranges."""

    def __init__(self, ranges: Mapping[str, Range], kind: str) -> None:
        super().__init__()
        self._ranges, self._kind = ranges, kind
        config = get_symmetric_quantization_config(is_per_channel=True)
        # The stock observer's eps of 2^-12 coarsens the grid of channels with small weights.
        weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-23),
        )
        self._activation = config.input_activation
        self.set_global(
            type(config)(
                config.input_activation, config.output_activation, weight, config.bias, False
            )
        )
        self._weight = weight

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        self._annotate_clamped_layers(model)
        super().annotate(model)
        self._annotate_pads(model)
        self._fix_ranges(model)
        return model

    def _annotate_clamped_layers(self, model: fx.GraphModule) -> None:
        """Layer + ReLU6 (or ReLU) as one pattern: only the clamped value is quantized."""
        for layer in graph.layers(model):
            if layer.activation is None or layer.channel_axis != 0:
                continue
            source, weight = layer.node.args[:2]
            assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
            inputs: dict[fx.Node, Any] = {source: self._activation, weight: self._weight}
            if len(layer.node.args) > 2 and isinstance(layer.node.args[2], fx.Node):
                inputs[layer.node.args[2]] = None
            layer.node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map=inputs, _annotated=True
            )
            layer.activation.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                output_qspec=self._activation, _annotated=True
            )

    def _annotate_pads(self, model: fx.GraphModule) -> None:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in _PADS:
                source = node.args[0]
                annotation = source.meta.get(Q_ANNOTATION_KEY)
                if annotation is not None and annotation.output_qspec is not None:
                    shared = SharedQuantizationSpec(source)
                    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                        input_qspec_map={source: shared}, output_qspec=shared, _annotated=True
                    )

    def _fix_ranges(self, model: fx.GraphModule) -> None:
        """Replace every activation observer by the grid of the calibrated range."""
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if annotation is None:
                continue
            for source, spec in annotation.input_qspec_map.items():
                annotation.input_qspec_map[source] = self._fixed(source, spec)
            annotation.output_qspec = self._fixed(node, annotation.output_qspec)

    def _fixed(self, node: fx.Node, spec: Any) -> Any:
        if spec is not self._activation or node.name not in self._ranges:
            return spec
        grid = activation_grid(*self._ranges[node.name].of(self._kind))
        return FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=grid.scale,
            zero_point=grid.zero_point,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )


def _unwrap_pads(gm: fx.GraphModule) -> None:
    """Drop the quantize/dequantize pair behind a pad where it repeats the one before it.

    The delegate's own pass then serialises an int8 pad; with the pair in place it leaves a float
    pad between a dequantize and a quantize on the largest tensors of the network.
    """
    for pad in list(gm.graph.nodes):
        if pad.target not in _PADS or getattr(pad.args[0], "target", None) != _DEQUANTIZE:
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
