"""Which value of an ONNX graph is the value of which node of the program it was exported from."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping

import onnx
import torch
from torch import fx

from edgekit.quantize.origins import scope_of
from edgekit.quantize.prepare import as_module
from edgekit.quantize.ranges import Range

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def name_after_nodes(graph: onnx.GraphProto, program: torch.export.ExportedProgram) -> None:
    """Call the ONNX value of each node of the program as the node; it was marked before its export.

    The exporter does so itself, but takes some operators apart first: what pooling becomes is
    called ``mean``, and the program's own ``mean`` then ``mean_1``.
    """
    marks = {node.name: node for node in _computed(as_module(program).graph)}
    nodes = dict(zip(marks, _named(program), strict=True))
    last: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        mark = scope_of(properties.get("pkg.torch.onnx.name_scopes", ""))
        if mark is not None:
            last[mark] = node
    names: dict[str, str] = {}
    for mark, made in last.items():
        if mark not in nodes:
            continue
        parts = [user for user in marks[mark].users if user.target is operator.getitem]
        if not parts and len(made.output) == 1:
            names[made.output[0]] = nodes[mark].name
        # Where several results come of several ONNX nodes, the exporter's names stay.
        for part in parts if len(made.output) > 1 else ():
            if part.name in nodes:
                names[made.output[int(str(part.args[1]))]] = nodes[part.name].name
    taken = set(names.values())
    for value in [name for node in graph.node for name in node.output]:
        if value in taken and value not in names:
            names[value] = f"{value}_part"
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for info in (*graph.value_info, *graph.output):
        info.name = names.get(info.name, info.name)


def values_by_node(
    graph: onnx.GraphProto, program: torch.export.ExportedProgram
) -> dict[str, tuple[str, ...]]:
    """The ONNX values of each node of the program as a module, as far as there are any.

    ONNX values are called as the program's nodes are. Calibration ran the program as a module,
    where a name that Python or a parameter already has is given a number; the order is the same.
    Inputs and outputs go by position, whatever they are called.
    """
    nodes = _computed(as_module(program).graph)
    names = {value.name: node.name for value, node in zip(_named(program), nodes, strict=True)}
    values = {name for node in graph.node for name in node.output}
    found = {node: [value] for value, node in names.items() if value in values}
    for edges, edge_names in (
        (graph.input, program.graph_signature.user_inputs),
        (graph.output, program.graph_signature.user_outputs),
    ):
        for edge, name in zip(edges, edge_names, strict=True):
            if name in names and edge.name not in found.setdefault(names[str(name)], []):
                found[names[str(name)]].append(edge.name)
    return {node: tuple(given) for node, given in found.items()}


def ranges_by_value(
    graph: onnx.GraphProto, values: Mapping[str, tuple[str, ...]], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """The calibrated range of each ONNX value that is the value of a node, or made by moving it."""
    found = {
        value: ranges[node] for node, given in values.items() if node in ranges for value in given
    }
    moves = [node for node in graph.node if node.op_type in _MOVES]
    for node in reversed(moves):
        if node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    for node in moves:
        if node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    return found


def computing(
    graph: onnx.GraphProto, values: Mapping[str, tuple[str, ...]], names: Collection[str]
) -> set[str]:
    """Names of the ONNX nodes that compute the named nodes of the program.

    A node of the program can be several ONNX nodes: those before its value that have no value of
    another node between.
    """
    producers = {name: node for node in graph.node for name in node.output}
    known = {name for given in values.values() for name in given}
    pending = [name for node in names for name in values.get(node, ())]
    found: set[str] = set()
    while pending:
        producer = producers.get(pending.pop())
        if producer is not None and producer.name not in found:
            found.add(producer.name)
            pending += [name for name in producer.input if name not in known]
    return found


def leave_float(graph: onnx.GraphProto, names: Collection[str]) -> list[str]:
    """The ONNX nodes of these names, prepared to stay float.

    Where quantized nodes read a float value beside others, they get a name of it for themselves,
    since onnxruntime would round it for all of its readers.
    """
    chosen = {node.name: node for node in graph.node if node.name in names}
    _rename_for_quantized(graph, chosen)
    return list(chosen)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Every ONNX node gets a name, by which onnxruntime's quantizer leaves it out."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def _rename_for_quantized(graph: onnx.GraphProto, chosen: Mapping[str, onnx.NodeProto]) -> None:
    outputs = {value.name for value in graph.output}
    kinds = {value.name: value for value in (*graph.value_info, *graph.output)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in [name for node in chosen.values() for name in node.output]:
        quantized = [node for node in readers.get(value, ()) if node.name not in chosen]
        if not quantized or (len(quantized) == len(readers[value]) and value not in outputs):
            continue
        alias = f"{value}_to_quantize"
        for node in quantized:
            for index, name in enumerate(node.input):
                if name == value:
                    node.input[index] = alias
        place = next(i for i, node in enumerate(graph.node) if value in node.output) + 1
        identity = onnx.helper.make_node("Identity", [value], [alias], name=f"{alias}_node")
        graph.node.insert(place, identity)
        if value in kinds:
            copied = graph.value_info.add()
            copied.CopyFrom(kinds[value])
            copied.name = alias


def _named(program: torch.export.ExportedProgram) -> list[fx.Node]:
    """As :func:`_computed`, for a program, whose weights are placeholders, too."""
    inputs = set(program.graph_signature.user_inputs)
    return [n for n in _computed(program.graph) if n.op != "placeholder" or n.name in inputs]


def _computed(graph: fx.Graph) -> list[fx.Node]:
    """Inputs and what is computed and used; a program's file also lists unused results."""
    return [
        node
        for node in graph.nodes
        if node.op == "placeholder" or (node.op == "call_function" and node.users)
    ]
