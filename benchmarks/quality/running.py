"""One case from nothing to its record, but for the timing (:mod:`.timed`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.quality import judging, keys, making
from benchmarks.quality.cases import Case, Part
from benchmarks.quality.judging import Figures, Truth
from benchmarks.quality.making import Made
from benchmarks.quality.records import Alone, Conditions, Entry, Record
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.files import sha256_file
from edgekit.quality import within
from edgekit.types import EvalResult


def folder_of(case: Case, work: Path) -> Path:
    """Where the files of a case are; vendors' files stay while they would be made the same."""
    return work / f"{case.name}-{keys.stock_key(case)}"


def make_case(case: Case, key: str, work: Path, *, olive: bool) -> Record:
    """Make all files and judge them; what does not work is in the record, not raised."""
    if case.needs and find_spec(case.needs) is None:
        return Record(case.name, key, skipped=f"{case.needs} is not installed")
    folder = folder_of(case, work)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _Run(case, key, work, folder, olive).record()
    except EdgekitError as error:
        return Record(case.name, key, failure=error.message)


@dataclass
class _Run:
    case: Case
    key: str
    work: Path
    folder: Path
    olive: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self) -> Record:
        case, folder = self.case, self.folder
        started = Conditions.now()
        with self._phase("sets and model"):
            if not (folder / "report.npz").is_file():
                making.prepare(case, folder)
        with self._phase("ours"):
            bundle, failures = making.make_ours(case, folder / "ours", folder)
        with self._phase("stock"):
            stock = making.make_stock(case, folder, olive=self.olive)
        made = [*making.ours(bundle, failures), *stock]
        decided = decisions(bundle)
        with self._phase("judging"):
            truth = self._truth(case.factory)
            entries = [self._entry(one, decided, truth) for one in made]
            alone = [
                found
                for part in case.parts
                if part.alone
                for found in self._alone(part, bundle, entries)
            ]
        accuracy = None
        if case.metric == "top1":
            accuracy = judging.compare(case, ["output"], truth, truth.outputs).accuracy
        return Record(
            case=case.name,
            key=self.key,
            made=Conditions.since(*started),
            float_accuracy=accuracy,
            entries=tuple(entries),
            compared=tuple(_least_accurate(case, entries, decided)),
            alone=tuple(alone),
            seconds=self.seconds,
        )

    def _truth(self, factory: str) -> Truth:
        stacks, labels = judging.read_set(self.folder / "report.npz")
        specs, files = making.reference(self.case, self.folder, "report", factory)
        return Truth(stacks, labels, specs, [np.load(file) for file in files])

    def _entry(self, made: Made, decided: Mapping[str, EvalResult], truth: Truth) -> Entry:
        entry = Entry(made.side, made.runtime, made.artifact, failure=made.failure)
        if made.failure or made.path is None:
            return entry
        inspection = made.inspection
        entry = replace(
            entry,
            path=str(made.path.relative_to(self.work)),
            sha256=sha256_file(made.path),
            inputs=made.inputs if made.side in ("stock", "olive") else (),
            drop=decided[made.artifact].drop if made.artifact in decided else None,
            size_bytes=made.path.stat().st_size,
            int8_mac_share=inspection.int8_mac_share if inspection else None,
        )
        try:
            found = self._figures(self.case, made, truth)
        except EdgekitError as error:
            return replace(entry, failure=error.message)
        return replace(
            entry,
            outputs=found.outputs,
            agreement=found.agreement,
            accuracy=found.accuracy,
            noise=found.noise,
        )

    def _alone(self, part: Part, whole: Bundle, entries: Sequence[Entry]) -> list[Alone]:
        """Each artifact's SQNR of a part as one of several, and from a model of its own that was
        made by the same recipe."""
        bundle, failures = making.make_ours(
            self.case, self.folder / part.alone, self.folder, part.alone
        )
        made = {one.artifact: one for one in making.ours(bundle, failures)}
        truth = self._truth(part.alone)
        # Its output is the part.
        case = replace(self.case, parts=())
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
                    figures = self._figures(case, made[artifact.id], truth)
                    (together,) = (o.sqnr_db for o in entry.outputs if o.output == part.name)
                    by_itself = min(o.sqnr_db for o in figures.outputs)
                    found.append(Alone(part.name, entry.artifact, together, by_itself))
        return found

    def _figures(self, case: Case, made: Made, truth: Truth) -> Figures:
        with tempfile.TemporaryDirectory(prefix="edgekit-quality-") as name:
            return judging.figures(case, made, truth, Path(name))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def decisions(bundle: Bundle) -> dict[str, EvalResult]:
    """What our artifacts gave on the set for decisions, by id."""
    return {
        result.artifact_id: result
        for evaluation in bundle.manifest.evals
        if evaluation.role == "choose"
        for result in evaluation.results
    }


def _least_accurate(
    case: Case, entries: Sequence[Entry], decided: Mapping[str, EvalResult]
) -> Iterator[str]:
    """What stands for each runtime until the timing chooses: of the INT8 artifacts within the
    budget the least accurate, as every one may be chosen; without one, the most accurate."""

    def accuracy(entry: Entry) -> tuple[float, float]:
        result = decided[entry.artifact]
        return -result.drop, min((one.sqnr_db for one in result.outputs), default=0.0)

    for runtime in dict.fromkeys(entry.runtime for entry in entries):
        ours = [e for e in entries if (e.side, e.runtime) == ("ours", runtime) and not e.failure]
        kept = [e for e in ours if within(decided[e.artifact].drop, case.max_drop)]
        if ours:
            found = min(kept, key=accuracy) if kept else max(ours, key=accuracy)
            yield found.artifact
