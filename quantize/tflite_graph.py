"""What of a converted ``.tflite`` file belongs to which node of the program.

Each operator was converted under the name of its node, which its output tensors carry. Operators
that the converter added to change the layout have no node of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter, OpResolverType

NODE_CLASS = "edgekit.Node"
NODE_NAME = re.compile(re.escape(NODE_CLASS) + r"_(\w+)")

_MOVES = (
    "RESHAPE",
    "TRANSPOSE",
    "SLICE",
    "STRIDED_SLICE",
    "SQUEEZE",
    "EXPAND_DIMS",
    "SPLIT",
    "SPLIT_V",
    "UNPACK",
    "BROADCAST_TO",
)


def operators_of(
    model: Path, names: Collection[str], layers: Collection[str], returned: Sequence[str]
) -> list[str]:
    """The operators of the named nodes, and those that only move what these give.

    Args:
        model: the converted file.
        names: nodes of the program.
        layers: nodes of the program with weights, into which others may have been folded.
        returned: the nodes whose values the program returns, in order.

    Returns:
        The names of their first output tensors.
    """
    interpreter = Interpreter(
        str(model),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    operators = interpreter._get_ops_details()
    produced = {int(index) for op in operators for index in op["outputs"]}
    outputs = dict(zip(_output_tensors(interpreter), returned, strict=True))
    chosen: set[int] = set()
    found = []
    for op in operators:
        made = [int(index) for index in op["outputs"]]
        computed = {int(index) for index in op["inputs"]} & produced
        tensor = str(interpreter._get_tensor_details(made[0], 0)["name"])
        moved = op["op_name"] in _MOVES and bool(computed) and computed <= chosen
        nodes = [outputs[made[0]]] if made[0] in outputs else NODE_NAME.findall(tensor)
        # The node whose value it is comes first; behind it are those that it was merged with and
        # others that happen to share a constant.
        own = [node for i, node in enumerate(nodes) if i == 0 or node in layers]
        if moved or not set(own).isdisjoint(names):
            chosen.update(made)
            found.append(tensor)
    return found


def _output_tensors(interpreter: Interpreter) -> list[int]:
    """Indices of the outputs in the order of the model's."""
    (signature,) = interpreter.get_signature_list()
    details = interpreter.get_signature_runner(signature).get_output_details()
    return [
        int(details[name]["index"])
        for name in sorted(details, key=lambda name: int(name.rpartition("_")[2]))
    ]
