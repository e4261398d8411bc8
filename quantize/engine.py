"""The engine: from a loaded model to the programs that exporters convert.

Two steps, each leaving a folder: :func:`prepare_model` the cleaned-up float program, and
:func:`repair_program` the ranges and a program whose weights and biases are mended for INT8, as far
up the repair ladder as the budget needs. Both are the same for every runtime, so that artifacts
can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx

from edgekit import codec
from edgekit.data import SampleSet
from edgekit.errors import DataError, SourceError
from edgekit.quantize import graph, rewrites
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.equal import prove_equal
from edgekit.quantize.float_nodes import linear_layers
from edgekit.quantize.heads import joined_outputs
from edgekit.quantize.ladder import climb, replay
from edgekit.quantize.masks import masked_nodes
from edgekit.quantize.memory import affordable, input_bytes, live_bytes
from edgekit.quantize.pads import pads_beyond
from edgekit.quantize.prepare import (
    as_float32,
    as_module,
    export_program,
    prepare,
    re_export,
    run,
    with_constants,
)
from edgekit.quantize.ranges import Range, load_ranges, save_ranges
from edgekit.quantize.rungs import RUNGS
from edgekit.quantize.rungs.base import SimulatedJudge, Work, sample_at, spread
from edgekit.telling import counted
from edgekit.types import Metric, Recipe, RungResult, TensorSpec

PROGRAM = "program.pt2"
RANGES = "ranges.json"
#: The channels that are computed apart, where there are some.
APART = "apart.json"

#: Samples on which a rewritten program is compared with the one that it came from.
_CHECKED = 4
#: Quantization-aware training sees at most so many samples, spread over the set.
MAX_TRAINED = 512
#: The rung that does.
_TRAINING = "quantization_aware_training"

_ATTENTION = (
    graph.ATEN.softmax.int,
    graph.ATEN._softmax.default,
    graph.ATEN.scaled_dot_product_attention.default,
)

_DTYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_model` made. ``digest`` stands for program and weights.

    ``notes`` are for the user; ``ops`` are the operators of the program, ``rewrites`` those that
    would change something in it; ``is_transformer`` says that matrix products with constant weights
    and attention do most of the work.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    passes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    ops: tuple[str, ...]
    rewrites: tuple[str, ...]
    is_transformer: bool


def prepare_model(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    folder: Path,
) -> Prepared:
    """Export and clean up a model; writes ``program.pt2`` into ``folder``.

    A model in another float width is cast to float32, in place.

    Raises:
        SourceError: the model cannot be exported, or has inputs or outputs of an unknown dtype.
    """
    example_inputs, notes = as_float32(module, example_inputs)
    program, passes = prepare(export_program(module, example_inputs), example_inputs)
    torch.export.save(program, folder / PROGRAM)
    gm = as_module(program)
    with torch.inference_mode():
        results = gm(*example_inputs)
    leaves = [v for v in torch.utils._pytree.tree_leaves(results) if isinstance(v, torch.Tensor)]
    names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
    return Prepared(
        inputs=tuple(_spec(n, v) for n, v in zip(input_names, example_inputs, strict=True)),
        outputs=tuple(_spec(n, v) for n, v in zip(names, leaves, strict=True)),
        passes=passes,
        digest=_digest(program),
        notes=notes,
        ops=tuple(sorted({str(n.target) for n in gm.graph.nodes if n.op == "call_function"})),
        rewrites=rewrites.applicable(gm),
        is_transformer=_is_transformer(gm),
    )


@dataclass(frozen=True)
class RepairSettings:
    """What one INT8 recipe is to be made with.

    ``rungs`` are names in climbing order; ``replay`` skips the search and applies exactly the
    recipe's own steps, ranges and float nodes. ``metric`` None picks one from data and outputs.
    ``float_ops`` are operators (``aten.hardswish.default``) that stay float.
    """

    recipe: Recipe
    rungs: tuple[str, ...]
    max_drop: float
    metric: Metric | None = None
    float_ops: tuple[str, ...] = ()
    replay: bool = False


@dataclass(frozen=True)
class Repaired:
    """The recipe as it was really made, and what each rung gave.

    ``digest`` stands for all that exporters are given: program, weights, ranges and float nodes.
    """

    recipe: Recipe
    ladder: tuple[RungResult, ...]
    digest: str


def repair_program(
    program: Path,
    calibration: SampleSet | None,
    choose: SampleSet,
    settings: RepairSettings,
    calibrated: Path,
    saved: Path,
    folder: Path,
    *,
    train: SampleSet | None = None,
    on_step: Callable[[str], None] = lambda name: None,
) -> Repaired:
    """Calibrate and climb the ladder; writes ``program.pt2`` and ``ranges.json`` into ``folder``,
    and ``apart.json`` where channels are computed apart.

    Dynamic INT8 has no ranges, and without calibration samples no repair.

    Args:
        program: the prepared program.
        calibration: what ranges and repairs are made from; None for dynamic recipes only.
        choose: what rungs are judged on.
        settings: see there.
        calibrated: folder for ranges, which depend on the program and the calibration set only.
        saved: folder for what later runs with other budgets can use: rungs, sensitivities.
        folder: where the results go.
        train: what quantization-aware training may learn from.
        on_step: called with the name of each step before it starts, and every few seconds with how
            much of the calibration is done.

    Raises:
        DataError: the calibration set cannot be used.
        SourceError: a rewrite of the recipe changes what the program computes.
    """
    recipe = settings.recipe
    dynamic = recipe.scheme == "dynamic"
    exported = _rewritten(program, recipe.rewrites, choose)
    reference = as_module(exported)
    ranges: dict[str, Range] = {}
    float_nodes: set[str] = set()
    if not dynamic:
        if calibration is None:
            raise DataError(
                f"{recipe.name} needs real samples to calibrate on.",
                remedy="Give some: --calib PATH.",
            )
        on_step("calibrate")
        advance = counted(on_step, "calibrate", 2 * calibration.n)
        ranges = _ranges(reference, calibration, calibrated / RANGES, advance)
        float_nodes = lossy_nodes(reference, ranges)
    save_ranges(folder / RANGES, ranges)
    if calibration is None and recipe.steps:
        raise DataError(
            f"The saved recipe repairs weights on calibration samples ({', '.join(recipe.steps)}), "
            "and there are none.",
            remedy="Give the same ones: --calib PATH.",
        )
    if settings.replay and train is None and _TRAINING in recipe.steps:
        raise DataError(
            f"The saved recipe trains weights ({_TRAINING}), and there are no training samples.",
            remedy="Give the same ones: --train PATH.",
        )
    if calibration is None or (dynamic and not linear_layers(reference, ())):
        return _saved(exported, recipe, (), folder)
    calibrated_on, live = calibration, live_bytes(reference)

    def training() -> list[tuple[torch.Tensor, ...]]:
        if train is None:
            return []
        return list(samples(train, affordable(input_bytes(reference), MAX_TRAINED)))

    float_nodes |= {n.name for n in reference.graph.nodes if str(n.target) in settings.float_ops}
    judge = SimulatedJudge(reference, choose, settings.metric)
    work = Work(
        exported=exported,
        reference=reference,
        program=as_module(exported),
        ranges=ranges,
        kind=recipe.ranges,
        dtype=recipe.activations,
        float_nodes=frozenset(float_nodes),
        calibration=lambda limit: list(samples(calibrated_on, affordable(live, limit))),
        judge=judge,
        max_drop=settings.max_drop,
        notes=saved,
        dynamic=dynamic,
        training=training,
    )
    ladder: tuple[RungResult, ...] = ()
    if settings.replay:
        replay(work, recipe)
        steps = recipe.steps
    else:
        rungs = [RUNGS[name] for name in settings.rungs]
        rungs = [rung for rung in rungs if (rung.dynamic if dynamic else rung.static)]
        work.max_drop = judge.aim(settings.max_drop)
        steps, ladder = climb(work, rungs, saved, on_rung=on_step)
    made = replace(
        recipe, steps=steps, ranges=work.kind, float_nodes=tuple(sorted(work.float_nodes))
    )
    if work.apart is not None:
        (folder / APART).write_text(codec.to_json(work.apart), encoding="utf-8")
    return _saved(with_constants(work.exported, work.constants()), made, ladder, folder)


def _saved(
    program: torch.export.ExportedProgram,
    recipe: Recipe,
    ladder: tuple[RungResult, ...],
    folder: Path,
) -> Repaired:
    torch.export.save(program, folder / PROGRAM)
    ranges = (folder / RANGES).read_text(encoding="utf-8")
    parts = "\n".join([_digest(program), codec.to_json(recipe), ranges])
    return Repaired(recipe, ladder, hashlib.sha256(parts.encode()).hexdigest())


def _rewritten(
    program: Path, applied: Sequence[str], choose: SampleSet
) -> torch.export.ExportedProgram:
    """The prepared program with rewrites applied, checked to compute the same."""
    exported = torch.export.load(program)
    if not applied:
        return exported
    gm = as_module(torch.export.load(program))
    rewrites.apply(gm, applied)
    probes = list(samples(choose, _CHECKED))
    changed = re_export(gm, probes[0])
    names = [f"output {i}" for i in range(len(run(exported, probes[0])))]
    prove_equal(
        as_module(exported),
        as_module(changed),
        probes,
        names,
        f"rewriting it ({', '.join(applied)})",
    )
    return changed


def _ranges(
    reference: fx.GraphModule,
    calibration: SampleSet,
    path: Path,
    advance: Callable[[], object],
) -> dict[str, Range]:
    """The calibrated ranges, from an earlier run where there are some."""
    if path.is_file():
        return load_ranges(path)
    ranges = calibrate(reference, lambda: samples(calibration), advance=advance)
    save_ranges(path, ranges)
    return ranges


def lossy_nodes(reference: fx.GraphModule, ranges: Mapping[str, Range]) -> set[str]:
    """Nodes that INT8 cannot hold whatever the weights are."""
    extremes = {name: found.minmax for name, found in ranges.items()}
    return (
        masked_nodes(reference)
        | joined_outputs(reference, ranges)
        | pads_beyond(reference, extremes)
    )


def samples(source: SampleSet, limit: int | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
    """Input tuples with batch dimension; with a limit, so many spread evenly over the set."""
    for index in spread(source.n, source.n if limit is None else limit):
        yield sample_at(source, index)


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    if tensor.dtype not in _DTYPES:
        known = ", ".join(sorted(_DTYPES.values()))
        raise SourceError(
            f"The model's {name!r} is of dtype {str(tensor.dtype).removeprefix('torch.')}.",
            remedy=f"Cast it in forward() to one of: {known}.",
        )
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_DTYPES[tensor.dtype],
        layout="NCHW" if tensor.dim() == 4 else "",
    )


def _is_transformer(gm: fx.GraphModule) -> bool:
    """Whether attention occurs and linear layers hold most of the weights."""
    attends = any(node.target in _ATTENTION for node in gm.graph.nodes)
    sizes = {True: 0, False: 0}
    for layer in graph.layers(gm):
        is_linear = layer.node.target in graph.LINEARS
        sizes[is_linear] += graph.attribute(gm, layer.weight).numel()
    return attends and sizes[True] > sizes[False]


def _digest(program: torch.export.ExportedProgram) -> str:
    """SHA-256 over the graph and all constants; the ``.pt2`` file itself carries time stamps."""
    gm = as_module(program)
    digest = hashlib.sha256()
    for node in gm.graph.nodes:
        call = [node.op, node.name, str(node.target), str(node.args), str(node.kwargs)]
        digest.update(json.dumps(call).encode())
        if node.op == "placeholder":
            value = node.meta["val"]
            digest.update(str((value.dtype, tuple(value.shape))).encode())
        if node.op == "get_attr":
            value = graph.attribute(gm, str(node.target)).contiguous()
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
