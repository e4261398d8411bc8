"""What the quantization engine costs on the example's model: seconds, memory, and what it reuses.

python -m benchmarks.engine [PROJECT] [--json] [--quick]

In one process: preparation, calibration, bias correction and rounding with an accuracy budget; the
same with another budget, which has to reuse all of it; then both again with layers left in float,
where the second has to reuse the layers' sensitivities. Loading the model and reading the photos
are not part of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from edgekit.targets.agent.runner_core import peak_rss_bytes

if TYPE_CHECKING:
    from edgekit.config import ProjectConfig
    from edgekit.data import SampleSet
    from edgekit.sources import SourceSpec
    from edgekit.types import RungResult

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"

_ENGINE_S = 45.0
_ENGINE_GB = 3.0
_CHEAP = ("bias_correction", "hessian_rounding")
#: No simulated drop is below the first, so that every rung is climbed; the second is another one.
_BUDGETS = (-1.0, -0.5)


@dataclass
class Engine:
    """A prepared model with its sample sets and the recipe that is looked at; ``seconds`` are those
    of each step so far."""

    folder: Path
    calibration: SampleSet
    choose: SampleSet
    train: SampleSet | None = None
    recipe: str = "static_wi8_ai8"
    seconds: dict[str, float] = field(default_factory=dict)

    def repair(self, what: str, rungs: Sequence[str], max_drop: float) -> tuple[RungResult, ...]:
        """Calibrate and climb all of these rungs that the budget asks for."""
        from edgekit.quantize.engine import PROGRAM, RepairSettings, repair_program
        from edgekit.quantize.recipes import RECIPES

        settings = RepairSettings(RECIPES[self.recipe], tuple(rungs), max_drop)
        made = self.folder / f"made-{len(self.seconds)}"
        made.mkdir()
        with self.timed(what):
            repaired = repair_program(
                self.folder / PROGRAM,
                self.calibration,
                self.choose,
                settings,
                self.folder,
                self.folder,
                made,
                train=self.train,
                on_step=lambda name: print(f"{what}: {name} ...", file=sys.stderr, flush=True),
            )
        return repaired.ladder

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - started

    def kept(self) -> dict[str, int]:
        """Ranges, states of the ladder and sensitivities, by the time at which each was made."""
        names = ("ranges.json", "sensitivities.json", "rungs-*/*.json")
        found = [path for name in names for path in self.folder.glob(name)]
        return {str(path.relative_to(self.folder)): path.stat().st_mtime_ns for path in found}


def prepared(project: Path, folder: Path) -> Engine:
    """The model of a project, prepared in ``folder``, and its sets."""
    import torch

    from edgekit import sources
    from edgekit.config import ProjectConfig
    from edgekit.data import load_samples
    from edgekit.quantize.engine import prepare_model

    config = ProjectConfig.load(project)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = sources.load(_source(config))
    started = time.monotonic()
    found = prepare_model(model.module, model.example_inputs, model.input_names, folder)
    seconds = time.monotonic() - started

    def load(path: str | None) -> SampleSet:
        return load_samples(
            str(path), found.inputs, config.preprocess, base=config.root, cache=folder / "samples"
        )

    data = config.data
    engine = Engine(folder, load(data.calib), load(data.eval))
    engine.seconds["preparation"] = seconds
    if data.train:
        engine.train = load(data.train)
    engine.recipe = next((r for r in config.quantize.recipes if r != "fp32"), engine.recipe)
    return engine


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser("engine", (__doc__ or "").splitlines()[0])
    parser.add_argument("project", nargs="?", type=Path, default=EXAMPLE)
    given = parser.parse_args(arguments)
    rungs = _CHEAP[:1] if given.quick else _CHEAP
    before = conditions("torch")
    with TemporaryDirectory(prefix="edgekit-engine-") as folder:
        engine = prepared(given.project, Path(folder))
        engine.repair("calibration, bias correction, rounding", rungs, _BUDGETS[0])
        peak_gb = peak_rss_bytes() / 1e9
        again = _made_again(engine, "the same with another budget", rungs)
        if not given.quick:
            rungs = (*rungs, "float_layers")
            engine.repair("and layers left in float", rungs, _BUDGETS[0])
            again += _made_again(engine, "and these with another budget", rungs)
    return finish(
        report(engine.seconds, peak_gb, again, before),
        as_json=given.json,
        quick=given.quick,
    )


def report(
    seconds: dict[str, float], peak_gb: float, again: Sequence[str], before: dict[str, str]
) -> Report:
    """The table and the bars; ``again`` are the things that were made twice."""
    steps = list(seconds)
    return Report(
        name="engine",
        columns=("step", "s"),
        rows=[(what, f"{spent:.1f}") for what, spent in seconds.items()],
        bars=[
            Bar("preparation to rounding", sum(seconds[s] for s in steps[:2]), _ENGINE_S, "s"),
            Bar("peak memory of the process", peak_gb, _ENGINE_GB, "GB", timing=False),
            Bar("made again for another budget", len(again), 0, timing=False),
        ],
        notes=[f"made again: {what}" for what in again],
        conditions=before,
    )


def _made_again(engine: Engine, what: str, rungs: Sequence[str]) -> list[str]:
    """What another budget made anew although it was there; float layers are chosen by budget."""
    before = engine.kept()
    engine.repair(what, rungs, _BUDGETS[1])
    return [name for name, when in engine.kept().items() if before.get(name, when) != when]


def _source(config: ProjectConfig) -> SourceSpec:
    from edgekit.sources import SourceSpec

    return SourceSpec(
        source=config.model.source,
        root=config.root,
        name=config.model.name,
        weights=config.model.weights,
        unsafe_weights=config.model.unsafe_weights,
        inputs=config.model.inputs,
        example=config.model.example,
    )


if __name__ == "__main__":
    sys.exit(main())
