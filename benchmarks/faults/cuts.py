"""One cut: a deploy that is interrupted, what the device then holds, and the next deploy."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.faults.boards import Board
from benchmarks.faults.bundles import ARTIFACT, MODEL, Release

KILLED = "host killed"
#: Whose processes on this machine are those of the campaign.
MARK = "EDGEKIT_FAULTS"
#: sshd shows a half-dead link every 5 s that somebody is there, and is told that nobody is.
ORPHAN_S = 30.0
LINK_AWAY_S = (0.3, 7.0)


@dataclass
class Cut:
    """What became of one."""

    kind: str
    first: bool
    step: str
    code: int | None = None
    switched: bool = False
    present: int = 0
    resent_bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass
class Deploy:
    """A running ``benchmarks.faults.host``."""

    process: subprocess.Popen[str]
    times: dict[str, float]
    output: str = ""

    @classmethod
    def start(cls, board: Board, release: Release, mark: str, *, gc: bool = False,
              threads: int = 1) -> Deploy:  # fmt: skip
        given = {
            "target": dataclasses.asdict(board.target),
            "bundle": str(release.path),
            "artifact": ARTIFACT,
            "gc": gc,
            "threads": threads,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.host", json.dumps(given)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
            env={**os.environ, MARK: mark}, start_new_session=True,
        )  # fmt: skip
        return cls(process, {})

    def until(self, step: str, deadline: float) -> bool:
        """Reads on until a step begins; False where the process ends or time is over first."""
        assert self.process.stdout is not None
        while time.monotonic() < deadline:
            if not select.select([self.process.stdout], [], [], 0.1)[0]:
                continue
            line = self.process.stdout.readline()
            if not line:
                return False
            self.output += line
            if line.startswith("step "):
                name = line.split()[1]
                self.times.setdefault(name, time.monotonic())
                if name == step:
                    return True
        return False

    def end(self, limit_s: float) -> int | None:
        """Its exit code; None where it did not end in time, and was killed."""
        try:
            rest, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.output += rest or ""
        return self.process.returncode

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.output += self.process.communicate()[0] or ""

    def report(self) -> dict[str, Any]:
        lines = [line for line in self.output.splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


@dataclass
class Bench:
    """A device and what was learned about the time that the steps of a deploy take there."""

    board: Board
    releases: list[Release]
    mark: str
    limit_s: float = 90.0
    active: Release | None = None
    before: Release | None = None
    steps: dict[bool, dict[str, float]] = field(default_factory=dict)

    def learn(self) -> None:
        """Deploys twice without a cut: to an empty device, and one that has an older release."""
        self.board.wipe()
        self.active = self.before = None
        for first in (True, False):
            release = self._next()
            running = Deploy.start(self.board, release, self.mark)
            while running.until("", time.monotonic() + self.limit_s):
                pass
            ended = time.monotonic()
            if running.end(self.limit_s) != 0:
                raise RuntimeError(f"A deploy without a cut failed: {running.output[-2000:]}")
            begins = [*running.times.items(), ("", ended)]
            following = itertools.pairwise(begins)
            self.steps[first] = {name: later - at for (name, at), (_, later) in following}
            self.active, self.before = release, self.active

    def cut(self, kind: str, rng: random.Random, *, first: bool) -> Cut | None:
        """Cuts a deploy at a random moment of a random step; None where it had ended by then."""
        started = time.monotonic()
        if first:
            self.board.wipe()
            self.active = self.before = None
        known = self.steps[first]
        cut = Cut(kind, first, rng.choice(list(known)))
        release = self._next()
        before = self.board.inspect()
        running = Deploy.start(self.board, release, self.mark)
        if not running.until(cut.step, started + self.limit_s):
            running.end(self.limit_s)
            self._recover(cut, release)
            return None
        time.sleep(rng.uniform(0, known[cut.step]))
        if kind == KILLED:
            running.kill()
            cut.code = -signal.SIGKILL
        else:
            self.board.cut(kind, rng)
            if kind == "link down":
                time.sleep(rng.uniform(*LINK_AWAY_S))
                self.board.mend(kind)
            cut.code = running.end(self.limit_s)
            if cut.code not in (0, 4):
                cut.violations.append(
                    f"the cut deploy ended with {cut.code}: {running.output[-500:]}"
                )
        if kind == "disk full":  # also as long as it lasts
            self._judge(cut, self.board.inspect(), release, before)
        self.board.mend(kind)
        found = self.board.inspect()
        self._judge(cut, found, release, before)
        self._recover(cut, release, found)
        cut.violations += orphans(self.board, self.mark)
        cut.seconds = time.monotonic() - started
        return cut

    def _next(self) -> Release:
        """A release that is neither active nor the one before."""
        (choice, *_) = [r for r in self.releases if r not in (self.active, self.before)]
        return choice

    def _judge(
        self, cut: Cut, found: Mapping[str, Any], release: Release, before: Mapping[str, Any]
    ) -> None:
        """Whether the device holds a whole release, or none, and nothing else was touched."""
        allowed = {release.id, self.active.id if self.active else None}
        active = found["current"].get(MODEL)
        problems = list(active["problems"]) if active else []
        if active is None and self.active is not None:
            problems.append("nothing is active any more")
        if active is not None and active["release"] not in allowed:
            problems.append(f"{active['release']} is active")
        problems += [f"{path} is stored under a false name" for path in found["false"]]
        if found["beside"] != before["beside"]:
            problems.append("something beside the root has changed")
        cut.switched = active is not None and active["release"] == release.id
        cut.violations += [f"after the cut: {problem}" for problem in problems]

    def _recover(self, cut: Cut, release: Release, found: Mapping[str, Any] | None = None) -> None:
        """Deploys again, which has to end well and to send no byte that was there."""
        running = Deploy.start(self.board, release, self.mark, gc=True)
        code = running.end(self.limit_s)
        if code != 0:
            cut.violations.append(f"the next deploy ended with {code}: {running.output[-500:]}")
        if found is not None and code == 0:
            missing = {h: b for h, b in release.blobs.items() if h not in found["blobs"]}
            cut.present = len(release.blobs) - len(missing)
            cut.resumed_bytes = sum(
                size
                for name, (size, digest) in found["parts"].items()
                if name in missing and _prefix(missing[name][0], size) == digest
            )
            report = running.report()
            cut.resent_bytes = report["sent_bytes"]
            most = sum(size for _, size in missing.values()) - cut.resumed_bytes
            if cut.resent_bytes > most or not set(report["sent_files"]) <= set(missing):
                cut.violations.append(f"{cut.resent_bytes} bytes were sent, {most} were missing")
        after = self.board.inspect()
        active = after["current"].get(MODEL, {"release": None, "problems": []})
        wanted_before: set[str | None] = {r.id for r in (self.active, self.before) if r} or {None}
        if active["release"] != release.id or active["problems"] or after["false"]:
            cut.violations.append(f"after the next deploy: {active} {after['false']}")
        elif active["previous"] not in wanted_before:
            cut.violations.append(f"after the next deploy the one before is {active['previous']}")
        self.active, self.before = release, self.active


def orphans(board: Board, mark: str) -> list[str]:
    """A violation for each process of a deploy that is left, here or there, after its time."""
    deadline = time.monotonic() + ORPHAN_S
    while True:
        left = board.inspect()["processes"] + processes_marked(mark)
        if not left or time.monotonic() > deadline:
            return [f"still running: {line}" for line in left]
        time.sleep(0.3)


def _prefix(path: Any, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def processes_marked(mark: str) -> list[str]:
    """Command lines of this machine's processes that a deploy of this campaign started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(" ".join(process.cmdline())[:200])
        except (psutil.Error, OSError):
            continue
    return found
