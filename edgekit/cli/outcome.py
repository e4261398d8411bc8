"""What quantize, deploy, probe, select and run print, and the exit code that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import codec
from edgekit.cli.output import Output, say
from edgekit.errors import ExportFailed, NothingEligible
from edgekit.types import CandidateFailure, Selection

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.config import ProjectConfig
    from edgekit.pipeline import DeployOutcome, QuantizeOutcome
    from edgekit.results import RunRecord


def show_run(out: Output, record: RunRecord) -> int:
    """Print a recorded run with its selection; 3 where nothing was eligible."""

    def show(console: Console) -> None:
        from edgekit.report import terminal

        console.print(terminal.run_view(record))

    out.result(run_document(record), show)
    return selection_code(record.selection)


def show_deploy(out: Output, outcome: DeployOutcome, *, strict: bool) -> int:
    """Print what deploying or probing gave; 3 where nothing was eligible, 8 with ``strict``."""
    out.result(deploy_document(outcome), lambda console: draw_deploy(console, outcome))
    return deploy_code(outcome, strict=strict)


def draw_deploy(console: Console, outcome: DeployOutcome) -> None:
    """The selection, what is active now, and where the record is."""
    from edgekit.report import terminal

    console.print(terminal.run_view(outcome.record))
    if outcome.activation is not None:
        active = outcome.activation
        console.print(
            f"Active on {outcome.record.target}: {active.artifact_id} with {active.threads} "
            f"thread{'s' if active.threads != 1 else ''} (release {active.release}).",
            markup=False,
        )
    how = "measured before, nothing changed" if outcome.reused else f"in {outcome.seconds:.0f} s"
    console.print(f"Run: {outcome.record.path} ({how})", markup=False, soft_wrap=True)
    console.print(f"Report: {_report(outcome)}", markup=False, soft_wrap=True)


def _report(outcome: DeployOutcome) -> Path:
    """The run's page, written unless it is there and nothing was measured or chosen anew."""
    from edgekit.report.html import write_html
    from edgekit.results import REPORT, SELECTION

    path = outcome.record.path / REPORT
    chosen = outcome.record.path / SELECTION
    if path.exists() and path.stat().st_mtime >= chosen.stat().st_mtime:
        return path
    return write_html(outcome.record)


def deploy_document(outcome: DeployOutcome) -> dict[str, Any]:
    """One deploy for ``--json``."""
    return {
        **run_document(outcome.record),
        "report": str(_report(outcome)),
        "activation": codec.to_jsonable(outcome.activation) if outcome.activation else None,
        "pushed": codec.to_jsonable(outcome.pushed) if outcome.pushed else None,
        "reused": outcome.reused,
        "seconds": outcome.seconds,
    }


def deploy_code(outcome: DeployOutcome, *, strict: bool) -> int:
    """3 where nothing was eligible; 8 with ``strict`` where a candidate failed; else 0."""
    return selection_code(outcome.selection) or strict_code(outcome.record.failures, strict)


def run_document(record: RunRecord) -> dict[str, Any]:
    """A run for ``--json``; the raw probes stay in their files."""
    return {
        "run": str(record.path),
        "target": record.target,
        "model": record.manifest.model.name,
        "selection": codec.to_jsonable(record.selection) if record.selection else None,
        "failures": codec.to_jsonable(record.failures),
        "problems": list(record.problems),
    }


def selection_code(selection: Selection | None) -> int:
    """3, said on stderr, where a selection chose nothing; else 0."""
    if selection is None or selection.chosen is not None:
        return 0
    say(f"edgekit: Nothing keeps the budget. {selection.rule}")
    say("  -> Allow more with --max-drop, or see the reasons in the table.")
    return NothingEligible.exit_code


def strict_code(failures: Sequence[CandidateFailure], strict: bool) -> int:
    """8 with ``--strict`` where any candidate failed; else 0."""
    if not (strict and failures):
        return 0
    say(f"edgekit: {len(failures)} candidates failed, which --strict makes an error.")
    return ExportFailed.exit_code


def show_bundle(console: Console, outcome: QuantizeOutcome) -> None:
    """Print what a bundle holds and where it is."""
    from edgekit.report import terminal
    from edgekit.report.ladder import ladder_table, ladders

    console.print(terminal.quantize_summary(outcome.bundle.manifest, outcome.failures))
    for ladder in ladders(outcome.bundle.recipe_log):
        console.print()
        console.print(ladder_table(ladder))
    how = "unchanged" if outcome.reused else f"made in {outcome.seconds:.0f} s"
    console.print(f"Bundle: {outcome.bundle.path} ({how})", markup=False)


def quantize_document(outcome: QuantizeOutcome) -> dict[str, Any]:
    """A finished bundle for ``--json``."""
    manifest = outcome.bundle.manifest
    return {
        "bundle": str(outcome.bundle.path),
        "digest": outcome.bundle.digest,
        "reused": outcome.reused,
        "seconds": outcome.seconds,
        "within_budget": list(outcome.within_budget),
        "artifacts": codec.to_jsonable(manifest.artifacts),
        "evals": codec.to_jsonable(manifest.evals),
        "failures": codec.to_jsonable(outcome.failures),
        "ladders": codec.to_jsonable(outcome.bundle.recipe_log.ladders),
    }


def quantize_code(project: ProjectConfig, outcome: QuantizeOutcome, strict: bool) -> int:
    """3 where INT8 was asked for and nothing INT8 keeps the budget; 8 with ``--strict``; else 0."""
    if project.quantize.recipes != ("fp32",) and not outcome.within_budget:
        say(f"edgekit: No INT8 artifact keeps a drop of {project.budget.max_drop:g} on this host.")
        best = _best_int8(outcome)
        if best:
            say(f"  {best}")
        say("  -> The bundle is there all the same. Allow more with --max-drop, give more or more")
        say("     typical samples with --calib, or look for the layers that hurt: `edgekit debug`.")
        return NothingEligible.exit_code
    return strict_code(outcome.failures, strict)


def _best_int8(outcome: QuantizeOutcome) -> str:
    """The INT8 artifact that loses least, and what was tried on it."""
    manifest, log = outcome.bundle.manifest, outcome.bundle.recipe_log
    int8 = {a.id for a in manifest.artifacts if a.precision == "int8"}
    results = [
        result
        for evaluation in manifest.evals
        if evaluation.role == "choose"
        for result in evaluation.results
        if result.artifact_id in int8
    ]
    if not results:
        return ""
    best = min(results, key=lambda result: result.drop)
    tried = [rung.rung for rung in log.ladders.get(best.artifact_id, ())]
    text = f"The best one, {best.artifact_id}, loses {best.drop:.3g}."
    return f"{text} Tried: {', '.join(tried)}." if tried else text
