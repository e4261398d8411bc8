"""What it costs to make all artifacts: ``edgekit quantize`` against the vendors' own scripts.

Both sides make a float and a static INT8 file for ExecuTorch, TFLite, ONNX Runtime and TorchScript
from EfficientNet-Lite0, calibrated with the same photos. edgekit starts with an empty workspace and
also mends, inspects and evaluates what it makes; the vendors' scripts (benchmarks/vendors) run one
after the other and do none of that. Rounds run both sides once, in turns as to who is first, after
one untimed round with a tiny model that loads everything once and builds what is built once.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from benchmarks.watch import CommandFailed, Spent, watch
from edgekit import stats

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
EDGEKIT, TOGETHER = "edgekit quantize", "the scripts"
#: The vendors' scripts in benchmarks/vendors, in the order in which they run, and their runtimes.
SCRIPTS = {
    "executorch_xnnpack": "executorch",
    "litert": "tflite",
    "onnx_runtime": "onnx",
    "torchscript_fx": "torchscript",
}
#: What ``--quick`` runs: all scripts are run by benchmarks.quality in any case.
QUICK = ("onnx_runtime", "torchscript_fx")
MAX_RATIO = 1.0
ROUNDS = 3

_TINY_MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )

def example_inputs():
    return (torch.zeros(1, 3, 32, 32),)
"""

