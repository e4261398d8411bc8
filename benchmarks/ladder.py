"""What each rung of the repair ladder gives, on a project's model and photos, and the plot of it.

python -m benchmarks.ladder [PROJECT] [--json] [--quick] [--plot FILE.svg]

All rungs that the project allows are climbed, needed or not: as if no drop were small enough.
Figures are simulated on the project's evaluation set; artifacts are not made. A rung has its place
in edgekit as long as some model gains 1 dB by it: that is the bar of the projects that show it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from benchmarks.engine import EXAMPLE, prepared
from edgekit.config import ProjectConfig
from edgekit.errors import EdgekitError
from edgekit.types import RungResult

#: No drop is below it, so that every rung is climbed.
_NEVER_ENOUGH = -1.0
#: What a rung has to gain somewhere, in dB, and the projects that show it.
_LEAST_GAIN = 1.0
_SHOWN: dict[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("bias_correction", "adaptive_rounding", "float_layers"),
    "efficientnet_lite0_int16": ("hessian_rounding", "adaptive_rounding"),
    "digits_spoiled": ("ranges",),
    "minilm": ("outlier_channels",),
    "minilm_static": ("quantization_aware_training",),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser("ladder", __doc__ or "")
    parser.add_argument("project", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--plot", type=Path, help="write the plot there")
    given = parser.parse_args(arguments)
    try:
        with TemporaryDirectory(prefix="ladder-") as folder:
            rungs = climb_all(given.project, Path(folder), quick=given.quick)
    except EdgekitError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if given.plot:
        draw(rungs, given.plot)
    shown = () if given.quick else _SHOWN.get(given.project.resolve().name, ())
    return finish(report(rungs, shown), as_json=given.json, quick=given.quick)


def climb_all(project: Path, folder: Path, *, quick: bool) -> tuple[RungResult, ...]:
    """Every rung's result."""
    rungs = ProjectConfig.load(project).quantize.rungs
    rungs = rungs[:3] if quick else rungs
    return prepared(project, folder).repair("ladder", rungs, _NEVER_ENOUGH)


def report(rungs: Sequence[RungResult], shown: Collection[str] = ()) -> Report:
    """The table, and a bar for each rung that has to gain here."""
    rows, best = [], rungs[0]
    gains = dict.fromkeys(shown, 0.0)
    for rung in rungs:
        gain = rung.sqnr_db - best.sqnr_db
        if rung.rung in gains:
            gains[rung.rung] = gain
        rows.append(
            (
                rung.rung,
                "kept" if rung.kept else "no",
                f"{rung.sqnr_db:.2f}",
                f"{gain:+.2f}",
                f"{rung.drop:.3f}",
                f"{rung.seconds:.1f}",
                f"{rung.added_ns / 1e6:.2f}" if rung.added_ns else "0",
                rung.note[:60],
            )
        )
        best = rung if rung.kept else best
    return Report(
        name="ladder",
        columns=("rung", "", "SQNR dB", "gain", "drop", "s", "adds ms", "what"),
        rows=rows,
        bars=[
            Bar(f"{name}: gain", gain, _LEAST_GAIN, "dB", timing=False, least=True)
            for name, gain in gains.items()
        ],
        notes=("Simulated on the evaluation set, with all kept rungs below.",),
        conditions=conditions("torch"),
    )


def draw(rungs: Sequence[RungResult], path: Path) -> None:
    """SQNR after each rung that was kept, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    kept = [rung for rung in rungs if rung.kept]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.2), layout="constrained")
    values = [rung.sqnr_db for rung in kept]
    axes.barh([r.rung.replace("_", " ") for r in kept], values, color="#3b6fb6", height=0.6)
    for row, rung in enumerate(kept):
        before = kept[row - 1].sqnr_db if row else 0.0
        gain = f"   {rung.sqnr_db - before:+.1f} dB" if row else ""
        if rung.added_ns:
            gain += f", {rung.added_ns / 1e6:+.2f} ms in float"
        axes.text(rung.sqnr_db + 0.2, row, f"{rung.sqnr_db:.1f} dB{gain}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.4)
    axes.set_xlabel("SQNR against the float model, dB (higher is closer)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
