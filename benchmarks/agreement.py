"""Random networks that every runtime has to agree on: what converts, and how close INT8 stays.

All runtimes are given the same ranges and weights on the same grids, so that one which is far from
the best of them has a bug, in its converter or here. Each network of a few operators is exported
in float and static INT8 without any repair, and run over samples that calibration did not see.
`--first N` begins at another network; what a run found is made again by its number.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from edgekit import registry
from edgekit.types import TensorSpec

NETWORKS = 60
CALIBRATED, JUDGED = 24, 16
RECIPES = ("fp32", "static_wi8_ai8")
MIN_FLOAT_DB = 90.0
#: How far below the best runtime one may be.
APART_DB = 10.0
MIN_SHARE = 0.95


@dataclass(frozen=True)
class Cell:
    """One network for one runtime in one precision: SQNR in dB, or why there is none."""

    sqnr_db: float | None
    cause: str = ""


Row = Mapping[tuple[str, str], Cell]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("agreement", (__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, help=f"how many; default {NETWORKS}")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default 0)")
    options = parser.parse_args(arguments)
    count = (2 if options.quick else NETWORKS) if options.networks is None else options.networks
    if count < 1 or options.first < 0:
        parser.error("--networks must be 1 or more, --first 0 or more")
    before = conditions("torch", "executorch", "litert-torch", "onnxruntime")
    rows: dict[int, Row] = {}
    for number, row in measured(range(options.first, options.first + count)):
        rows[number] = row
        print(f"network {number}: {' '.join(_shown(row))}", file=sys.stderr, flush=True)
    return finish(evaluate(rows, before), as_json=options.json, quick=options.quick)


def measured(numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
    """The networks one after the other, in a process of their own: converters crash."""
    context = multiprocessing.get_context("spawn")
    left = list(numbers)
    while left:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                while left:
                    yield left[0], pool.submit(cells, left[0]).result()
                    del left[0]
            except BrokenProcessPool:
                crashed = Cell(None, "the process that makes them crashed")
                keys = [(name, recipe) for name in registry.RUNTIMES for recipe in RECIPES]
                yield left.pop(0), dict.fromkeys(keys, crashed)


def cells(number: int) -> Row:
    """Every runtime in both precisions."""
    import torch

    from benchmarks.models.random_network import INPUT, RandomNetwork
    from edgekit.errors import EdgekitError
    from edgekit.quality import sqnr_db
    from edgekit.quantize.base import ExportRequest, export
    from edgekit.quantize.calibrate import calibrate
    from edgekit.quantize.engine import PROGRAM, lossy_nodes, prepare_model
    from edgekit.quantize.prepare import as_module
    from edgekit.quantize.ranges import save_ranges
    from edgekit.quantize.recipes import RECIPES as known
    from edgekit.targets.measure import HostMeasurer

    torch.set_num_threads(1)
    network = RandomNetwork(number)
    random = np.random.default_rng(number)
    drawn = random.normal(size=(CALIBRATED + JUDGED, *INPUT))
    # Pixels are like those beside them, as in photos.
    samples = np.mean([np.roll(drawn, shift, -1) for shift in range(3)], 0).astype(np.float32)
    judged = samples[CALIBRATED:]
    with torch.inference_mode():
        wanted = np.stack([network(torch.from_numpy(sample)).numpy() for sample in judged])
    found = {}
    with tempfile.TemporaryDirectory(prefix="agreement-") as name:
        folder = Path(name)
        inputs = [(torch.from_numpy(sample),) for sample in samples[:CALIBRATED]]
        prepared = prepare_model(network, inputs[0], ("x",), folder)
        gm = as_module(torch.export.load(folder / PROGRAM))
        ranges = calibrate(gm, lambda: inputs)
        save_ranges(folder / "ranges.json", ranges)
        lossy = tuple(sorted(lossy_nodes(gm, ranges)))
        stored = _stored(folder, samples[:CALIBRATED], prepared.inputs)
        for runtime in registry.RUNTIMES:
            for recipe in RECIPES:
                static = known[recipe].scheme == "static"
                request = ExportRequest(
                    runtime=runtime,
                    recipe=replace(known[recipe], float_nodes=lossy if static else ()),
                    program=folder / PROGRAM,
                    inputs=prepared.inputs,
                    out=folder / f"{recipe}{registry.RUNTIMES[runtime].extension}",
                    ranges=folder / "ranges.json" if static else None,
                    calibration=stored if static else None,
                )
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        export(request)
                    (given,) = HostMeasurer().outputs(
                        request.out, runtime, (judged,), prepared.outputs, workdir=folder
                    )
                    found[runtime, recipe] = Cell(sqnr_db(wanted, np.asarray(given)))
                except EdgekitError as error:
                    found[runtime, recipe] = Cell(None, str(error).splitlines()[0])
    return found


def _stored(folder: Path, stack: np.ndarray, specs: tuple[TensorSpec, ...]) -> Path:
    """The calibration set as exporters read it."""
    from edgekit.data import load_samples

    file = folder / "calib.npz"
    np.savez(file, x=stack)
    return load_samples(file, specs, None, base=folder, cache=folder / "cache").path


def evaluate(rows: Mapping[int, Row], before: Mapping[str, str]) -> Report:
    """The table, what failed or is far from the rest, and the bars."""
    made = dict.fromkeys(RECIPES, 0)
    close, notes = 0, []
    for number, row in rows.items():
        best = max((c.sqnr_db or 0.0 for (_, r), c in row.items() if r != "fp32"), default=0.0)
        for (runtime, recipe), cell in row.items():
            what = f"network {number}, {runtime} {recipe}"
            if cell.sqnr_db is None:
                notes.append(f"{what}: {cell.cause}")
                continue
            good = cell.sqnr_db >= (MIN_FLOAT_DB if recipe == "fp32" else best - APART_DB)
            made[recipe] += 1 if recipe != "fp32" else good
            close += good and recipe != "fp32"
            if not good:
                notes.append(f"{what}: {cell.sqnr_db:.1f} dB")
    total = len(rows) * len(registry.RUNTIMES)
    fp32, int8 = RECIPES
    return Report(
        "agreement",
        ("network", *(f"{runtime} dB" for runtime in registry.RUNTIMES)),
        [(str(number), *_shown(row)) for number, row in rows.items()],
        [
            Bar(
                f"float files of {MIN_FLOAT_DB:g} dB or more",
                made[fp32] / total,
                MIN_SHARE,
                timing=False,
                least=True,
            ),
            Bar("INT8 files made", made[int8] / total, MIN_SHARE, timing=False, least=True),
            Bar(
                f"INT8 files within {APART_DB:g} dB of the best runtime",
                close / total,
                MIN_SHARE,
                timing=False,
                least=True,
            ),
        ],
        notes,
        before,
    )


def _shown(row: Row) -> list[str]:
    """INT8's SQNR by runtime."""
    found = [row[runtime, RECIPES[1]].sqnr_db for runtime in registry.RUNTIMES]
    return ["FAILED" if value is None else f"{value:.1f}" for value in found]


if __name__ == "__main__":
    sys.exit(main())
