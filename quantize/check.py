"""Which operators of a program each runtime takes, found out before anything is exported.

A checker is one file, ``check_<runtime>.py``, with a function ``check(program)``; it runs in a
process of its own and asks the runtime's own tables (lowering registries, partitioner constraints,
quantizer policies) what becomes of each operator. Nothing in here imports a framework before it is
called, so that reports can be read anywhere.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgekit import codec, registry
from edgekit.errors import EdgekitError, ExportFailed, MissingExtra

if TYPE_CHECKING:
    import torch

#: What becomes of an operator, see :class:`Verdict`.
Fate = Literal["fails", "outside", "float", "int8", "converts"]
#: From the worst to the best; what only moves values says nothing of its parts.
FATES: tuple[Fate, ...] = ("fails", "outside", "float", "int8", "converts")


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator call of the prepared program, and where in the model it comes from.

    ``module`` is the dotted path of the innermost module and ``kind`` its class; both are empty
    where the operator is the preparation's own. ``source`` is ``file:line`` of the user's innermost
    line, empty where it is not known.
    """

    node: str
    op: str
    module: str = ""
    kind: str = ""
    source: str = ""


#: The reason for what would be int8 if edgekit had not rules of its own.
LEFT_FLOAT = "edgekit leaves it in float: int8 would lose it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one runtime does with one operator.

    ``fails``: it cannot be converted. ``outside``: it runs outside the runtime's accelerated
    delegate, in float. ``float``: it converts and stays float in a static INT8 artifact.
    ``converts``: it converts and takes its input's type, or nothing of it is left. ``int8``: it
    converts and computes in int8 in a static INT8 artifact. Where the runtime has a delegate, the
    last three run inside it.

    ``rewritten`` names the decomposition that makes it convert; ``remedy`` is advice.
    """

    fate: Fate
    reason: str = ""
    rewritten: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """One runtime's verdicts by node; ``error`` says why there are none."""

    runtime: str
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""
    seconds: float = 0.0

    @property
    def converts(self) -> bool:
        """Whether every operator does."""
        return not self.error and all(v.fate != "fails" for v in self.verdicts.values())


@dataclass(frozen=True, slots=True)
class Row:
    """Operators that share their kind and every runtime's verdict, in program order."""

    op: str
    operators: tuple[Operator, ...]
    verdicts: Mapping[str, Verdict]

    @property
    def worst(self) -> int:
        """The rank of the worst verdict in :data:`FATES`."""
        return min((FATES.index(v.fate) for v in self.verdicts.values()), default=len(FATES))


class Checker(Protocol):
    """Asks one runtime about every operator of a prepared program.

    Returns:
        verdicts by the node names of :func:`edgekit.quantize.prepare.as_module`.
    """

    def __call__(self, program: torch.export.ExportedProgram) -> Mapping[str, Verdict]: ...


def rows(operators: Sequence[Operator], checks: Sequence[RuntimeCheck]) -> list[Row]:
    """The operators in groups, those with the worst verdicts first, then the most frequent."""
    groups: dict[tuple[Any, ...], list[Operator]] = {}
    verdicts: dict[tuple[Any, ...], dict[str, Verdict]] = {}
    for operator in operators:
        found = {c.runtime: c.verdicts[operator.node] for c in checks if c.verdicts}
        key = (operator.op, *found.items())
        groups.setdefault(key, []).append(operator)
        verdicts[key] = found
    made = [Row(key[0], tuple(group), verdicts[key]) for key, group in groups.items()]
    return sorted(made, key=lambda row: (row.worst, -len(row.operators)))


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of the verdicts on the parts that an operator was taken apart into."""
    return min(verdicts, key=lambda v: FATES.index(v.fate))


def describe_worker(payload: dict[str, Any]) -> list[Any]:
    """The operators of the program in the file ``payload["program"]``, as JSON."""
    import torch

    from edgekit.quantize.origins import operators

    found = operators(torch.export.load(payload["program"]))
    return [codec.to_jsonable(operator) for operator in found]


def check_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """One runtime's verdicts on the program in the file ``payload["program"]``, as JSON.

    Raises:
        MissingExtra: the runtime's packages are not installed.
        ExportFailed: there is no checker for the runtime, or the runtime's own tools stumbled.
    """
    entry = registry.runtimes()[payload["runtime"]]
    if not entry.checker:
        raise ExportFailed(f"{entry.label} comes without an operator check.")
    try:
        checker: Checker = registry.load_object(entry.checker)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or str(error), entry.extra) from error
    return {
        node: codec.to_jsonable(verdict)
        for node, verdict in _checked(checker, entry.label, Path(payload["program"])).items()
    }


def _checked(checker: Checker, label: str, path: Path) -> Mapping[str, Verdict]:
    import torch

    from edgekit.quantize.graph import SAME_VALUES
    from edgekit.quantize.origins import calls
    from edgekit.quantize.prepare import as_module

    program = torch.export.load(path)
    # The checker may take the program apart.
    gm = as_module(program)
    try:
        verdicts = checker(program)
    except (EdgekitError, MemoryError):
        raise
    # The runtimes' tools raise whatever they like.
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        raise ExportFailed(
            f"{label} cannot be asked about this model: {type(error).__name__}: {first}"[:500],
            remedy="`edgekit quantize` tries the conversion itself.",
        ) from error
    return {
        node.name: _moved(verdicts[node.name])
        if node.target in SAME_VALUES
        else verdicts[node.name]
        for node in calls(gm)
    }


def _moved(verdict: Verdict) -> Verdict:
    """An operator that only moves values is int8 or float as its input is."""
    return replace(verdict, fate="converts") if verdict.fate in ("float", "int8") else verdict
