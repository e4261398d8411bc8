"""XNNPACK's quantizers for PT2E, given ranges that were calibrated before.

Static INT8 extends the stock quantizer: layers fused with ReLU6 are one pattern, activations take
the ranges of edgekit's calibration instead of observers, pads share the scale of what they pad, a
concatenation has the scale of its result instead of its first part's, and hard swish is int8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import fx
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.ranges import Range
from edgekit.quantize.simulate import activation_grid, weight_scales

_SCALED = (ATEN.add.Tensor, ATEN.mul.Tensor)

# The stock observer's eps of 2^-12 coarsens the grid of channels with small weights.
_WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-23),
)


def _config(*, dynamic: bool) -> Any:
    stock = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    return type(stock)(stock.input_activation, stock.output_activation, _WEIGHT, stock.bias, False)


class DynamicQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """The named linear layers with int8 weights, whose inputs are quantized at run time."""

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()
        self.set_operator_type(ATEN.linear.default, _config(dynamic=True))
        self.set_filter_function(lambda node: node.name in layers)

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        return model


#: What XNNPACK's int8 kernels multiply a sum by at most, to bring it to the output's grid.
_MOST_FINER = 256


class CalibratedQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """Static INT8 with ReLU6 patterns, shared pads, known ranges and nodes that stay float.

    After :meth:`annotate`, ``observes`` says that some ranges are not known and have observers.
    """

    def __init__(
        self, ranges: Mapping[str, Range], kind: str, float_nodes: Collection[str]
    ) -> None:
        super().__init__()
        self._ranges, self._kind, self._float = ranges, kind, float_nodes
        self.observes = False
        config = _config(dynamic=False)
        self._activation = config.input_activation
        self.set_global(config)

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Factors and summands of float tensors become tensors, which the quantizer asks for.

        The stock method does so to integers too, and makes floats of them.
        """
        for node in list(model.graph.nodes):
            if node.target not in _SCALED or node.name in self._float or not _is_float(node):
                continue
            for index, value in enumerate(node.args):
                if isinstance(value, fx.Node):
                    continue
                tensor = torch.tensor(float(value))
                constant = graph.add_constant(model, f"{node.name}_scalar", tensor, node)
                constant.meta["val"] = node.meta["val"].fake_mode.from_tensor(
                    tensor, static_shapes=True
                )
                node.update_arg(index, constant)
        model.recompile()
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        self._float = {*self._float, *self._beyond_kernels(model)}
        for node in model.graph.nodes:
            if node.name in self._float or graph.gives_integers(node):
                # Annotated, so that nothing else annotates it; without a spec, so it is float. The
                # stock quantizer takes integers for floats where they are joined.
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
        self._annotate_clamped_layers(model)
        self._annotate_hardswish(model)
        super().annotate(model)
        self._annotate_pads(model)
        self._annotate_averages(model)
        self._fix_ranges(model)
        return model

    def _beyond_kernels(self, model: fx.GraphModule) -> set[str]:
        """Layers, and their clamps, whose output's grid is far finer than that of their products.

        XNNPACK multiplies sums by less than 256, or does not load the file.
        """
        found: set[str] = set()
        for layer in graph.layers(model):
            ends: tuple[Any, fx.Node] = layer.node.args[0], layer.output
            if any(end.name not in self._ranges for end in ends):
                continue
            given, made = (
                activation_grid(*self._ranges[end.name].of(self._kind)).scale for end in ends
            )
            scales = weight_scales(graph.attribute(model, layer.weight), layer.channel_axis)
            if float(scales.max()) * given / made >= _MOST_FINER:
                found |= {layer.name, layer.output.name}
        return found

    def _annotate_clamped_layers(self, model: fx.GraphModule) -> None:
        """Layer + ReLU6 (or ReLU) as one pattern: only the clamped value is quantized."""
        for layer in graph.layers(model):
            if layer.activation is None or layer.channel_axis != 0 or layer.name in self._float:
                continue
            source, weight = layer.node.args[:2]
            assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
            inputs: dict[fx.Node, Any] = {source: self._activation, weight: _WEIGHT}
            if len(layer.node.args) > 2 and isinstance(layer.node.args[2], fx.Node):
                inputs[layer.node.args[2]] = None
            layer.node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map=inputs, _annotated=True
            )
            layer.activation.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                output_qspec=self._activation, _annotated=True
            )

    def _annotate_hardswish(self, model: fx.GraphModule) -> None:
        """Hard swish in int8, which :mod:`edgekit.quantize.executorch_partitioner` delegates.

        Not beside what was left in float, or as the network's input or output: int8 would round
        once more there and save no conversion.
        """
        for node in model.graph.nodes:
            if node.target != ATEN.hardswish.default or node.name in self._float:
                continue
            if self._computes(node.args[0]) and any(self._computes(it) for it in node.users):
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: self._activation},
                    output_qspec=self._activation,
                    _annotated=True,
                )

    def _computes(self, node: fx.Node) -> bool:
        """Whether ``node`` is neither the network's input or output nor left in float."""
        return node.op == "call_function" and node.name not in self._float

    def _annotate_pads(self, model: fx.GraphModule) -> None:
        for node in model.graph.nodes:
            if (
                node.op != "call_function"
                or node.target not in graph.PADS
                or node.name in self._float
            ):
                continue
            source = node.args[0]
            annotation = source.meta.get(Q_ANNOTATION_KEY)
            if annotation is not None and annotation.output_qspec is not None:
                shared = SharedQuantizationSpec(source)
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={source: shared}, output_qspec=shared, _annotated=True
                )

    def _annotate_averages(self, model: fx.GraphModule) -> None:
        """Averages have a grid of their own; on that of what they are of they lose some bits."""
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if node.target in graph.AVERAGES and annotation and annotation.output_qspec is not None:
                annotation.output_qspec = self._activation

    def _fix_ranges(self, model: fx.GraphModule) -> None:
        """Replace every activation observer by the grid of the calibrated range."""
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if annotation is None:
                continue
            whole = node if node.target == ATEN.cat.default else None
            for source, spec in annotation.input_qspec_map.items():
                annotation.input_qspec_map[source] = self._fixed(model, whole or source, spec)
            annotation.output_qspec = self._fixed(
                model, _only_part_of(node) or node, annotation.output_qspec
            )

    def _fixed(self, model: fx.GraphModule, node: fx.Node, spec: Any) -> Any:
        if spec is not self._activation:
            return spec
        constant = graph.constant(model, node)
        if constant is not None and constant.numel():
            low, high = min(0.0, float(constant.min())), max(0.0, float(constant.max()))
        elif node.name in self._ranges:
            low, high = self._ranges[node.name].of(self._kind)
        else:
            self.observes = True
            return spec
        grid = activation_grid(low, high)
        return FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=grid.scale,
            zero_point=grid.zero_point,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )


def _only_part_of(node: fx.Node) -> fx.Node | None:
    """The quantized concatenation that is the only user of ``node``.

    Its parts have one scale in XNNPACK, so a part that nobody else reads is made with it at once.
    """
    if len(node.users) != 1:
        return None
    (user,) = node.users
    annotation = user.meta.get(Q_ANNOTATION_KEY)
    quantized = annotation is not None and annotation.output_qspec is not None
    return user if user.target == ATEN.cat.default and quantized else None


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
