"""``edgekit check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit import codec
from edgekit.cli import options as o
from edgekit.cli.output import Output
from edgekit.config import ProjectConfig
from edgekit.errors import ExportFailed

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.pipeline.checking import CheckOutcome


def check(
    out: Output,
    model: o.Model = None,
    runtimes: o.Runtimes = None,
    name: o.Name = None,
    weights: o.Weights = None,
    unsafe_weights: o.UnsafeWeights = None,
    input: o.Input = None,
    example: o.Example = None,
    config: o.Config = None,
) -> int:
    """Say which operators of a model each runtime takes, before anything is exported.

    Every operator of the prepared program is listed with its module and its source line. A runtime
    computes it in int8, keeps it in float, runs it outside its delegate, or cannot convert it. The
    exit code is 8 where a runtime cannot convert all of them.
    """
    project = ProjectConfig.from_args(
        config=config,
        model=model,
        runtimes=o.names(runtimes),
        name=name,
        weights=weights,
        unsafe_weights=unsafe_weights,
        input=input,
        example=example,
    )
    from edgekit.pipeline.checking import check

    outcome = check(project, progress=out.progress)

    def show(console: Console) -> None:
        from edgekit.report.operators import operators_view

        console.print(operators_view(outcome.model, outcome.operators, outcome.checks))
        for note in outcome.notes:
            console.print(note, markup=False)

    out.result(_document(outcome), show)
    return 0 if outcome.converts else ExportFailed.exit_code


def _document(outcome: CheckOutcome) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "converts": outcome.converts,
        "operators": [
            {
                **codec.to_jsonable(operator),
                "runtimes": {
                    check.runtime: codec.to_jsonable(check.verdicts[operator.node])
                    for check in outcome.checks
                    if check.verdicts
                },
            }
            for operator in outcome.operators
        ],
        "runtimes": {
            check.runtime: {
                "converts": check.converts,
                "error": check.error,
                "remedy": check.remedy,
                "seconds": check.seconds,
            }
            for check in outcome.checks
        },
        "notes": list(outcome.notes),
        "seconds": outcome.seconds,
    }
