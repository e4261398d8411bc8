"""The repair ladder: rungs are climbed, cheapest first, only as far as the budget needs.

Each rung is applied to what the kept ones gave, judged by simulation on the evaluation set, and
kept only where it helps. What a rung gave is saved under the rungs that it stands on, so that
another budget climbs further from where the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgekit import codec
from edgekit.errors import ConfigError
from edgekit.files import staged_dir, write_atomic
from edgekit.quality import within
from edgekit.quantize import graph
from edgekit.quantize.outliers import Apart
from edgekit.quantize.rungs import RUNGS, Rung, float_layers
from edgekit.quantize.rungs.base import Quality, Work
from edgekit.types import RangeKind, Recipe, RungResult

#: Rungs that cost neither minutes nor device time are climbed up to this SQNR, whatever the budget:
#: an evaluation set of some dozen samples cannot tell a drop of 0.02 from one of 0.08.
COMFORT_DB = 30.0
#: Dynamic INT8 has two cheap rungs only, and is chosen for networks that are to stay that close on
#: samples which nobody has seen: a margin is worth them.
COMFORT_DYNAMIC_DB = 36.0
#: The name under which the ladder's foot is reported.
FOOT = "calibration"

_STATE = "state.pt"
_RESULT = "result.json"
_QUALITY = "quality.json"


@dataclass(frozen=True)
class _Saved:
    """A state on the ladder, without its weights; ``notes`` are by rung.

    ``seconds`` are those of all its rungs, as far as they were not there.
    """

    kind: RangeKind
    float_nodes: tuple[str, ...]
    apart: Apart | None
    added_ns: int
    notes: dict[str, str]
    seconds: float


def climb(
    work: Work,
    rungs: Sequence[Rung],
    saved: Path,
    *,
    on_rung: Callable[[str], None] = lambda name: None,
) -> tuple[tuple[str, ...], tuple[RungResult, ...]]:
    """Climb; ``work`` is left as the kept rungs give it.

    Args:
        work: the calibrated program, without any repair.
        rungs: in climbing order.
        saved: folder of what was climbed before with the same program and sample sets.
        on_rung: called with the name of each rung before it is tried.

    Returns:
        The names of the kept rungs in the order of their application, and what each gave.
    """
    ladder = _Ladder(work, saved)
    on_rung(FOOT)
    foot, best = ladder.reach(()), ladder.judge(())
    results = [_result(FOOT, True, foot, best)]
    kept: tuple[Rung, ...] = ()
    for rung in rungs:
        if _reached(best, rung, work):
            continue
        on_rung(rung.name)
        trial = _in_order((*kept, rung))
        alone = ladder.reach(trial[: trial.index(rung) + 1])
        if not alone.notes[rung.name]:
            # It changed nothing, so all that stands on it would only be done again.
            results.append(_result(rung.name, False, alone, best))
            continue
        made, found = ladder.reach(trial), ladder.judge(trial)
        helps = _better(found, best, rung, work.max_drop)
        results.append(_result(rung.name, helps, made, found))
        if helps:
            kept, best = trial, found
    ladder.reach(kept)
    return tuple(rung.name for rung in kept), tuple(results)


def replay(work: Work, recipe: Recipe) -> None:
    """Do what a saved recipe says: its steps in their order, with its ranges and float layers."""
    work.kind = recipe.ranges
    # Names are those of the graph that the first step leaves.
    if recipe.steps[:1] == ("outlier_channels",):
        RUNGS["outlier_channels"].apply(work)
    layers = {name for x in graph.layers(work.reference) for name in (x.name, x.output.name)}
    work.float_nodes |= frozenset(recipe.float_nodes) - layers
    for name in recipe.steps:
        if name == "float_layers":
            float_layers.take(work, recipe.float_nodes)
        elif name not in ("ranges", "outlier_channels"):
            RUNGS[name].apply(work)
    if work.float_nodes != frozenset(recipe.float_nodes):
        odd = sorted(work.float_nodes ^ frozenset(recipe.float_nodes))
        raise ConfigError(
            f"The saved recipe leaves other nodes in float than this program: {', '.join(odd)}.",
            remedy="Replay it on the model that it was made for, with the same edgekit.",
        )


def _reached(quality: Quality, rung: Rung, work: Work) -> bool:
    keeps = within(quality.drop, work.max_drop)
    if rung.only_if_needed or not keeps:
        return keeps
    return quality.sqnr_db >= (COMFORT_DYNAMIC_DB if work.dynamic else COMFORT_DB)


def _better(new: Quality, old: Quality, rung: Rung, max_drop: float) -> bool:
    """A lower drop counts unless the outputs moved away from float; else a clear gain in SQNR.

    Nothing counts that does not keep a budget which was kept without it. A rung that has to gain
    much, as it costs time on the device, is not kept for a sample more or less outside the budget.
    """
    if within(old.drop, max_drop) and not within(new.drop, max_drop):
        return False
    gain = new.sqnr_db - old.sqnr_db
    lower = new.drop < old.drop and (rung.min_gain_db < 1 or within(new.drop, max_drop))
    return gain >= rung.min_gain_db or (lower and gain >= 0)


def _in_order(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    return tuple(sorted(rungs, key=lambda rung: rung.stage))


def _result(name: str, kept: bool, made: _Saved, quality: Quality) -> RungResult:
    return RungResult(
        rung=name,
        kept=kept,
        sqnr_db=quality.sqnr_db,
        drop=quality.drop,
        seconds=round(made.seconds, 2),
        added_ns=made.added_ns,
        note=made.notes[name],
    )


class _Ladder:
    """Brings ``work`` into the state that some rungs give, by way of saved states."""

    def __init__(self, work: Work, saved: Path) -> None:
        self._work, self._folder = work, saved
        self._foot = (work.kind, work.float_nodes, work.constants())

    def reach(self, rungs: tuple[Rung, ...]) -> _Saved:
        """``work`` as the rungs give it, in this order of application."""
        found = self._load(rungs)
        if found is not None:
            return found
        started = time.monotonic()
        work = self._work
        if rungs:
            notes = dict(self.reach(rungs[:-1]).notes)
            below = work.constants()
            notes[rungs[-1].name] = rungs[-1].apply(work)
        else:
            notes = {FOOT: "fused patterns, per-channel weights"}
            self._stand_at_foot()
            below = work.constants()
        # Weights can be hundreds of megabytes, and there are a dozen states.
        changed = {
            name: value
            for name, value in work.constants().items()
            if name not in below or not torch.equal(value, below[name])
        }
        made = _Saved(
            kind=work.kind,
            float_nodes=tuple(sorted(work.float_nodes)),
            apart=work.apart,
            added_ns=work.added_ns,
            notes=notes,
            seconds=time.monotonic() - started,
        )
        with staged_dir(self._path(rungs)) as folder:
            torch.save(changed, folder / _STATE)
            (folder / _RESULT).write_text(codec.to_json(made), encoding="utf-8")
        return made

    def judge(self, rungs: tuple[Rung, ...]) -> Quality:
        """How good the state is that was reached last, by these rungs; judged once."""
        path = self._path(rungs) / _QUALITY
        if path.is_file():
            return codec.from_json(Quality, path.read_bytes(), where=str(path))
        quality = self._work.judge(self._work)
        write_atomic(path, codec.to_json(quality))
        return quality

    def _stand_at_foot(self) -> None:
        self._take_apart(None)
        self._work.kind, self._work.float_nodes, constants = self._foot
        self._work.added_ns = 0
        self._work.install(constants)

    def _load(self, rungs: tuple[Rung, ...]) -> _Saved | None:
        path = self._path(rungs)
        if not (path / _RESULT).is_file():
            return None
        found = codec.from_json(_Saved, (path / _RESULT).read_bytes(), where=str(path))
        # What a rung changed is saved; the rest is as the rungs below it gave it.
        if rungs:
            self.reach(rungs[:-1])
        else:
            self._stand_at_foot()
        self._take_apart(found.apart)
        self._work.kind = found.kind
        self._work.float_nodes = frozenset(found.float_nodes)
        self._work.added_ns = found.added_ns
        self._work.install(torch.load(path / _STATE, weights_only=True))
        return found

    def _take_apart(self, apart: Apart | None) -> None:
        if apart != self._work.apart:
            self._work.take_apart(apart)

    def _path(self, rungs: tuple[Rung, ...]) -> Path:
        """Rungs that look at the budget give another state for another budget."""
        parts: list[object] = [rung.name for rung in rungs]
        if any(rung.by_budget for rung in rungs):
            parts.append(self._work.max_drop)
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        return self._folder / f"rungs-{key}"
