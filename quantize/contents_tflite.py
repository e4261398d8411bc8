"""TFLite: operators by what XNNPACK takes, and the versions of operators that the file asks for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.contents import Contents, Placement, describe
from edgekit.quantize.inspect_tflite import Graph, delegated, schema_names

_MINIMUM = "min_runtime_version"


class _Code(fb.Table):
    version = fb.Scalar(2, "i")


class _Buffer(fb.Table):
    data = fb.Blob(0)


class _Metadata(fb.Table):
    name = fb.Text(0)
    buffer = fb.Scalar(1, "I")


class _Model(fb.Table):
    identifier = b"TFL3"
    operator_codes = fb.Many(1, _Code)
    buffers = fb.Many(4, _Buffer)
    metadata = fb.Many(6, _Metadata)


def contents(path: Path) -> Contents:
    """The main graph, as this machine's LiteRT splits it."""
    types, builtins = schema_names()
    data = memoryview(path.read_bytes())
    graph = Graph(data, types, builtins)
    placed: dict[Placement, Counter[str]] = {"delegate": Counter(), "fallback": Counter()}
    try:
        inside = delegated(path, len(graph.names))
    except (RuntimeError, ValueError):
        placed = {"unknown": Counter(graph.names)}
    else:
        for index, name in enumerate(graph.names):
            placed["delegate" if index in inside else "fallback"][name] += 1
    parts = {f"{kind} constants": size for kind, size in graph.weights.items()}
    return describe(path, placed, parts, _needs(_Model.root(data), graph))


def _needs(model: _Model, graph: Graph) -> list[str]:
    versions: dict[str, int] = {}
    for name, operator in zip(graph.names, graph.operators, strict=True):
        code = fb.item(model.operator_codes, operator.opcode_index, "operator code")
        # The default is not stored.
        versions[name] = max(versions.get(name, 1), code.version or 1)
    needs = []
    for entry in model.metadata:
        if entry.name == _MINIMUM:
            buffer = fb.item(model.buffers, entry.buffer, "buffer")
            version = bytes(buffer.data).rstrip(b"\0").decode("ascii", "replace")
            # Quantizers change operators and leave what the converter has written.
            needs.append(f"a TFLite runtime of version {version} or newer, as its converter wrote")
    above = {name: version for name, version in versions.items() if version > 1}
    if above:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(above.items()))
        needs.append(f"operators of these versions: {listed}")
    return needs
