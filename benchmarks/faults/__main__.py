"""Cuts deploys at random moments, in every way that a board on a desk or on a pole meets.

After every cut: `current` leads to a whole release whose files have their hashes, or to none on a
first deploy; the next deploy ends well and sends nothing that was there; nothing outside the
device's folder has changed; no process is left, here or there. And many deploys at once.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Bar, Report, argument_parser, conditions, finish
from benchmarks.faults import bundles
from benchmarks.faults.boards import NamespaceBoard
from benchmarks.faults.bundles import Release, release
from benchmarks.faults.crowd import Crowd, crowd
from benchmarks.faults.cuts import KILLED, Bench, Cut
from benchmarks.faults.kept import Kept
from benchmarks.faults.machine import POWER_OFF, MachineBoard
from edgekit.bundle import Bundle
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.virtual import state

CHEAP = ("link down", "sshd killed", "reset", KILLED, "disk full")
KINDS = (*CHEAP, POWER_OFF)
CUTS, DEPLOYS = 220, 100
QUICK_CUTS, QUICK_DEPLOYS = 5, 6
#: Of the cuts, so many switch the power off.
POWER_OFFS = 0.1
#: Of the cuts, so many interrupt the first deploy to an empty device.
FIRST = 0.3
MINUTES, QUICK_MINUTES = 120.0, 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if os.geteuid() != 0:
        print("benchmarks.faults: links and disks of one's own need root.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # devices of ours end with us
    before = conditions("edgekit", "paramiko", "executorch")
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="edgekit-faults-") as name:
        folder = Path(name)
        # Host keys in a home of our own, so that the user's stays as it is; what was fetched and
        # built is found in the user's cache.
        (folder / ".ssh").mkdir(mode=0o700)
        packages = state.home_dir() / "rootfs"
        os.environ.update(HOME=name, XDG_CACHE_HOME=str(cache_dir().parent))
        os.environ.pop("SSH_AUTH_SOCK", None)
        made = bundles.make(folder / "bundles")
        cuts, gathered = _cheap(options, folder, made, mark)
        if POWER_OFF in options.kinds:
            cuts += _power_offs(options, folder, packages, made, mark)
    return finish(
        evaluate(cuts, gathered, before, options), as_json=options.json, quick=options.quick
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("faults", (__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, help=f"how many in all (default {CUTS})")
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}; separated by commas")
    parser.add_argument("--deploys", type=int, help=f"how many at once (default {DEPLOYS})")
    parser.add_argument("--work", type=Path, help="keep each cut there, to go on when broken off")
    parser.add_argument("--minutes", type=float, help="after which no cut is begun any more")
    options = parser.parse_args(arguments)
    if options.cuts is None:
        options.cuts = QUICK_CUTS if options.quick else CUTS
    if options.deploys is None:
        options.deploys = QUICK_DEPLOYS if options.quick else DEPLOYS
    if options.minutes is None:
        options.minutes = QUICK_MINUTES if options.quick else MINUTES
    default = CHEAP if options.quick else KINDS
    options.kinds = [k.strip() for k in options.kinds.split(",")] if options.kinds else [*default]
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    return options


def _power_off_count(options: argparse.Namespace) -> int:
    if POWER_OFF not in options.kinds:
        return 0
    cuts: int = options.cuts
    return math.ceil(POWER_OFFS * cuts) if len(options.kinds) > 1 else cuts


def _cheap(
    options: argparse.Namespace, folder: Path, made: list[Release], mark: str
) -> tuple[list[Cut], Crowd | None]:
    """The cuts of a device in namespaces, and the many deploys at once."""
    kinds = [kind for kind in options.kinds if kind != POWER_OFF]
    if not kinds and not options.deploys:
        return [], None
    count = options.cuts - _power_off_count(options) if kinds else 0
    kept = Kept(options.work, kinds, count, options.deploys, options.seed)
    if len(kept.cuts) >= count and (kept.crowd or not options.deploys):
        return kept.cuts, kept.crowd
    board = NamespaceBoard(folder / "board")
    try:
        (folder / ".ssh" / "known_hosts").write_text(board.known_hosts_line)
        if len(kept.cuts) < count:
            campaign(Bench(board, made, mark), kinds, count, options, kept)
        if options.deploys and kept.crowd is None:
            kept.gathered(crowd(board, made, mark, options.deploys))
    finally:
        board.stop()
    return kept.cuts, kept.crowd


def _power_offs(
    options: argparse.Namespace, folder: Path, packages: Path, made: list[Release], mark: str
) -> list[Cut]:
    """The cuts of an emulated machine, with the runtime that it needs."""
    count = _power_off_count(options)
    kept = Kept(options.work, POWER_OFF, count, options.seed)
    if len(kept.cuts) >= count:
        return kept.cuts
    board = MachineBoard(folder / "machine", packages)
    try:
        abi = board.abi
        there = []
        for one in made:
            with Bundle.open(one.path) as bundle:
                there.append(release(bundle, abi))
        # An emulated processor: each step takes many times as long.
        bench = Bench(board, there, mark, limit_s=600.0)
        campaign(bench, [POWER_OFF], count, options, kept)
    finally:
        board.stop()
    return kept.cuts


def campaign(
    bench: Bench, kinds: Sequence[str], count: int, options: argparse.Namespace, kept: Kept
) -> None:
    """``count`` cuts, the kinds in turn, at moments drawn with the seed and the number of the try;
    after those that are kept already."""
    deadline = time.monotonic() + 60 * options.minutes
    bench.learn()
    tries = kept.tries
    while len(kept.cuts) < count and tries < 3 * count and time.monotonic() < deadline:
        kind = kinds[len(kept.cuts) % len(kinds)]
        tries += 1
        rng = random.Random(f"{options.seed} {tries}")
        cut = bench.cut(kind, rng, first=rng.random() < FIRST)
        if cut is not None:
            kept.add(cut, tries)
            _tell(cut, len(kept.cuts), count)


def _tell(cut: Cut, number: int, count: int) -> None:
    what = "first deploy" if cut.first else "later deploy"
    print(f"{number}/{count}: {cut.kind}, {what}, in {cut.step}: exit {cut.code}, "
          f"{cut.seconds:.1f} s", file=sys.stderr)  # fmt: skip
    for violation in cut.violations:
        print(f"  VIOLATION: {violation}", file=sys.stderr)


def evaluate(
    cuts: Sequence[Cut],
    gathered: Crowd | None,
    before: dict[str, str],
    options: argparse.Namespace,
) -> Report:
    """The table and the bars; pure."""
    rows = [_row(kind, [c for c in cuts if c.kind == kind]) for kind in options.kinds]
    if len(options.kinds) > 1:
        rows.append(_row("all", list(cuts)))
    violations = [violation for cut in cuts for violation in cut.violations]
    steps = sorted({cut.step for cut in cuts})
    notes = [
        f"seed {options.seed}; steps that were hit: "
        + ", ".join(f"{step} {sum(c.step == step for c in cuts)}" for step in steps)
    ]
    bars = [
        Bar("violations", len(violations), 0, timing=False),
        Bar("cuts", len(cuts), options.cuts, timing=False, least=True),
    ]
    if gathered is not None:
        violations += gathered.violations
        notes.append(
            f"{gathered.deploys} deploys at once: {gathered.well} ended well in "
            f"{gathered.seconds:.0f} s, at most {gathered.opening} connections before login"
        )
        bars.append(Bar("violations of deploys at once", len(gathered.violations), 0, timing=False))
    notes += [f"VIOLATION: {violation}" for violation in violations]
    return Report(
        name="faults",
        columns=("kind", "cuts", "first deploys", "cut deploy ended well", "had switched",
                 "files that were there", "bytes resumed", "bytes sent again", "p50", "violations"),
        rows=rows,
        bars=bars,
        notes=notes,
        conditions=before,
        samples={f"{kind} [s]": [c.seconds for c in cuts if c.kind == kind]
                 for kind in options.kinds},
    )  # fmt: skip


def _row(kind: str, cuts: list[Cut]) -> tuple[str, ...]:
    seconds = [cut.seconds for cut in cuts]
    return (
        kind,
        str(len(cuts)),
        str(sum(cut.first for cut in cuts)),
        str(sum(cut.code == 0 for cut in cuts)),
        str(sum(cut.switched for cut in cuts)),
        str(sum(cut.present for cut in cuts)),
        f"{sum(cut.resumed_bytes for cut in cuts) / 1e6:.1f} MB",
        f"{sum(cut.resent_bytes for cut in cuts) / 1e6:.1f} MB",
        f"{statistics.median(seconds):.1f} s" if seconds else "-",
        str(sum(len(cut.violations) for cut in cuts)),
    )


if __name__ == "__main__":
    sys.exit(main())
