"""What it costs to start edgekit: ``edgekit --help`` and ``import edgekit``.

Times are those of whole processes, from start to exit, in rounds that run every command once in a
random order. ``yolo --help`` of Ultralytics is the yardstick where it is found; it is under the
AGPL and never a dependency, so it comes from an environment of its own (--yolo PATH).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import Bar, Report, argument_parser, conditions, finish, run_to_end
from edgekit import stats

FRAMEWORKS = (
    "ai_edge_litert",
    "ai_edge_quantizer",
    "executorch",
    "litert_torch",
    "onnx",
    "onnxruntime",
    "paramiko",
    "tensorflow",
    "torch",
)
MAX_HELP_S = 0.2
MAX_OF_YOLO = 1 / 8
ROUNDS, QUICK_ROUNDS = 25, 3
TIMEOUT_S = 120.0

_LIST_MODULES = "import sys, json; json.dump(sorted({m.split('.')[0] for m in sys.modules}), out)"
_AFTER_IMPORT = f"import edgekit, sys; out = sys.stdout; {_LIST_MODULES}"
_AFTER_HELP = (
    "import io, sys; out = sys.stdout; sys.stdout = io.StringIO(); "
    f"from edgekit.cli import main; main(['--help']); {_LIST_MODULES}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("startup", __doc__.splitlines()[0])
    parser.add_argument(
        "--yolo", type=Path, help="the yolo command to compare with (default: the one on PATH)"
    )
    options = parser.parse_args(arguments)
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import edgekit": [sys.executable, "-c", "import edgekit"],
        "edgekit --help": edgekit_command(),
    }
    yolo = find_yolo(options, parser)
    if yolo is not None:
        commands["yolo --help"] = [yolo, "--help"]
    before = conditions("edgekit")
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    try:
        seconds = measure(commands, rounds, options.seed)
    except subprocess.SubprocessError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    report = evaluate(seconds, loaded_frameworks(), before, options.seed)
    return finish(report, as_json=options.json, quick=options.quick)


def edgekit_command() -> list[str]:
    """The console script of this environment, which is what people start."""
    script = Path(sys.executable).with_name("edgekit")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "edgekit"]
    return [*program, "--help"]


def find_yolo(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str | None:
    if options.yolo is not None and shutil.which(options.yolo) is None:
        parser.error(f"--yolo {options.yolo} is not an executable file")
    return shutil.which(options.yolo or "yolo")


def measure(
    commands: Mapping[str, Sequence[str]], rounds: int, seed: int
) -> dict[str, list[float]]:
    """Seconds of each command, one per round, after one round that fills the caches.

    Raises:
        subprocess.SubprocessError: a command failed or took longer than two minutes.
    """
    order = list(commands)
    # Ultralytics asks the network whether it is there; that must not count against it.
    environment = {**os.environ, "YOLO_OFFLINE": "true"}
    rng = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            started = time.perf_counter()
            run_to_end(commands[name], timeout_s=TIMEOUT_S, env=environment)
            taken = time.perf_counter() - started
            if turn:
                seconds[name].append(taken)
    return seconds


def loaded_frameworks() -> list[str]:
    """Frameworks that ``import edgekit`` or ``edgekit --help`` loads."""
    loaded: set[str] = set()
    for code in (_AFTER_IMPORT, _AFTER_HELP):
        ran = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, timeout=TIMEOUT_S
        )
        loaded |= set(json.loads(ran.stdout))
    return sorted(loaded.intersection(FRAMEWORKS))


def evaluate(
    seconds: Mapping[str, Sequence[float]],
    frameworks: Sequence[str],
    before: Mapping[str, str],
    seed: int,
) -> Report:
    """Medians with their intervals, ratios to ``edgekit --help`` and the bars."""
    # A process is a block of the statistics; here each gives one sample.
    blocks = {name: [[value] for value in values] for name, values in seconds.items()}
    ours = blocks["edgekit --help"]
    rows = []
    bars = [
        Bar("edgekit --help, median", stats.quantile(ours, 0.5), MAX_HELP_S, "s"),
        Bar("frameworks loaded by it or by import edgekit", len(frameworks), 0, timing=False),
    ]
    notes = [f"loaded: {', '.join(frameworks)}"] if frameworks else []
    for name, theirs in blocks.items():
        median = stats.quantile_interval(theirs, 0.5, seed=seed)
        ratio = stats.compare(ours, theirs, 0.5, paired=True, seed=seed).ratio
        compared = f"{ratio.value:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"
        rows.append(
            [
                name,
                f"{1e3 * median.value:.1f}",
                f"{1e3 * median.low:.1f}..{1e3 * median.high:.1f}",
                "1" if theirs is ours else compared,
            ]
        )
        if name == "yolo --help":
            bars.append(Bar("edgekit --help / yolo --help", ratio.value, MAX_OF_YOLO))
    if "yolo --help" not in seconds:
        notes.append("yolo --help: not compared, no yolo on PATH and none given by --yolo")
    rounds = len(seconds["edgekit --help"])
    return Report(
        name="startup",
        columns=["process", "p50 ms", "95 % interval", "edgekit --help / this"],
        rows=rows,
        bars=bars,
        notes=notes,
        conditions={**before, "rounds": f"{rounds}, interleaved in random order"},
        samples={f"{name}, s": values for name, values in seconds.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
