"""TFLite: the file itself, in LiteRT's interpreter with every tensor kept.

A tensor's name carries the node that it was converted from, ``edgekit.Node_<name>``. Layout changes
inherit names and a fused operator has several, so among the tensors named after a node the one
whose values are closest to the node's is taken. XNNPACK keeps no tensors inside its partitions;
LiteRT's own kernels compute the same network and round a few values differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch.utils import _pytree as pytree

from edgekit import quality
from edgekit.quantize.base import ExportRequest
from edgekit.quantize.debug import Sample
from edgekit.quantize.prepare import as_module
from edgekit.quantize.tflite_graph import NODE_NAME

#: From TFLite's layouts to PyTorch's, by the number of dimensions; None leaves it as it is.
_LAYOUTS: dict[int, tuple[tuple[int, ...] | None, ...]] = {
    3: (None, (0, 2, 1)),
    4: (None, (0, 3, 1, 2)),
    5: (None, (0, 4, 1, 2, 3)),
}


def open_reader(request: ExportRequest, wanted: Collection[str]) -> TfliteReader:
    """See :func:`edgekit.quantize.debug.open_reader`."""
    return TfliteReader(request, wanted)


class TfliteReader:
    """A :class:`edgekit.quantize.debug.Reader`."""

    method = "the file's own tensors, in LiteRT without XNNPACK"
    rebuilt = False

    def __init__(self, request: ExportRequest, wanted: Collection[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keeping all tensors takes memory
            self._interpreter = Interpreter(
                model_path=str(request.out),
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
        self._interpreter.allocate_tensors()
        self._wanted = frozenset(wanted)
        (signature,) = self._interpreter.get_signature_list().values()
        runner = self._interpreter.get_signature_runner()
        self._inputs = _in_order(runner.get_input_details())
        self._outputs = _in_order(runner.get_output_details())
        assert len(self._inputs) == len(signature["inputs"])
        details = {d["index"]: d for d in self._interpreter.get_tensor_details()}
        # The public API tells tensors only; this is what the vendor's own tools use as well.
        produced = {
            int(index) for node in self._interpreter._get_ops_details() for index in node["outputs"]
        }
        self._details = [details[i] for i in sorted(produced & details.keys())]
        self._edges = self._edge_tensors(request, details)
        self._chosen: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] | None = None

    def read(
        self, sample: Sample, floats: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        """See :class:`edgekit.quantize.debug.Reader`."""
        for detail, array in zip(self._inputs, sample, strict=True):
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        if self._chosen is None:
            self._chosen = dict(self._choose(floats))
        values = {
            name: _arranged(self._real(detail), order).reshape(floats[name].shape)
            for name, (detail, order) in self._chosen.items()
            if name in floats
        }
        return values, [self._real(detail) for detail in self._outputs]

    def _edge_tensors(
        self, request: ExportRequest, details: Mapping[int, dict[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Tensors of the wanted nodes at the program's edges, whose names are the signature's."""
        nodes = as_module(torch.export.load(request.program)).graph.nodes
        inputs = [node.name for node in nodes if node.op == "placeholder"]
        (output,) = (node for node in nodes if node.op == "output")
        outputs = [leaf.name for leaf in pytree.tree_leaves(output.args) if hasattr(leaf, "name")]
        found = {name: [d] for name, d in zip(outputs, self._outputs, strict=True)}
        for name, detail in zip(inputs, self._inputs, strict=True):
            for operator in self._interpreter._get_ops_details():
                if operator["op_name"] == "QUANTIZE" and detail["index"] in operator["inputs"]:
                    found[name] = [details[int(operator["outputs"][0])]]
        return {name: tensors for name, tensors in found.items() if name in self._wanted}

    def _choose(
        self, floats: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, tuple[dict[str, Any], tuple[int, ...] | None]]]:
        """For each node the tensor that is it, and how its axes are to be ordered."""
        named = {name: list(found) for name, found in self._edges.items() if name in floats}
        for detail in self._details:
            for name in set(NODE_NAME.findall(detail["name"])) & self._wanted & floats.keys():
                named.setdefault(name, []).append(detail)
        for name, details in named.items():
            wanted = floats[name]
            best: tuple[float, Any] = (-np.inf, None)
            for detail in details:
                value = self._real(detail)
                if value.size != wanted.size or not value.size:
                    continue
                for order in _orders(value.shape, wanted.shape):
                    arranged = _arranged(value, order).reshape(wanted.shape)
                    best = max(
                        best, (_closeness(wanted, arranged), (detail, order)), key=lambda b: b[0]
                    )
            if best[1] is not None:
                yield name, best[1]

    def _real(self, detail: dict[str, Any]) -> np.ndarray:
        array: np.ndarray = self._interpreter.get_tensor(detail["index"])
        scales = detail["quantization_parameters"]["scales"]
        if array.dtype.kind == "f" or len(scales) != 1:
            return array
        zero_point = detail["quantization_parameters"]["zero_points"][0]
        real: np.ndarray = (array.astype(np.float32) - np.float32(zero_point)) * scales[0]
        return real


def _in_order(details: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """By the number at the end of the name; names sort as text."""
    return [details[name] for name in sorted(details, key=lambda n: int(n.rpartition("_")[2]))]


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
    for order in _LAYOUTS.get(len(shape), (None,)):
        arranged = shape if order is None else tuple(shape[axis] for axis in order)
        # Dimensions of length 1 come and go.
        if [n for n in arranged if n != 1] == [n for n in wanted if n != 1]:
            yield order


def _arranged(value: np.ndarray, order: tuple[int, ...] | None) -> np.ndarray:
    return value if order is None else value.transpose(order)


def _closeness(wanted: np.ndarray, given: np.ndarray) -> float:
    finite = np.where(np.isfinite(wanted), wanted, 0)[None]
    return quality.sqnr_db(finite, np.where(np.isfinite(wanted), given, 0)[None])
