"""The extension points on one page: runtimes, model sources and transports, by name.

A built-in is one line in a table below. A package of somebody else's adds its own through the
entry-point groups ``edgekit.runtimes`` (value: a :class:`RuntimeEntry`), ``edgekit.sources``
(value: a load function) and ``edgekit.targets`` (value: a transport class); they are read on first
use, and nothing here imports a framework.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.errors import UsageError
from edgekit.suggest import did_you_mean

Group = Literal["runtimes", "sources", "targets"]


@dataclass(frozen=True, slots=True)
class RuntimeEntry:
    """One runtime: how its files are made, opened and run.

    ``exporter``, ``inspector`` and ``checker`` are ``module:function``; ``runner`` is the name of
    the program in ``targets/agent``; ``extra`` is the pip extra that brings ``packages``, the
    import names that exporting needs; ``extension`` starts with a dot. ``legacy`` marks a format
    that upstream has deprecated. ``recipes`` are the names of those that its exporter makes: the
    others are not planned for it.
    """

    extra: str
    extension: str
    exporter: str
    inspector: str
    runner: str
    label: str
    packages: tuple[str, ...] = ()
    legacy: bool = False
    recipes: tuple[str, ...] = ("fp32", "static_wi8_ai8")
    checker: str = ""
    debugger: str = ""


RUNTIMES: dict[str, RuntimeEntry] = {
    "executorch": RuntimeEntry(
        extra="executorch",
        extension=".pte",
        exporter="edgekit.quantize.to_executorch:export",
        inspector="edgekit.quantize.inspect_executorch:inspect",
        checker="edgekit.quantize.check_executorch:check",
        debugger="edgekit.quantize.debug_executorch:open_reader",
        runner="executorch_runner",
        label="ExecuTorch",
        packages=("torch", "torchao", "executorch.exir"),
        recipes=("fp32", "static_wi8_ai8", "dynamic_wi8_afp32"),
    ),
    "tflite": RuntimeEntry(
        extra="tflite",
        extension=".tflite",
        exporter="edgekit.quantize.to_tflite:export",
        inspector="edgekit.quantize.inspect_tflite:inspect",
        checker="edgekit.quantize.check_tflite:check",
        debugger="edgekit.quantize.debug_tflite:open_reader",
        runner="run_tflite",
        label="TFLite (LiteRT)",
        packages=("torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        recipes=(
            "fp32",
            "static_wi8_ai8",
            "static_wi8_ai16",
            "dynamic_wi8_afp32",
            "weight_only_wi8_afp32",
        ),
    ),
    "onnx": RuntimeEntry(
        extra="onnx",
        extension=".onnx",
        exporter="edgekit.quantize.to_onnx:export",
        inspector="edgekit.quantize.inspect_onnx:inspect",
        checker="edgekit.quantize.check_onnx:check",
        debugger="edgekit.quantize.debug_onnx:open_reader",
        runner="run_onnx",
        label="ONNX Runtime",
        packages=("torch", "onnx", "onnxscript", "onnxruntime"),
        recipes=("fp32", "static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32"),
    ),
    "torchscript": RuntimeEntry(
        extra="torchscript",
        extension=".pt",
        exporter="edgekit.quantize.to_torchscript:export",
        inspector="edgekit.quantize.inspect_torchscript:inspect",
        checker="edgekit.quantize.check_torchscript:check",
        debugger="edgekit.quantize.debug_torchscript:open_reader",
        runner="run_torchscript",
        label="torchscript (legacy)",
        packages=("torch", "torchao"),
        legacy=True,
        recipes=("fp32", "static_wi8_ai8", "dynamic_wi8_afp32"),
    ),
}

SOURCES: dict[str, str] = {
    "python": "edgekit.sources.python:load",
    "pt2": "edgekit.sources.pt2:load",
    "timm": "edgekit.sources.timm:load",
    "torchvision": "edgekit.sources.torchvision:load",
}

TRANSPORTS: dict[str, str] = {
    "local": "edgekit.targets.local:LocalTransport",
    "ssh": "edgekit.targets.ssh:SshTransport",
    "virtual": "edgekit.targets.virtual.transport:VirtualTransport",
}

RECIPES: tuple[str, ...] = (
    "fp32",
    "static_wi8_ai8",
    "static_wi8_ai16",
    "dynamic_wi8_afp32",
    "weight_only_wi8_afp32",
)

#: In climbing order.
RUNGS: tuple[str, ...] = (
    "outlier_channels",
    "bias_correction",
    "hessian_rounding",
    "ranges",
    "adaptive_rounding",
    "float_layers",
    "quantization_aware_training",
)


@functools.cache
def _outside(group: Group) -> dict[str, str]:
    """Entry points of other packages: name -> "module:attr". Refuses two of one name."""
    import importlib.metadata

    tables: dict[Group, frozenset[str]] = {
        "runtimes": frozenset(RUNTIMES),
        "sources": frozenset(SOURCES),
        "targets": frozenset(TRANSPORTS),
    }
    found: dict[str, str] = {}
    for point in importlib.metadata.entry_points(group=f"edgekit.{group}"):
        if point.name in tables[group] or found.get(point.name, point.value) != point.value:
            owner = point.dist.name if point.dist is not None else point.value
            raise UsageError(
                f"The package {owner} defines {point.name!r} in edgekit.{group} a second time.",
                remedy=f"Uninstall {owner} or the other package that defines it.",
            )
        found[point.name] = point.value
    return found


def load_object(reference: str) -> Any:
    """The object that ``"package.module:attribute"`` names; imports the module."""
    module, _, attribute = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _load_outside(group: Group, name: str, reference: str) -> Any:
    try:
        return load_object(reference)
    except Exception as error:
        raise UsageError(
            f"{name!r} of entry-point group edgekit.{group} cannot be loaded: {error}",
            remedy="Update or uninstall the package that provides it.",
        ) from error


@functools.cache
def runtimes() -> Mapping[str, RuntimeEntry]:
    """All runtimes by name, those of other packages included."""
    found = dict(RUNTIMES)
    for name, reference in _outside("runtimes").items():
        entry = _load_outside("runtimes", name, reference)
        if not isinstance(entry, RuntimeEntry):
            raise UsageError(
                f"{reference} (runtime {name!r}) is not a RuntimeEntry.",
                remedy="Update or uninstall the package that provides it.",
            )
        found[name] = entry
    return found


def sources() -> Mapping[str, str]:
    """All model sources: name -> ``"module:function"``."""
    return {**SOURCES, **_outside("sources")}


def transports() -> Mapping[str, str]:
    """All transports: name -> ``"module:class"``."""
    return {**TRANSPORTS, **_outside("targets")}


def names(group: Group) -> tuple[str, ...]:
    """The known names of a group, built-ins first."""
    if group == "runtimes":
        return tuple(runtimes())
    return tuple(sources() if group == "sources" else transports())


def load(group: Group, name: str) -> Any:
    """Import what is registered: a RuntimeEntry, a source's load function or a transport class.

    Raises:
        UsageError: the name is unknown (with suggestions) or another package's object is broken.
    """
    known = names(group)
    if name not in known:
        what = {"runtimes": "runtime", "sources": "model source", "targets": "transport"}[group]
        raise UsageError(
            f"Unknown {what} {name!r}.",
            remedy=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip(),
        )
    if group == "runtimes":
        return runtimes()[name]
    outside = _outside(group).get(name)
    if outside is not None:
        return _load_outside(group, name, outside)
    return load_object((SOURCES if group == "sources" else TRANSPORTS)[name])
