"""Our INT8 artifacts beside each runtime's stock recipe and Olive's: accuracy, size, latency.

Every case is made and judged, and then timed, before the next begins; after each phase its record
is appended to records.jsonl in the work folder: a run that was cut goes on where it stopped, and
what did not change since the last run is not done again (--fresh does it again). Making and judging
do not mind a busy machine, so the phases can be run apart: --only make, and later --only time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from benchmarks.common import argument_parser, conditions, finish
from benchmarks.models.cached import CACHE
from benchmarks.quality import keys, records
from benchmarks.quality.cases import CASES, EXAMPLE, ROOT, TINY, Case
from benchmarks.quality.records import Record
from benchmarks.quality.running import make_case
from benchmarks.quality.table import report
from benchmarks.quality.timed import is_there, time_case
from benchmarks.quality.timing import Effort

WORK = CACHE / "quality"
QUICK_S = 0.02
PACKAGES = ("edgekit", "torch", "executorch", "litert-torch", "onnxruntime", "olive-ai")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("quality", (__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help="only these, with commas; default: all")
    parser.add_argument("--work", type=Path, help=f"work folder (default {WORK}; --quick: none)")
    parser.add_argument("--fresh", action="store_true", help="do again what was done before")
    parser.add_argument(
        "--only",
        choices=("make", "time"),
        help="make and judge without timing, or time what was made before",
    )
    options = parser.parse_args(arguments)
    cases = _cases(options, parser)
    before = conditions(*PACKAGES)
    # Workers do not have the current folder on their path.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (
        patch.dict(os.environ, PYTHONPATH=path),
        tempfile.TemporaryDirectory(prefix="edgekit-quality-") as temporary,
    ):
        work = options.work or (Path(temporary) if options.quick else WORK)
        phases = (options.only,) if options.only else ("make", "time")
        found = _run(cases, work.resolve(), phases, quick=options.quick, fresh=options.fresh)
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


def _run(
    cases: Sequence[Case], work: Path, phases: Sequence[str], *, quick: bool, fresh: bool
) -> dict[str, Record]:
    work.mkdir(parents=True, exist_ok=True)
    log = work / "records.jsonl"
    done = records.read(log)
    olive = find_spec("olive") is not None
    found = {}
    for case in cases:
        effort = Effort(case.rounds, QUICK_S, QUICK_S) if quick else Effort(case.rounds)
        key = keys.made_key(case, olive=olive)
        record = done.get(key)
        if record is not None and not is_there(record, work):
            record = None
        if "make" in phases and (record is None or fresh):
            with _told(case, "make"):
                record = make_case(case, key, work, olive=olive)
            if record.failure:
                print(f"{case.name}: {record.failure}", file=sys.stderr, flush=True)
            _keep(log, record)
        if record is None:
            record = Record(case.name, key, failure="not made yet, or changed since: --only make")
        timed_key = keys.timed_key(case, key, effort)
        stale = record.timed_key != timed_key
        if "time" in phases and (stale or fresh) and not (record.skipped or record.failure):
            with _told(case, "time"):
                record = time_case(case, record, timed_key, work, effort)
            _keep(log, record)
        elif stale:
            record = record.untimed()
        found[case.name] = record
    return found


def _keep(log: Path, record: Record) -> None:
    # What failed or could not be had is tried again the next time.
    if not record.skipped and not record.failure:
        records.append(log, record)


@contextmanager
def _told(case: Case, phase: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{case.name}: {phase} ...", file=sys.stderr, flush=True)
    yield
    seconds = time.monotonic() - started
    print(f"{case.name}: {phase}, {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
