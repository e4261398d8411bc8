"""What was measured, kept: one folder per run, raw probe results appended, the selection derived.

    runs/<utc>-<model>-<target>/
        manifest.json     the bundle's manifest, byte for byte
        probes/*.json     one ProbeResult each; written once, never changed
        failures.json     candidates that could not be made or run
        selection.json    derived from the files above and a budget; `reselect` makes it again
        report.html       written by `edgekit report`

The files are the only source of truth; :mod:`edgekit.runs` queries many runs from them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from edgekit import codec
from edgekit.errors import EdgekitError, UsageError
from edgekit.explain import Objective
from edgekit.files import write_atomic
from edgekit.manifest_check import read_manifest
from edgekit.runs import QueryResult as QueryResult
from edgekit.runs import query_runs as query_runs
from edgekit.select import select
from edgekit.types import Budget, CandidateFailure, Manifest, ProbeResult, Selection

T = TypeVar("T")

MANIFEST, PROBES, FAILURES, SELECTION, REPORT = (
    "manifest.json",
    "probes",
    "failures.json",
    "selection.json",
    "report.html",
)
PROBE_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class _Failures:
    """failures.json."""

    schema: int
    failures: tuple[CandidateFailure, ...]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as read. ``problems`` names files that were damaged and therefore left out."""

    path: Path
    manifest: Manifest
    probes: tuple[ProbeResult, ...]
    failures: tuple[CandidateFailure, ...]
    selection: Selection | None
    problems: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The target's name, as the probes give it; empty where nothing was probed."""
        return self.probes[0].target if self.probes else ""


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run that is being written."""

    path: Path

    @classmethod
    def create(cls, root: Path, model: str, target: str, manifest_json: str | bytes) -> RunDir:
        """Makes ``root/<utc>-<model>-<target>``; a second run of the same second gets ``-2``."""
        root.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"{stamp}-{_slug(model)}-{_slug(target)}"
        path, n = root / name, 1
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError:
                n += 1
                path = root / f"{name}-{n}"
        (path / PROBES).mkdir()
        write_atomic(path / MANIFEST, manifest_json)
        return cls(path)

    def append_probe(self, result: ProbeResult) -> Path:
        """Writes one result under a name of its own; earlier results stay as they are."""
        folder = self.path / PROBES
        request = result.request
        n = sum(1 for _ in folder.glob("*.json")) + 1
        while True:
            name = f"{n:04d}-{_slug(request.artifact_id)}-t{request.threads}.json"
            path = folder / name
            if not path.exists():
                write_atomic(path, codec.to_json(result) + "\n")
                return path
            n += 1

    def write_failures(self, failures: Sequence[CandidateFailure]) -> None:
        """Replaces failures.json."""
        document = _Failures(schema=1, failures=tuple(failures))
        write_atomic(self.path / FAILURES, codec.to_json(document, indent=2) + "\n")

    def write_selection(self, selection: Selection) -> None:
        """Replaces selection.json."""
        write_atomic(self.path / SELECTION, codec.to_json(selection, indent=2) + "\n")


def load(path: Path) -> RunRecord:
    """Reads a run. Damaged probe, failure and selection files are left out and named.

    Raises:
        UsageError: there is no run in this folder.
        BundleError: its manifest is damaged, without which nothing else means anything.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise UsageError(f"{path} is not a run: it has no {MANIFEST}.", remedy="edgekit results")
    manifest = read_manifest(file.read_bytes(), where=str(file))
    problems: list[str] = []
    probes = [_read(ProbeResult, f, problems) for f in sorted((path / PROBES).glob("*.json"))]
    failures = _read(_Failures, path / FAILURES, problems)
    return RunRecord(
        path=path,
        manifest=manifest,
        probes=tuple(p for p in probes if p is not None),
        failures=() if failures is None else failures.failures,
        selection=_read(Selection, path / SELECTION, problems),
        problems=tuple(problems),
    )


def reselect(
    path: Path, budget: Budget | None = None, objective: Objective | None = None
) -> Selection:
    """Selects again from the stored results and writes selection.json.

    Args:
        path: the run folder.
        budget, objective: default: those of the stored selection.

    Raises:
        UsageError: no budget was given and none is stored.
    """
    run = load(path)
    stored = run.selection
    if budget is None:
        if stored is None:
            raise UsageError(
                f"{path.name} has no readable {SELECTION} to take the budget from.",
                remedy="Give one: --max-drop 0.01",
            )
        budget = stored.budget
    if objective is None:
        objective = "p50" if stored is None else stored.objective
    selection = select(run.manifest, run.probes, budget, objective, run.failures)
    RunDir(path).write_selection(selection)
    return selection


def find_run(root: Path, name: str | None = None) -> Path:
    """The folder of a run: a path, a name in ``root``, or (None or ``"latest"``) the newest one.

    Raises:
        UsageError: there is none, or several start with ``name``.
    """
    names = run_names(root)
    if name is None or name == "latest":
        if not names:
            raise UsageError(
                f"There are no runs in {root}.", remedy="edgekit deploy --target local"
            )
        return root / names[-1]
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) == 1:
        return root / matches[0]
    what = "No run" if not matches else f"More than one run ({', '.join(matches[:3])})"
    raise UsageError(f"{what} in {root} is called {name!r}.", remedy="edgekit results")


def run_names(root: Path) -> tuple[str, ...]:
    """Names of the run folders in ``root``, oldest first."""
    if not root.is_dir():
        return ()
    found = (p.name for p in root.iterdir() if not p.name.startswith("."))
    return tuple(sorted(n for n in found if (root / n / MANIFEST).is_file()))


def _read(cls: type[T], path: Path, problems: list[str]) -> T | None:
    if not path.is_file():
        return None
    try:
        value = codec.from_json(cls, path.read_bytes(), where=path.name)
    except (EdgekitError, OSError) as error:
        message = error.message if isinstance(error, EdgekitError) else f"{path.name}: {error}."
        problems.append(message)
        return None
    schema = getattr(value, "schema", PROBE_SCHEMA)
    if schema != PROBE_SCHEMA:
        problems.append(f"{path.name}: schema {schema} is not what this edgekit reads.")
        return None
    return value


def _slug(text: str) -> str:
    """Letters, digits, dot, dash and underscore; never empty, never hidden, at most 80 long."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:80].strip("._") or "x"
