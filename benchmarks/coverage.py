"""Which torchvision architectures become working artifacts: architectures x runtimes x precisions.

Each architecture, with seeded random weights and batch norms that have the statistics of their
inputs, goes through `edgekit quantize` in a process of its own: calibrated and judged on a few
seeded inputs, float and INT8, for every runtime, within a budget of a quarter of the outputs'
variance. A cell is ok when its file was made, ran on this machine and is what it is called: a float
file gives the eager model's outputs to 90 dB, an INT8 file has the int8 share that its recipe
promises (else it counts as failed there) and keeps the budget: untrained networks are no measure of
accuracy, but something of them has to be left. Results are kept in a folder, by
architecture and version of the code, so that a run that was cut off goes on where it was; an
architecture that took too long is tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from benchmarks.models import untrained
from edgekit import registry
from edgekit.pipeline.workspace import environment

ROOT = Path(__file__).resolve().parents[1]
#: Architectures with the side of their square input: small where global pooling ends the network,
#: the usual one where a fixed head, window or position table makes another unrealistic.
ARCHITECTURES = {
    "alexnet": 224,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 224,
    "swin_v2_t": 256,
    "vgg11_bn": 224,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}
#: Their INT8 is dynamic: what flows between their layers has outliers that one scale cannot hold.
TRANSFORMERS = {"maxvit_t", "swin_t", "swin_v2_t", "vit_b_32"}
#: What `--quick` runs: one that has no variants and is small.
QUICK = ("squeezenet1_1",)
STATIC, DYNAMIC = "static_wi8_ai8", "dynamic_wi8_afp32"
MIN_SHARE = 0.95
MIN_FLOAT_DB = 90.0
#: Squared error of INT8 outputs, relative to their variance: a constant output loses all of it.
MAX_DROP = 0.25
#: Each batch norm's bias, in standard deviations of what it gives. With none, random layers with
#: batch norm and ReLU move inputs that are alike away from each other, layer by layer, until deep
#: networks make an error of the outputs' size of any rounding. Trained networks do not.
_OPEN = 1.0
#: To settle batch norms and to calibrate; to judge.
CALIBRATED, JUDGED = 16, 4
#: Seed of the inputs that the batch norms see: those of no other set.
SETTLED = 10**6
TIMEOUT_S = 900.0
#: How the message begins that says so.
_TOO_LONG = "took more than"


@dataclass(frozen=True)
class Cell:
    """One architecture for one runtime in one precision; ``cause`` says why it is not ok."""

    runtime: str
    precision: str
    sqnr_db: float | None
    cause: str = ""

    @property
    def ok(self) -> bool:
        return not self.cause


@dataclass(frozen=True)
class Result:
    """What one architecture gave."""

    architecture: str
    seconds: float
    cells: tuple[Cell, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("coverage", __doc__.splitlines()[0])
    parser.add_argument("--archs", help="architectures, separated by commas; default: all")
    parser.add_argument(
        "--timeout-s", type=float, default=TIMEOUT_S, help=f"per architecture; {TIMEOUT_S:g}"
    )
    parser.add_argument("--work", type=Path, help="the folder in which results are kept")
    options = parser.parse_args(arguments)
    names = list(QUICK) if options.quick else list(ARCHITECTURES)
    if options.archs:
        names = [name.strip() for name in options.archs.split(",")]
        unknown = sorted(set(names) - set(ARCHITECTURES))
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ARCHITECTURES)}")
    before = conditions(
        "edgekit", "torch", "torchvision", "executorch", "litert-torch", "onnxruntime"
    )
    work = options.work or Path(tempfile.gettempdir()) / f"edgekit-coverage-{os.getuid()}"
    results = []
    for name in names:
        result = measure(name, work, options.seed, options.timeout_s)
        results.append(result)
        good = sum(cell.ok for cell in result.cells)
        print(
            f"{name}: {good} of {len(result.cells)} in {result.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return finish(evaluate(results, before), as_json=options.json, quick=options.quick)


def measure(name: str, work: Path, seed: int, timeout_s: float) -> Result:
    """One architecture; read from ``work`` where this version of the code has done it before."""
    key = hashlib.sha256(json.dumps([environment(), ARCHITECTURES[name], seed]).encode())
    kept = work / f"{name}-{key.hexdigest()[:16]}.json"
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        return Result(**{**found, "cells": tuple(Cell(**cell) for cell in found["cells"])})
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=work) as folder:
        document = quantize(name, Path(folder), seed, timeout_s)
    result = Result(name, time.monotonic() - started, tuple(cells(name, document)))
    if not str(document.get("error", {}).get("message", "")).startswith(_TOO_LONG):
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(asdict(result)), encoding="utf-8")
        part.replace(kept)
    return result


def quantize(name: str, folder: Path, seed: int, timeout_s: float) -> dict[str, Any]:
    """The JSON document that `edgekit quantize` prints for an architecture."""
    side = ARCHITECTURES[name]
    for offset, (role, count) in enumerate((("calib", CALIBRATED), ("eval", JUDGED))):
        np.savez(folder / f"{role}.npz", input=noise(count, side, 2 * seed + offset))
    make_weights(name, folder / "weights.pt")
    command = [sys.executable, "-m", "edgekit", "quantize", f"torchvision:{name}", "--json"]
    command += ["--weights", "weights.pt"]
    command += ["--input", f"1x3x{side}x{side}", "--calib", "calib.npz", "--eval", "eval.npz"]
    command += ["--recipes", ",".join(recipes(name)), "--metric", "relative_error"]
    command += ["--max-drop", str(MAX_DROP)]
    command += ["--timeout-s", str(timeout_s)]
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            text, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {"error": {"message": f"{_TOO_LONG} {timeout_s:g} s"}}
        finally:
            if process.poll() is None:
                # Its workers end with it.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        document = {"error": {"message": f"exit code {process.returncode}: {' '.join(tail)}"}}
    return document


def make_weights(name: str, file: Path) -> None:
    """As torchvision makes them, batch norms let the activations fade until INT8 has none left."""
    import torch
    from torch import nn

    side = ARCHITECTURES[name]
    images = torch.from_numpy(noise(CALIBRATED, side, SETTLED)[:, 0])
    network = untrained.network(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, _OPEN)
    torch.save(untrained.settle(network, images).state_dict(), file)


def noise(n: int, side: int, seed: int) -> np.ndarray:
    """Smooth random images, normalised as photos are; float32, (n, 1, 3, side, side)."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(n, 1, 3, side // 8, side // 8))
    fine = np.repeat(np.repeat(coarse, 8, axis=-1), 8, axis=-2)
    return (fine + 0.2 * random.normal(size=fine.shape)).astype(np.float32)