Spending = dict[str, list[Spent]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("wall", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not options.quick and not (EXAMPLE / "photos" / "choose").is_dir():
        parser.error(f"{EXAMPLE / 'photos'} is not made yet: run `make photos`")
    before = conditions("edgekit", "torch", "executorch", "litert-torch", "onnxruntime")
    rounds = 1 if options.quick else options.rounds
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-wall-") as name:
            spent = measure(Path(name), rounds, options.seed, quick=options.quick)
    except CommandFailed as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    report = evaluate(spent, before, options.seed)
    return finish(report, as_json=options.json, quick=options.quick)


def measure(folder: Path, rounds: int, seed: int, *, quick: bool) -> Spending:
    """What edgekit and each script spent, one entry per round.

    Raises:
        CommandFailed: one of them failed or made fewer files than it should.
    """
    tiny = folder / "tiny"
    make_tiny_project(tiny)
    if quick:
        return _round(tiny, folder / "round", QUICK, edgekit_first=True)
    scripts = tuple(SCRIPTS)
    _round(tiny, folder / "warm-up", scripts, edgekit_first=True)
    project = folder / "project"
    copy_example(project)
    spent: Spending = {name: [] for name in (EDGEKIT, *SCRIPTS)}
    for turn in range(rounds):
        work = folder / f"round-{turn}"
        first = (turn + seed) % 2 == 0
        for name, one in _round(project, work, scripts, edgekit_first=first).items():
            spent[name] += one
        shutil.rmtree(work)
    return spent


def _round(project: Path, work: Path, scripts: tuple[str, ...], *, edgekit_first: bool) -> Spending:
    """Both sides once; each command is a process that works in a folder of its own."""
    sides = [(EDGEKIT,), scripts]
    spent = {}
    for name in chain.from_iterable(sides if edgekit_first else reversed(sides)):
        place = work / name
        place.mkdir(parents=True)
        if name == EDGEKIT:
            spent[name] = [run_edgekit([SCRIPTS[script] for script in scripts], project, place)]
        else:
            spent[name] = [run_script(name, project, place)]
    return spent


def run_edgekit(runtimes: Sequence[str], project: Path, work: Path) -> Spent:
    """``edgekit quantize`` on a copy of the project, where nothing was made before."""
    copy = work / "project"
    shutil.copytree(project, copy)
    command = [sys.executable, "-m", "edgekit", "quantize", "--strict"]
    command += ["--runtimes", ",".join(runtimes)]
    spent = watch(command, cwd=copy, log=work / "log", env=_environment())
    _check_files(EDGEKIT, copy / "bundle" / "artifacts", 2 * len(runtimes))
    return spent


def run_script(name: str, project: Path, work: Path) -> Spent:
    """One vendor's script on the project's model and calibration photos."""
    made = work / "made"
    made.mkdir()
    given = [project / "model.py", project / "photos" / "calib", made]
    command = [sys.executable, "-m", f"benchmarks.vendors.{name}", *map(str, given)]
    spent = watch(command, cwd=work, log=work / "log", env=_environment())
    _check_files(name, made, 2)
    return spent


def _environment() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _check_files(name: str, folder: Path, count: int) -> None:
    found = [path.name for path in folder.glob("*") if path.stat().st_size > 0]
    # quant_pre_process leaves an intermediate file beside the two.
    made = [file for file in found if not file.startswith("prepared")]
    if len(made) != count:
        raise CommandFailed(f"{name} made {sorted(made)}, but {count} files were to be made.")


def copy_example(project: Path) -> None:
    """The example without what was made in it, and without the set that is only reported on."""
    project.mkdir()
    shutil.copy(EXAMPLE / "model.py", project)
    for photos in ("calib", "choose"):
        shutil.copytree(EXAMPLE / "photos" / photos, project / "photos" / photos)
    settings = (EXAMPLE / "edgekit.toml").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = (line for line in settings if not line.startswith("report ="))
    (project / "edgekit.toml").write_text("".join(kept), encoding="utf-8")


def make_tiny_project(project: Path) -> None:
    """The same in small: a model of two layers and pictures of noise."""
    project.mkdir()
    (project / "model.py").write_text(_TINY_MODEL, encoding="utf-8")
    rng = np.random.default_rng(0)
    for photos in ("calib", "choose"):
        (project / "photos" / photos).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(project / "photos" / photos / f"{i}.png")
    settings = (EXAMPLE / "edgekit.toml").read_text(encoding="utf-8").splitlines(keepends=True)
    replaced = {"name =": 'name = "tiny"\n', "report =": "", "max_drop =": "max_drop = 0.9\n"}
    (project / "edgekit.toml").write_text(
        "".join(replaced.get(" ".join(line.split()[:2]), line) for line in settings),
        encoding="utf-8",
    )


def together(scripts: Sequence[Spent]) -> Spent:
    """What scripts spend that run one after the other."""
    wall_s, cpu_s, tree_bytes, process_bytes = zip(*map(astuple, scripts), strict=True)
    return Spent(sum(wall_s), sum(cpu_s), max(tree_bytes), max(process_bytes))


def evaluate(spent: Mapping[str, Sequence[Spent]], before: Mapping[str, str], seed: int) -> Report:
    """Medians, the ratio of the two sides with its interval, and the bar."""
    scripts = {name: ones for name, ones in spent.items() if name != EDGEKIT}
    sums = [together(ones) for ones in zip(*scripts.values(), strict=True)]
    sides = {EDGEKIT: spent[EDGEKIT], TOGETHER: sums}
    rounds = len(sums)
    wall = {name: [[one.wall_s] for one in ones] for name, ones in sides.items()}
    ratio = stats.quantile(wall[EDGEKIT], 0.5) / stats.quantile(wall[TOGETHER], 0.5)
    notes = []
    if rounds > 1:
        found = stats.compare(wall[EDGEKIT], wall[TOGETHER], 0.5, paired=True, seed=seed).ratio
        notes = [f"wall time, 95 % interval of the ratio: {found.low:.3g}..{found.high:.3g}"]
    else:
        notes = ["one round: the ratio has no interval"]
    notes.append("memory: of all processes at once (shared pages counted each time) and of one")
    return Report(
        name="wall",
        columns=["process", "wall s", "min..max", "CPU s", "peak MB, all", "peak MB, one"],
        rows=[
            *(_row(name, ones) for name, ones in sides.items()),
            *(_row(f"  {name}", ones) for name, ones in scripts.items()),
        ],
        bars=[Bar(f"wall time, {EDGEKIT} / {TOGETHER}", ratio, MAX_RATIO)],
        notes=notes,
        conditions={**before, "rounds": f"{rounds}, both sides in each, first in turns"},
        samples={
            f"{name}, {unit}": [getattr(one, unit) for one in ones]
            for name, ones in spent.items()
            for unit in ("wall_s", "cpu_s", "tree_bytes", "process_bytes")
        },
    )


def _row(name: str, ones: Sequence[Spent]) -> list[str]:
    wall = [one.wall_s for one in ones]
    return [
        name,
        f"{np.median(wall):.1f}",
        f"{min(wall):.1f}..{max(wall):.1f}",
        f"{np.median([one.cpu_s for one in ones]):.1f}",
        f"{max(one.tree_bytes for one in ones) / 1e6:.0f}",
        f"{max(one.process_bytes for one in ones) / 1e6:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
