"""Makes all files of a case: ours by the real pipeline, the others by the vendors' own scripts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.cases import Case
from benchmarks.quality.records import Side
from edgekit import codec, registry
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.files import write_atomic
from edgekit.isolate import Job, Outcome, run_isolated, run_many
from edgekit.project import Project
from edgekit.types import CandidateFailure, Inspection, TensorSpec

JOBS = "benchmarks.quality.jobs"
TIMEOUT_S = 900.0
MEMORY_BYTES = 10_000_000_000

#: Runtime -> its vendor's script in benchmarks/vendors, in the order in which all files are made.
VENDORS: Mapping[str, str] = {
    "executorch": "executorch_xnnpack",
    "tflite": "litert",
    "onnx": "onnx_runtime",
    "torchscript": "torchscript_fx",
}
#: Runtime and script of Olive's default pass; its package is optional.
OLIVE = ("onnx", "olive_default")

_SETTINGS = """\
schema = 1

[model]
name = "{name}"
source = "{file}:{factory}"

[data]
calib = "{sets}/calib.npz"
eval = "{sets}/choose.npz"
metric = "{metric}"

[quantize]
{recipes}{rungs}bundle = "bundle"

[budget]
max_drop = {max_drop}
"""


@dataclass(frozen=True)
class Made:
    """A file, or why there is none. The specs are those of the file itself, batch included."""

    side: Side
    runtime: str
    artifact: str
    path: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    inspection: Inspection | None = None
    failure: str = ""


def prepare(case: Case, folder: Path) -> None:
    """The case's three sets and, where it is trained, its model.

    Raises:
        EdgekitError: the photos or a package are missing.
    """
    _alone(folder, "prepare", case=case.name)


def make_ours(
    case: Case, folder: Path, sets: Path, factory: str = ""
) -> tuple[Bundle, Sequence[CandidateFailure]]:
    """The bundle that edgekit makes of the model, and the candidates that failed.

    Args:
        folder: of the project; what is in it already is not made again.
        sets: the folder of the case's sets.
        factory: another factory of the case's file than its own.

    Raises:
        EdgekitError: nothing could be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = _SETTINGS.format(
        name=factory or case.name,
        file=case.file,
        factory=factory or case.factory,
        sets=sets,
        metric=case.metric,
        recipes=_array("recipes", case.recipes),
        rungs=_array("rungs", case.rungs),
        max_drop=case.max_drop,
    )
    write_atomic(folder / "edgekit.toml", settings)
    outcome = Project.load(folder).quantize()
    return outcome.bundle, outcome.failures


def _array(key: str, names: Sequence[str]) -> str:
    """A line of TOML; nothing where there are no names, so that the default holds."""
    return f"{key} = [{', '.join(map(json.dumps, names))}]\n" if names else ""


def ours(bundle: Bundle, failures: Sequence[CandidateFailure]) -> list[Made]:
    """Every artifact of a bundle: the float twins and all INT8 variants."""
    made = [
        Made(
            side="float" if artifact.precision == "fp32" else "ours",
            runtime=artifact.runtime,
            artifact=artifact.id,
            path=bundle.path / artifact.path,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            inspection=artifact.inspection,
        )
        for artifact in bundle.manifest.artifacts
    ]
    for failure in failures:
        side: Side = "float" if "-fp32" in failure.candidate else "ours"
        made.append(Made(side, failure.runtime, failure.candidate, failure=failure.message))
    order = list(VENDORS)
    return sorted(made, key=lambda one: order.index(one.runtime))


def make_stock(case: Case, folder: Path, *, olive: bool) -> list[Made]:
    """What the vendors' scripts make, and Olive's default pass where ``olive`` says that it is
    installed; at most one script per core at a time. What was made before is not made again.

    Where a bar is on INT8's latency relative to float, the vendors' float files are made, too.
    """
    scripts: list[tuple[Side, str, str]] = [
        ("stock", runtime, script) for runtime, script in VENDORS.items()
    ]
    if olive:
        scripts.append(("olive", *OLIVE))
    with_float = bool(case.bars.latency)
    made = {script: _stock_file(folder, runtime, script) for _, runtime, script in scripts}
    jobs = []
    for _, _, script in scripts:
        out = made[script].parent
        if made[script].is_file():
            continue
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        arguments = [f"{case.file}:{case.factory}", str(folder / "calib.npz"), str(out)]
        if not with_float:
            arguments.append("--int8-only")
        if case.kind == "dynamic":
            arguments.append("--dynamic")
        payload = {"script": script, "arguments": arguments}
        jobs.append(_job(folder, "vendor", payload, name=script, threads=1))
    failed = _failures(jobs)
    found = []
    for side, runtime, script in scripts:
        if script in failed:
            found.append(Made(side, runtime, script, failure=failed[script].message))
        else:
            found.append(_inspected(folder, Made(side, runtime, script, made[script])))
        float_file = made[script].with_stem("fp32")
        if side == "stock" and with_float and float_file.is_file():
            found.append(Made("stock_float", runtime, f"{script}-fp32", float_file))
    return found


def reference(
    case: Case, folder: Path, role: str, factory: str = ""
) -> tuple[tuple[TensorSpec, ...], list[Path]]:
    """Outputs of the float PyTorch model on a set: their specs and .npy files, (n, *shape) each.

    Raises:
        EdgekitError: the model cannot be run.
    """
    out = folder / f"reference-{factory or case.factory}"
    out.mkdir(exist_ok=True)
    found = _alone(
        folder,
        "reference",
        file=str(case.file),
        factory=factory or case.factory,
        set=str(folder / f"{role}.npz"),
        folder=str(out),
    )
    specs = codec.from_json(tuple[TensorSpec, ...], found, where="reference")
    return specs, [out / f"reference-{i}.npy" for i in range(len(specs))]


def _stock_file(folder: Path, runtime: str, script: str) -> Path:
    return folder / "stock" / script / f"int8{registry.runtimes()[runtime].extension}"


def _failures(jobs: Sequence[Job]) -> dict[str, EdgekitError]:
    failed: dict[str, EdgekitError] = {}

    def on_done(outcome: Outcome) -> None:
        if outcome.error is not None:
            failed[outcome.job.name] = outcome.error

    run_many(jobs, max_workers=os.cpu_count() or 1, on_done=on_done)
    return failed


def _inspected(folder: Path, made: Made) -> Made:
    try:
        found = _alone(folder, "inspect", path=str(made.path))
    except EdgekitError as error:
        return Made(made.side, made.runtime, made.artifact, failure=error.message)
    return Made(
        made.side,
        made.runtime,
        made.artifact,
        made.path,
        inputs=codec.from_json(tuple[TensorSpec, ...], found["inputs"], where="inputs"),
        outputs=codec.from_json(tuple[TensorSpec, ...], found["outputs"], where="outputs"),
        inspection=codec.from_json(Inspection, found["inspection"], where="inspection"),
    )


def _alone(folder: Path, function: str, /, **payload: Any) -> Any:
    payload = {"folder": str(folder), **payload}
    return run_isolated(_job(folder, function, payload, threads=os.cpu_count() or 1))


def _job(
    folder: Path, function: str, payload: Mapping[str, Any], *, threads: int, name: str = ""
) -> Job:
    return Job(
        name=name or function,
        entry=f"{JOBS}:{function}",
        payload=payload,
        log=folder / "logs" / f"{name or function}.log",
        timeout_s=TIMEOUT_S,
        memory_bytes=MEMORY_BYTES,
        env={"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
