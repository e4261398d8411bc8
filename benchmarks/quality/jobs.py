"""The steps that load a framework, each called in a process of its own (:mod:`edgekit.isolate`)."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import sets
from benchmarks.quality.cases import CASES, TINY
from benchmarks.quality.judging import read_set
from edgekit import codec
from edgekit.types import TensorSpec


def prepare(payload: dict[str, Any]) -> None:
    """Write a case's sets, and train its model where that was not done yet."""
    case = next(case for case in (*CASES, TINY) if case.name == payload["case"])
    sets.write_sets(case, Path(payload["folder"]))
    _build(case.file, case.factory)


def vendor(payload: dict[str, Any]) -> None:
    """Run a vendor's script as its command line would."""
    name = f"benchmarks.vendors.{payload['script']}"
    sys.argv = [name, *payload["arguments"]]
    runpy.run_module(name, run_name="__main__")


def reference(payload: dict[str, Any]) -> list[Any]:
    """Run the float PyTorch model on a set; one .npy per output, stacked; returns their specs."""
    import torch

    module = _build(Path(payload["file"]), payload["factory"])
    stacks, _ = read_set(Path(payload["set"]))
    collected: list[list[np.ndarray]] = []
    with torch.inference_mode():
        for rows in zip(*stacks, strict=True):
            found = module(*(torch.from_numpy(np.ascontiguousarray(row)) for row in rows))
            tensors = torch.utils._pytree.tree_leaves(found)
            collected.append([tensor.numpy() for tensor in tensors])
    specs = []
    for i, outputs in enumerate(zip(*collected, strict=True)):
        np.save(Path(payload["folder"]) / f"reference-{i}.npy", np.stack(outputs))
        name = f"output_{i}" if len(collected[0]) > 1 else "output"
        specs.append(TensorSpec(name, outputs[0].shape, outputs[0].dtype.name))
    return list(codec.to_jsonable(specs))


def inspect(payload: dict[str, Any]) -> dict[str, Any]:
    """The INT8 share of a file, and of TFLite what it is fed and gives: other types than float32
    are possible there, and only the file says which and with which scale."""
    from edgekit.quantize.inspect import inspect_file

    path = Path(payload["path"])
    edges: dict[str, Any] = {"inputs": [], "outputs": []}
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path))
        signature, _ = next(iter(interpreter.get_signature_list().items()))
        runner = interpreter.get_signature_runner(signature)
        edges = {
            "inputs": _edges(runner.get_input_details()),
            "outputs": _edges(runner.get_output_details()),
        }
    return {**edges, "inspection": codec.to_jsonable(inspect_file(path))}


def _edges(details: dict[str, Any]) -> list[Any]:
    # By the number at the end of args_0, output_0: the order of the model's own.
    ordered = sorted(details.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    specs = []
    for name, detail in ordered:
        scale, zero_point = detail["quantization"]
        dtype = np.dtype(detail["dtype"]).name
        integer = dtype in ("int8", "uint8", "int16") and scale > 0
        specs.append(
            TensorSpec(
                name,
                tuple(int(size) for size in detail["shape"]),
                dtype,
                scale=float(scale) if integer else None,
                zero_point=int(zero_point) if integer else None,
            )
        )
    return list(codec.to_jsonable(specs))


def _build(file: Path, factory: str) -> Any:
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, factory)().eval()