def recipes(name: str) -> tuple[str, ...]:
    """Float, and the kinds of INT8 that some runtime is to have of this architecture."""
    wanted = {int8_recipe(name, runtime) for runtime in registry.RUNTIMES}
    return ("fp32", *sorted(wanted))


def int8_recipe(name: str, runtime: str) -> str:
    """Dynamic INT8 for transformers where the runtime has it, else static."""
    has_dynamic = DYNAMIC in registry.RUNTIMES[runtime].recipes
    return DYNAMIC if name in TRANSFORMERS and has_dynamic else STATIC


def cells(name: str, document: dict[str, Any]) -> Iterable[Cell]:
    """Every runtime in both precisions, judged by what `edgekit quantize` said."""
    error = document.get("error")
    failures = {f["candidate"]: f for f in document.get("failures", ())}
    found = {
        result["artifact_id"]: result
        for evaluation in document.get("evals", ())
        for result in evaluation["results"]
    }
    for runtime in registry.RUNTIMES:
        for precision, recipe in (("fp32", "fp32"), ("int8", int8_recipe(name, runtime))):
            made = f"{name}-{runtime}-{recipe}"
            result, cause, sqnr_db = found.get(made), "", None
            if result is not None:
                sqnr_db = min(output["sqnr_db"] for output in result["outputs"])
            if error:
                cause = str(error["message"])
            elif made in failures:
                cause = f"{failures[made]['stage']}: {failures[made]['message']}"
            elif result is None or sqnr_db is None:
                cause = "there is no such artifact"
            elif precision == "fp32" and not sqnr_db >= MIN_FLOAT_DB:
                cause = f"agrees with eager to {sqnr_db:.1f} dB only"
            elif precision == "int8" and not result["drop"] <= MAX_DROP:
                cause = f"loses {result['drop']:.0%} of its outputs' variance"
            yield Cell(runtime, precision, sqnr_db, cause)


def evaluate(results: Sequence[Result], before: dict[str, str]) -> Report:
    """A row per architecture, a cause per failed cell, and the share that is ok."""
    every = [cell for result in results for cell in result.cells]
    share = sum(cell.ok for cell in every) / len(every)
    columns = [f"{r} {p}" for r in registry.RUNTIMES for p in ("fp32", "int8")]
    return Report(
        name="coverage",
        columns=["architecture", *columns, "s"],
        rows=[[r.architecture, *map(_shown, r.cells), f"{r.seconds:.0f}"] for r in results],
        bars=[Bar("share of cells that failed", 1 - share, 1 - MIN_SHARE, timing=False)],
        notes=[
            f"{share:.1%} of {len(every)} cells are ok; figures are SQNR in dB of the worst output",
            *(
                f"{result.architecture} {cell.runtime} {cell.precision}: {cell.cause}"
                for result in results
                for cell in result.cells
                if not cell.ok
            ),
        ],
        conditions=before,
        samples={
            f"{result.architecture}, {cell.runtime} {cell.precision}, sqnr_db": [cell.sqnr_db]
            for result in results
            for cell in result.cells
            if cell.sqnr_db is not None
        },
    )


def _shown(cell: Cell) -> str:
    return f"{cell.sqnr_db:.0f}" if cell.ok and cell.sqnr_db is not None else "FAILED"


if __name__ == "__main__":
    # What it started is in a session of its own, and ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
