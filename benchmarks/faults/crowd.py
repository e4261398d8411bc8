"""Many deploys to one device at once: one wins at a time, all end well, nothing is damaged, and
nothing else is touched or left behind."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.faults.boards import NamespaceBoard
from benchmarks.faults.bundles import MODEL, Release
from benchmarks.faults.cuts import Deploy, orphans

THREADS = 10  # per process
LIMIT_S = 900.0


@dataclass(frozen=True)
class Crowd:
    """What became of them; ``opening`` is the most connections seen before their login at once."""

    deploys: int
    well: int
    opening: int
    seconds: float
    violations: tuple[str, ...]


def crowd(board: NamespaceBoard, releases: list[Release], mark: str, count: int) -> Crowd:
    """Deploys ``count`` times at once, in processes of THREADS deploys each; the releases differ
    from process to process."""
    started = time.monotonic()
    board.wipe()
    beside = board.inspect()["beside"]
    groups = [min(THREADS, count - first) for first in range(0, count, THREADS)]
    running = [
        Deploy.start(board, releases[i % len(releases)], mark, threads=threads)
        for i, threads in enumerate(groups)
    ]
    opening = 0
    while any(one.process.poll() is None for one in running):
        if time.monotonic() - started > LIMIT_S:
            break
        for one in running:
            one.until("", time.monotonic() + 0.02)
        opening = max(opening, board.opening())
    violations = []
    well = 0
    for one in running:
        if (code := one.end(1.0)) != 0:
            violations.append(f"a process of deploys ended with {code}: {one.output[-500:]}")
        well += one.report().get("deploys", 0)
    found = board.inspect()
    active = found["current"].get(MODEL)
    if active is None or active["problems"] or found["false"]:
        violations.append(f"afterwards: {active} {found['false']}")
    elif active["release"] not in {release.id for release in releases}:
        violations.append(f"afterwards {active['release']} is active")
    if found["beside"] != beside:
        violations.append("something beside the root has changed")
    violations += orphans(board, mark)
    if well != count:
        violations.append(f"{well} of {count} ended well")
    if opening > 8:
        violations.append(f"{opening} connections were being opened at once")
    return Crowd(count, well, opening, time.monotonic() - started, tuple(violations))
