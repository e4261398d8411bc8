"""TFLite (LiteRT): ``.tflite`` files through litert-torch, INT8 by ai-edge-quantizer.

Each operator is converted under the name of its node in the prepared program, so that the tensors
of the TFLite file can be told apart and get the ranges of edgekit's calibration. A name alone is
not trusted (layout changes inherit it): node and tensor must also agree on the extremes of one
sample. Tensors that the converter invented get the extremes of the whole calibration set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager
from torch import fx
from torch.utils import _pytree as pytree

from edgekit.data import open_samples
from edgekit.errors import ExportFailed
from edgekit.files import write_atomic
from edgekit.quantize import graph
from edgekit.quantize.base import ExportRequest, example_inputs, tool_versions
from edgekit.quantize.calibrate import extremes_of_sample
from edgekit.quantize.decompositions import load_program
from edgekit.quantize.divisors import quotients
from edgekit.quantize.fixed_grids import lost_on_fixed_grids
from edgekit.quantize.float_nodes import dynamic_layers, float_closure
from edgekit.quantize.graph import ATEN
from edgekit.quantize.large_weights import large_weights
from edgekit.quantize.prepare import as_module, flatten
from edgekit.quantize.ranges import Range, load_ranges
from edgekit.quantize.taken_apart import taken_apart
from edgekit.quantize.tflite_graph import NODE_CLASS, NODE_NAME, operators_of

#: How far the extremes of one sample may be apart, as a share of their distance, for a node and a
#: tensor to be the same: float kernels differ in the last digits.
_SAME = 1e-3

#: Products with constant weights; ai-edge-quantizer counts convolutions to the recipe too.
_DYNAMIC = (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.BATCH_MATMUL)

_RECURRENT = (
    ATEN.lstm.input,
    ATEN.gru.input,
    ATEN.rnn_tanh.input,
    ATEN.rnn_relu.input,
)


def dynamic_recipe() -> Any:
    manager = recipe_manager.RecipeManager()
    for operation in _DYNAMIC:
        manager.add_dynamic_config(regex=".*", operation_name=operation, num_bits=8)
    return manager.get_quantization_recipe()


_RECIPES: Mapping[str, Callable[[], Any]] = {
    "static_wi8_ai8": recipe.static_wi8_ai8,
    "static_wi8_ai16": recipe.static_wi8_ai16,
    "dynamic_wi8_afp32": dynamic_recipe,
    "weight_only_wi8_afp32": recipe.weight_only_wi8_afp32,
}

_Calibration = dict[str, dict[str, Any]]


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    gm = as_module(load_program(request))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"edgekit": (node.name, NODE_CLASS)}
    if request.recipe.scheme == "static":
        _separate_outputs(gm)
    example = example_inputs(request.inputs)
    float_file = request.out.with_suffix(".float.tflite")
    converted = litert_torch.convert(gm, example, enable_x64=_is_wide(gm, example))
    converted.export(str(float_file))
    if request.recipe.scheme == "static" and _has_shared_outputs(float_file):
        raise ExportFailed(
            "TFLite's quantizer cannot handle an output that is also used inside the model, or "
            "returned twice.",
            remedy="Return each value once, or leave this runtime out with --runtimes.",
        )
    if request.recipe.scheme == "float":
        float_file.replace(request.out)
    else:
        write_atomic(request.out, _quantize(float_file, gm, request))
        float_file.unlink()
    return tool_versions("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")


def _is_wide(gm: fx.GraphModule, example: Sequence[torch.Tensor]) -> bool:
    """Whether the model takes or gives 64-bit integers, as token ids and classes are: left to
    itself, the converter makes them 32 bits wide, and runtimes could not be fed alike."""
    with torch.inference_mode():
        return any(value.dtype == torch.int64 for value in (*example, *flatten(gm(*example))))


def _separate_outputs(gm: fx.GraphModule) -> None:
    """Give each output a tensor of its own.

    One that is used inside too, or returned twice, would have to be int8 and float32 at once. The
    larger one of a value and itself is an operator of no effect that conversion leaves alone; it
    merges equal ones, so that the next copy is that of the smaller one.
    """
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    returned = Counter(_returned(gm))
    users = {value: len(value.users) for value in returned}
    sources: dict[fx.Node, fx.Node] = {}

    def twin(target: Any, value: fx.Node) -> fx.Node:
        with gm.graph.inserting_before(output):
            made = gm.graph.call_function(target, (value, value))
        made.meta = {**value.meta, "nn_module_stack": {"edgekit": (made.name, NODE_CLASS)}}
        return made

    def own(value: fx.Node) -> fx.Node:
        shared = returned[value] > 1 or users[value] > 1
        if value.op != "call_function" or not shared or not _is_float(value):
            return value
        if value in sources:
            sources[value] = twin(ATEN.minimum.default, sources[value])
        else:
            sources[value] = value
        return twin(ATEN.maximum.default, sources[value])

    output.args = fx.node.map_arg(output.args, own)
    gm.recompile()


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _has_shared_outputs(model: Path) -> bool:
    interpreter = Interpreter(str(model))
    inputs = {detail["index"] for detail in interpreter.get_input_details()}
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    read = {int(index) for node in interpreter._get_ops_details() for index in node["inputs"]}
    computed = set(outputs) - inputs
    return len(set(outputs)) < len(outputs) or bool(computed & read)


def _quantize(float_file: Path, gm: fx.GraphModule, request: ExportRequest) -> bytes:
    float_nodes = set(request.recipe.float_nodes)
    if request.recipe.scheme == "dynamic":
        dynamic_layers(gm, request.recipe.float_nodes)
        # Their products have constant weights, too, once they are taken apart.
        float_nodes |= {node.name for node in gm.graph.nodes if node.target in _RECURRENT}
    quantizing = quantizer.Quantizer(str(float_file), _RECIPES[request.recipe.name]())
    if request.recipe.scheme == "static":
        float_nodes |= quotients(gm) | taken_apart(gm, "tflite")
    if request.recipe.activations == "int8":
        assert request.ranges is not None
        float_nodes |= lost_on_fixed_grids(gm, load_ranges(request.ranges))
    _leave_float(quantizing, float_file, gm, float_closure(gm, float_nodes))
    calibration = _calibration(quantizing, float_file, gm, request)
    with large_weights():
        result = quantizing.quantize(
            calibration, enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)


def _leave_float(
    quantizing: quantizer.Quantizer, float_file: Path, gm: fx.GraphModule, names: Collection[str]
) -> None:
    """Keep the operators of the named nodes in float; they are called by their output tensors."""
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        # Float inputs and outputs: every runtime of a bundle is fed and read alike.
        quantizing.update_quantization_recipe(
            regex=".*", operation_name=edge, algorithm_key="no_quantize"
        )
    if not names:
        return
    layers = {layer.name for layer in graph.layers(gm)}
    returned = [node.name for node in _returned(gm)]
    for tensor in operators_of(float_file, names, layers, returned):
        quantizing.update_quantization_recipe(
            regex=f"^{re.escape(tensor)};",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key="no_quantize",
        )


def _returned(gm: fx.GraphModule) -> list[fx.Node]:
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    return [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]


def _calibration(
    quantizing: quantizer.Quantizer, float_file: Path, gm: fx.GraphModule, request: ExportRequest
) -> _Calibration | None:
    """The range of every tensor that is quantized; None where no activation is."""
    if request.recipe.scheme != "static":
        return None
    assert request.ranges is not None and request.calibration is not None
    stacks = open_samples(request.calibration).inputs
    signature, names = _signature(float_file)
    first = {name: stack[0] for name, stack in zip(names, stacks, strict=True)}
    calibration: _Calibration = quantizing.calibrate({signature: [first]})
    inputs = tuple(torch.from_numpy(np.array(stack[0])) for stack in stacks)
    unknown = _apply_ranges(
        calibration, load_ranges(request.ranges), request.recipe.ranges, gm, inputs
    )
    if unknown:
        observed = _observe(quantizing, signature, names, stacks)
        for name in unknown:
            _set(calibration[name], *observed[name])
    return calibration


def _signature(model: Path) -> tuple[str, list[str]]:
    """The name of the file's one signature and of its inputs, in the order of the model's."""
    ((name, signature),) = Interpreter(str(model)).get_signature_list().items()
    return name, sorted(signature["inputs"], key=_position)


def _position(name: str) -> int:
    return int(name.rpartition("_")[2])


def _apply_ranges(
    calibration: _Calibration,
    ranges: Mapping[str, Range],
    kind: str,
    gm: fx.GraphModule,
    inputs: tuple[torch.Tensor, ...],
) -> list[str]:
    """Give each tensor the range of the node that it is; returns the names of those without one."""
    nodes = extremes_of_sample(gm, inputs)
    unknown = []
    for name, entry in calibration.items():
        tensor = float(np.min(entry["min"])), float(np.max(entry["max"]))
        for node in (*NODE_NAME.findall(name), *nodes):
            if node in nodes and node in ranges and _same(nodes[node], tensor):
                _set(entry, *ranges[node].of(kind))
                break
        else:
            unknown.append(name)
    return unknown


def _same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    width = max(a[1] - a[0], 1e-12)
    return abs(a[0] - b[0]) <= _SAME * width and abs(a[1] - b[1]) <= _SAME * width


def _set(entry: dict[str, Any], low: float, high: float) -> None:
    entry["min"] = np.full_like(entry["min"], low)
    entry["max"] = np.full_like(entry["max"], high)


def _observe(
    quantizing: quantizer.Quantizer,
    signature: str,
    names: Sequence[str],
    stacks: Sequence[np.ndarray],
) -> dict[str, tuple[float, float]]:
    """Global extremes over the calibration set.

    ``calibrate`` itself keeps a moving average, which forgets the extremes that clip; so it is
    asked for one sample at a time.
    """
    found: dict[str, tuple[float, float]] = {}
    for feed in _feeds(names, stacks):
        for name, entry in quantizing.calibrate({signature: [feed]}).items():
            low, high = found.get(name, (0.0, 0.0))
            found[name] = (
                min(low, float(np.min(entry["min"]))),
                max(high, float(np.max(entry["max"]))),
            )
    return found


def _feeds(names: Sequence[str], stacks: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(len(stacks[0])):
        yield {name: np.asarray(stack[i]) for name, stack in zip(names, stacks, strict=True)}
