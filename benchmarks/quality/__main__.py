"""Our INT8 artifacts beside each runtime's stock recipe and Olive's: accuracy, size, latency.

Every case is made, timed and judged before the next begins, and its record is appended to
records.jsonl in the work folder: a run that was cut goes on where it stopped, and what did not
change since the last run is not done again (--fresh does it again).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common import argument_parser, conditions, finish
from benchmarks.models.cached import CACHE
from benchmarks.quality import records
from benchmarks.quality.cases import CASES, EXAMPLE, ROOT, TINY, Case
from benchmarks.quality.records import Record
from benchmarks.quality.running import run_case
from benchmarks.quality.table import report
from benchmarks.quality.timing import Effort

WORK = CACHE / "quality"
QUICK_S = 0.02
PACKAGES = ("edgekit", "torch", "executorch", "litert-torch", "onnxruntime", "olive-ai")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("quality", (__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help="only these, with commas; default: all")
    parser.add_argument("--work", type=Path, help=f"work folder (default {WORK}; --quick: none)")
    parser.add_argument("--fresh", action="store_true", help="do again what was done before")
    options = parser.parse_args(arguments)
    cases = _cases(options, parser)
    before = conditions(*PACKAGES)
    # Workers do not have the current folder on their path.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    with tempfile.TemporaryDirectory(prefix="edgekit-quality-") as temporary:
        work = options.work or (Path(temporary) if options.quick else WORK)
        found = _run(cases, work.absolute(), quick=options.quick, fresh=options.fresh)
    before["timing"] = (
        "1 thread on one pinned core, a process per file and round, order rotated; "
        "median over rounds"
    )
    return finish(
        report(cases, found, before, options.seed), as_json=options.json, quick=options.quick
    )


def _cases(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Sequence[Case]:
    if options.quick:
        return [TINY]
    known = {case.name: case for case in CASES}
    wanted = options.models.split(",") if options.models else list(known)
    for name in wanted:
        if name not in known:
            parser.error(f"there is no model {name!r}; known: {', '.join(known)}")
    if not (EXAMPLE / "photos" / "test").is_dir():
        parser.error(f"{EXAMPLE / 'photos'} is not made yet: run `make photos`")
    return [known[name] for name in wanted]


def _run(cases: Sequence[Case], work: Path, *, quick: bool, fresh: bool) -> dict[str, Record]:
    work.mkdir(parents=True, exist_ok=True)
    log = work / "records.jsonl"
    done = {} if fresh else records.read(log)
    olive = find_spec("olive") is not None
    found = {}
    for case in cases:
        effort = Effort(case.rounds, QUICK_S, QUICK_S) if quick else Effort(case.rounds)
        key = records.key_of(case, effort, olive)
        if key not in done:
            started = time.monotonic()
            print(f"{case.name}: ...", file=sys.stderr, flush=True)
            done[key] = run_case(case, key, work, effort, olive=olive)
            what = done[key].skipped or done[key].failure or "done"
            print(
                f"{case.name}: {what}, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            # What failed or could not be had is tried again the next time.
            if not done[key].skipped and not done[key].failure:
                records.append(log, done[key])
        found[case.name] = done[key]
    return found


if __name__ == "__main__":
    sys.exit(main())
