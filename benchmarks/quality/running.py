"""One case from nothing to its record."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.common import cpu_model
from benchmarks.quality import choosing, judging, making
from benchmarks.quality.cases import Case, Part
from benchmarks.quality.judging import Figures, Truth
from benchmarks.quality.making import Made
from benchmarks.quality.records import Alone, Choice, Entry, Record
from benchmarks.quality.timing import Effort, Timed, measure
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.targets.runner import RunnerReport


def run_case(case: Case, key: str, work: Path, effort: Effort, *, olive: bool) -> Record:
    """Make, time, choose and judge; what does not work is in the record, not raised."""
    if case.needs and find_spec(case.needs) is None:
        return Record(case.name, key, skipped=f"{case.needs} is not installed")
    folder = work / f"{case.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _Run(case, key, folder, effort, olive).record()
    except EdgekitError as error:
        return Record(case.name, key, failure=error.message)


@dataclass
class _Run:
    case: Case
    key: str
    folder: Path
    effort: Effort
    olive: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self) -> Record:
        case, folder = self.case, self.folder
        load = os.getloadavg()[0]
        with self._phase("sets and model"):
            if not (folder / "report.npz").is_file():
                making.prepare(case, folder)
        with self._phase("ours"):
            bundle, failures = making.make_ours(case, folder / "ours", folder)
        with self._phase("stock"):
            stock = making.make_stock(case, folder, olive=self.olive)
        made = [*making.ours(bundle, failures), *stock]
        with self._phase("timing"):
            reports, unable = self._time(made)
            facts = choosing.this_machine(folder / "device")
        probes = choosing.probe_results(bundle, reports, facts)
        notes: dict[str, str] = {}
        choices: list[Choice] = []
        judged = set()
        for runtime in making.VENDORS:
            best = choosing.best_int8(bundle, probes, runtime, case.max_drop)
            if best is not None:
                judged.add(runtime)
                notes[best[0]] = best[1]
            choice = choosing.choice(bundle, probes, runtime, case.max_drop)
            choices += [choice] if choice is not None else []
        # Of our INT8 variants the chosen one is compared; without one, the failures are listed.
        compared = [
            one
            for one in made
            if one.side != "ours" or one.artifact in notes or one.runtime not in judged
        ]
        with self._phase("report"):
            truth = self._truth(case.factory)
            entries = [self._entry(one, reports, unable, notes, truth) for one in compared]
            alone = [
                found
                for part in case.parts
                if part.alone
                for found in self._alone(part, bundle, entries)
            ]
        accuracy = None
        if case.metric == "top1":
            float_figures = judging.compare(case, ["output"], truth, truth.outputs)
            accuracy = float_figures.accuracy
        return Record(
            case=case.name,
            key=self.key,
            cpu=cpu_model(),
            load=load,
            float_accuracy=accuracy,
            entries=tuple(entries),
            choices=tuple(choices),
            alone=tuple(alone),
            seconds=self.seconds,
        )

    def _time(self, made: Sequence[Made]) -> tuple[dict[str, list[RunnerReport]], dict[str, str]]:
        stacks, _ = judging.read_set(self.folder / "choose.npz")
        first = [stack[:1] for stack in stacks]
        return measure(
            [
                Timed(
                    one.artifact,
                    one.runtime,
                    one.path,
                    tuple(stack[0] for stack in judging.fed(one, first)),
                )
                for one in made
                if one.path is not None
            ],
            self.effort,
        )

    def _truth(self, factory: str) -> Truth:
        stacks, labels = judging.read_set(self.folder / "report.npz")
        specs, files = making.reference(self.case, self.folder, "report", factory)
        return Truth(stacks, labels, specs, [np.load(file) for file in files])

    def _entry(
        self,
        made: Made,
        reports: Mapping[str, Sequence[RunnerReport]],
        unable: Mapping[str, str],
        notes: Mapping[str, str],
        truth: Truth,
    ) -> Entry:
        failure = made.failure or unable.get(made.artifact, "")
        entry = Entry(made.side, made.runtime, made.artifact, failure=failure)
        if failure or made.path is None:
            return entry
        inspection = made.inspection
        entry = replace(
            entry,
            size_bytes=made.path.stat().st_size,
            int8_mac_share=inspection.int8_mac_share if inspection else None,
            latency_ns=tuple(report.latency_ns for report in reports[made.artifact]),
            note=notes.get(made.artifact, ""),
        )
        try:
            found = self._figures(made, truth)
        except EdgekitError as error:
            return replace(entry, failure=error.message)
        return replace(
            entry, outputs=found.outputs, agreement=found.agreement, accuracy=found.accuracy
        )

    def _alone(self, part: Part, whole: Bundle, entries: Sequence[Entry]) -> list[Alone]:
        """Each runtime's SQNR of a part as one of several and from a model of its own, made by the
        same recipe as the artifact that was compared."""
        bundle, failures = making.make_ours(
            self.case, self.folder / part.alone, self.folder, part.alone
        )
        made = {one.artifact: one for one in making.ours(bundle, failures)}
        truth = self._truth(part.alone)
        recipes = {artifact.id: artifact.recipe for artifact in whole.manifest.artifacts}
        found = []
        for entry in entries:
            if entry.side != "ours" or entry.failure:
                continue
            wanted = recipes[entry.artifact]
            for artifact in bundle.manifest.artifacts:
                recipe = artifact.recipe
                same = (recipe.name, recipe.variant) == (wanted.name, wanted.variant)
                if artifact.runtime == entry.runtime and same:
                    figures = self._figures(made[artifact.id], truth)
                    (together,) = (o.sqnr_db for o in entry.outputs if o.output == part.name)
                    by_itself = min(o.sqnr_db for o in figures.outputs)
                    found.append(Alone(part.name, entry.runtime, together, by_itself))
        return found

    def _figures(self, made: Made, truth: Truth) -> Figures:
        with tempfile.TemporaryDirectory(prefix="edgekit-quality-") as name:
            return judging.figures(self.case, made, truth, Path(name))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
