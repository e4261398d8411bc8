"""Where the nodes of a program come from: the module in the model, and the line of its source.

``torch.export`` writes both into a node's metadata; preparation and the program's file keep them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from edgekit.quantize.check import Operator
from edgekit.quantize.prepare import as_module

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_USERS = ("/torch/nn/", "/torch/_", "/torch/fx/", "/torch/export/")
_GENERATED = "<eval_with_key>"
_MARK = "edgekit_node__"
_MARKED = re.compile(_MARK + r"(\w+)")


def operators(program: torch.export.ExportedProgram) -> list[Operator]:
    """Every operator call of a prepared program, in the order in which they run."""
    return operators_of(as_module(program))


def operators_of(gm: fx.GraphModule) -> list[Operator]:
    """As :func:`operators`, for the program as a module."""
    return [_operator(node) for node in calls(gm)]


def calls(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes that compute something; taking one of several results is no operator."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            yield node


def mark(program: torch.export.ExportedProgram) -> None:
    """Write into each operator call the name that it has in :func:`as_module`.

    The name goes where the module stack was, which every converter hands on to what it makes of the
    node; :func:`marked` reads it back.
    """
    named = [node.name for node in calls(as_module(program)) if node.users]
    used = [node for node in calls(program.graph_module) if node.users]
    for node, name in zip(used, named, strict=True):
        node.meta["nn_module_stack"] = {"edgekit": (f"{_MARK}{name}", "edgekit.Node")}


def marked(node: fx.Node) -> str | None:
    """The name that :func:`mark` wrote into the node that this one was made from."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        if path.startswith(_MARK):
            return str(path.removeprefix(_MARK))
    return None


def scope_of(scopes: str) -> str | None:
    """As :func:`marked`, from any text that a converter has written a module stack into."""
    found = _MARKED.search(scopes)
    return found[1] if found else None


def op_name(node: fx.Node) -> str:
    """``aten.conv2d`` for ``aten.conv2d.default``: overloads say nothing to a user."""
    return str(node.target).rpartition(".")[0]


def module_of(node: fx.Node) -> tuple[str, str]:
    """Dotted path and class name of the innermost module that a node was called in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    for path, kind in reversed(stack):
        name = kind if isinstance(kind, str) else kind.__name__
        if path:
            return _plain_path(path), name.rpartition(".")[2]
    return "", ""


def source_of(node: fx.Node) -> str:
    """``file:line`` of the innermost frame that is neither PyTorch's nor generated."""
    frames: list[Any] = _FRAME.findall(node.meta.get("stack_trace") or "")
    users = [f for f in frames if not any(part in f[0] for part in _NOT_THE_USERS)]
    for file, line in reversed(users or frames):
        if _GENERATED not in file:
            return f"{file}:{line}"
    return ""


def _operator(node: fx.Node) -> Operator:
    module, kind = module_of(node)
    return Operator(node.name, op_name(node), module, kind, source_of(node))


def _plain_path(path: str) -> str:
    """``L['self'].features.0`` as strict export writes it -> ``features.0``."""
    return re.sub(r"^L\['self'\]\.?|^L__self___?", "", path)
