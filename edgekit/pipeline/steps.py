"""The steps of making a bundle, as functions that run in worker processes.

Each takes a JSON payload, fills one folder of the workspace and returns None; what came of it is
read from the folder. Heavy imports happen in here, never in the process that the user talks to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import codec
from edgekit.errors import SourceError
from edgekit.files import sha256_file
from edgekit.pipeline.step_results import (
    ARTIFACT,
    EvaluateResult,
    ExportResult,
    LoadResult,
    ReferenceResult,
    RepairResult,
    SetResult,
)
from edgekit.pipeline.workspace import load_result, making
from edgekit.telling import counted, tell
from edgekit.types import (
    EvalResult,
    Metric,
    Preprocess,
    RawTensor,
    Recipe,
    TensorSpec,
)

if TYPE_CHECKING:
    from edgekit.data import SampleSet
    from edgekit.quality import Array
    from edgekit.sources import LoadedModel

#: Samples on which the prepared program is compared with the eager model.
_CHECK_SAMPLES = 16


def load(payload: dict[str, Any]) -> None:
    """Load the model from its source, export and prepare it."""
    from edgekit.quantize.engine import prepare_model

    model = _load_model(payload)
    results: list[Any] = []
    with making(Path(payload["step"]), results) as folder:
        prepared = prepare_model(model.module, model.example_inputs, model.input_names, folder)
        results.append(
            LoadResult(
                inputs=prepared.inputs,
                outputs=prepared.outputs,
                weights_sha256=model.weights_sha256,
                program_digest=prepared.digest,
                passes=prepared.passes,
                dependencies=tuple((str(path), sha256_file(path)) for path in model.dependencies),
                notes=(*model.notes, *prepared.notes),
                ops=prepared.ops,
                rewrites=prepared.rewrites,
                is_transformer=prepared.is_transformer,
            )
        )


def read_sets(payload: dict[str, Any]) -> dict[str, Any]:
    """Read the sample sets and see to it that they are disjoint; returns SetResults by role."""
    from itertools import combinations

    from edgekit.data import check_disjoint, load_samples

    inputs = codec.from_json(tuple[TensorSpec, ...], payload["inputs"], where="inputs")
    given = payload["preprocess"]
    preprocess = codec.from_json(Preprocess, given, where="preprocess") if given else None
    sets = {
        role: load_samples(
            spec,
            inputs,
            preprocess,
            base=Path(payload["root"]),
            cache=Path(payload["cache"]),
            advance=counted(tell, f"{role} samples"),
        )
        for role, spec in payload["sets"].items()
    }
    for first, second in combinations(sets, 2):
        # What is trained on may be calibrated on: neither judges.
        if {first, second} != {"calibration", "train"}:
            check_disjoint(sets[first], sets[second])
    return {
        role: codec.to_jsonable(
            SetResult(str(s.path), s.id, s.n, s.labels is not None, s.class_names)
        )
        for role, s in sets.items()
    }


def reference(payload: dict[str, Any]) -> None:
    """What the eager float model gives on the evaluation and report sets."""
    import torch

    from edgekit import quality
    from edgekit.bundle import RawTensorWriter
    from edgekit.quantize.engine import samples
    from edgekit.quantize.equal import prove_equal
    from edgekit.quantize.prepare import as_float32, as_module, flatten

    model = _load_model(payload)
    if model.weights_sha256 != payload["weights_sha256"]:
        raise SourceError(
            f"{payload['source']['source']} gives other weights each time it is called.",
            remedy="Load trained weights in it, or seed every random generator that it uses.",
        )
    # As in preparation: the reference is the model at the precision of its float twins.
    as_float32(model.module, model.example_inputs)
    module = model.module
    outputs = codec.from_json(tuple[TensorSpec, ...], payload["outputs"], where="outputs")
    choose, report = _open_sets(payload)
    results: list[Any] = []
    with making(Path(payload["step"]), results) as folder:

        def eager(role: str, source: SampleSet) -> tuple[list[Array], tuple[RawTensor, ...]]:
            with ExitStack() as stack, torch.inference_mode():
                writers = [
                    stack.enter_context(
                        RawTensorWriter(
                            folder,
                            f"{role}-{i}.raw",
                            spec.name,
                            spec.dtype,
                            (source.n, *spec.shape),
                        )
                    )
                    for i, spec in enumerate(outputs)
                ]
                for sample in samples(source):
                    for writer, value in zip(writers, flatten(module(*sample)), strict=True):
                        writer.write(value.numpy())
                tensors = tuple(writer.finish() for writer in writers)
            return [_read_tensor(folder, tensor) for tensor in tensors], tensors

        sqnr_db = prove_equal(
            module,
            as_module(torch.export.load(payload["program"])),
            list(samples(choose, _CHECK_SAMPLES)),
            [spec.name for spec in outputs],
            "preparation",
        )
        golden, choose_files = eager("choose", choose)
        metric: Metric = payload["metric"] or quality.pick_metric(choose.labels, golden)
        report_stacks, report_files = eager("report", report) if report else ([], ())
        results.append(
            ReferenceResult(
                choose=choose_files,
                report=report_files,
                metric=metric,
                choose_value=quality.float_metric(metric, golden, choose.labels),
                report_value=quality.float_metric(metric, report_stacks, report.labels)
                if report
                else None,
                prepared_sqnr_db=sqnr_db,
            )
        )


def repair(payload: dict[str, Any]) -> None:
    """Calibrate the program of one INT8 recipe and climb the repair ladder."""
    from edgekit.data import open_samples
    from edgekit.quantize.engine import RepairSettings, repair_program

    calibrated, saved = Path(payload["calibrated"]), Path(payload["saved"])
    for kept in (calibrated, saved):
        kept.mkdir(parents=True, exist_ok=True)
        # Marks the folder as one to keep; each file or rung in it is complete or absent.
        (kept / "result.json").write_text("{}", encoding="utf-8")
    results: list[Any] = []
    with making(Path(payload["step"]), results) as folder:
        repaired = repair_program(
            Path(payload["program"]),
            open_samples(Path(payload["calibration"])) if payload["calibration"] else None,
            open_samples(Path(payload["choose"])),
            codec.from_json(RepairSettings, payload["settings"], where="settings"),
            calibrated,
            saved,
            folder,
            train=open_samples(Path(payload["train"])) if payload["train"] else None,
            on_step=tell,
        )
        results.append(RepairResult(repaired.recipe, repaired.ladder, repaired.digest))


def export(payload: dict[str, Any]) -> None:
    """Make one artifact and open it again to see what it holds.

    Another budget or another evaluation set climbs the ladder anew and often ends at the same
    program: what was made of it is taken again.
    """
    recipe = codec.from_json(Recipe, payload["recipe"], where="recipe")
    step = Path(payload["step"])
    if not payload["repaired"]:
        _export(payload, recipe, step)
        return
    found = (Path(payload["repaired"]) / "result.json").read_bytes()
    repaired = codec.from_json(RepairResult, found, where="repair")
    key = hashlib.sha256((payload["same"] + repaired.digest).encode()).hexdigest()
    made = step.with_name(f"artifact-{key[:24]}")
    result = load_result(ExportResult, made) or _export(payload, repaired.recipe, made)
    results: list[Any] = [result]
    with making(step, results) as folder:
        name = ARTIFACT + payload["extension"]
        try:
            os.link(made / name, folder / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(made / name, folder / name)


def _export(payload: dict[str, Any], recipe: Recipe, step: Path) -> ExportResult:
    import torch

    from edgekit.quantize.base import ExportRequest, example_inputs
    from edgekit.quantize.base import export as make
    from edgekit.quantize.inspect import inspect_file
    from edgekit.quantize.prepare import as_module
    from edgekit.quantize.promise import promised_share

    results: list[Any] = []
    with making(step, results) as folder:
        request = ExportRequest(
            runtime=payload["runtime"],
            recipe=recipe,
            program=Path(payload["program"]),
            inputs=codec.from_json(tuple[TensorSpec, ...], payload["inputs"], where="inputs"),
            out=folder / (ARTIFACT + payload["extension"]),
            ranges=Path(payload["ranges"]) if payload["ranges"] else None,
            calibration=Path(payload["calibration"]) if payload["calibration"] else None,
        )
        versions = make(request)
        gm = as_module(torch.export.load(request.program))
        result = ExportResult(
            recipe=recipe,
            promised_share=promised_share(gm, example_inputs(request.inputs), recipe),
            tool_versions=versions,
            inspection=inspect_file(request.out),
            sha256=sha256_file(request.out),
            size_bytes=request.out.stat().st_size,
        )
        results.append(result)
    return result


def evaluate(payload: dict[str, Any]) -> None:
    """Run one artifact on this machine over the evaluation and report sets."""
    from edgekit.targets.measure import HostMeasurer

    outputs = codec.from_json(tuple[TensorSpec, ...], payload["outputs"], where="outputs")
    reference_step = Path(payload["reference"])
    found = codec.from_json(
        ReferenceResult, (reference_step / "result.json").read_bytes(), where="reference"
    )
    choose, report = _open_sets(payload)
    measurer = HostMeasurer(timeout_s=payload["timeout_s"])
    results: list[Any] = []

    with making(Path(payload["step"]), results) as folder:

        def judge(
            source: SampleSet, tensors: tuple[RawTensor, ...]
        ) -> tuple[EvalResult, list[Array]]:
            given = measurer.outputs(
                Path(payload["artifact"]),
                payload["runtime"],
                source.inputs,
                outputs,
                workdir=folder,
            )
            wanted = [_read_tensor(reference_step, tensor) for tensor in tensors]
            names = [spec.name for spec in outputs]
            result = _quality(payload["id"], found.metric, names, wanted, given, source.labels)
            return result, given

        chosen, golden = judge(choose, found.choose)
        files = _write_tensors(folder, "golden", outputs, golden)
        reported = judge(report, found.report)[0] if report else None
        _remove_folders(folder)
        results.append(EvaluateResult(chosen, reported, files))


def _quality(
    artifact_id: str,
    metric: Metric,
    names: Sequence[str],
    wanted: Sequence[Array],
    given: Sequence[Array],
    labels: Array | None,
) -> EvalResult:
    from edgekit import quality

    return EvalResult(
        artifact_id=artifact_id,
        drop=quality.metric_drop(metric, wanted, given, labels),
        top1_agreement=quality.agreement(metric, wanted[0], given[0]),
        outputs=quality.output_quality(names, wanted, given),
    )


def _load_model(payload: dict[str, Any]) -> LoadedModel:
    """Load the model. Two processes do, so random weights have to come out the same."""
    import random

    import numpy as np
    import torch

    from edgekit import sources

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    given = payload["source"]
    return sources.load(
        sources.SourceSpec(
            source=given["source"],
            root=Path(given["root"]),
            name=given["name"],
            weights=Path(given["weights"]) if given["weights"] else None,
            unsafe_weights=given["unsafe_weights"],
            inputs=tuple(tuple(shape) for shape in given["inputs"]),
            example=given["example"],
        )
    )


def _open_sets(payload: dict[str, Any]) -> tuple[SampleSet, SampleSet | None]:
    from edgekit.data import open_samples

    report = payload["report"]
    return open_samples(Path(payload["choose"])), open_samples(Path(report)) if report else None


def _write_tensors(
    folder: Path, prefix: str, specs: Iterable[TensorSpec], stacks: Iterable[Array]
) -> tuple[RawTensor, ...]:
    from edgekit.bundle import write_raw_tensor

    return tuple(
        write_raw_tensor(folder, f"{prefix}-{i}.raw", spec.name, stack)
        for i, (spec, stack) in enumerate(zip(specs, stacks, strict=True))
    )


def _read_tensor(folder: Path, tensor: RawTensor) -> Array:
    import numpy as np

    return np.memmap(folder / tensor.path, tensor.dtype, mode="r", shape=tensor.shape)


def _remove_folders(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
