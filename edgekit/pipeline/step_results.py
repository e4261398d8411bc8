"""What each step of making a bundle leaves in its folder, beside its files."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.types import (
    EvalResult,
    Inspection,
    Metric,
    RawTensor,
    Recipe,
    RungResult,
    TensorSpec,
)

#: Name of an exported file, without its extension.
ARTIFACT = "artifact"


@dataclass(frozen=True)
class LoadResult:
    """The model, exported. ``dependencies`` are (path, SHA-256) of the user's own files.

    The last three are those of :class:`edgekit.quantize.engine.Prepared`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights_sha256: str
    program_digest: str
    passes: tuple[str, ...]
    dependencies: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    ops: tuple[str, ...]
    rewrites: tuple[str, ...]
    is_transformer: bool


@dataclass(frozen=True)
class SetResult:
    """One sample set that was read and checked; ``path`` is its folder."""

    path: str
    id: str
    n: int
    labelled: bool
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceResult:
    """The float model's outputs: tensors of all evaluation and all report samples.

    ``prepared_sqnr_db`` is how well the prepared program agrees with the eager model.
    """

    choose: tuple[RawTensor, ...]
    report: tuple[RawTensor, ...]
    metric: Metric
    choose_value: float | None
    report_value: float | None
    prepared_sqnr_db: float


@dataclass(frozen=True)
class RepairResult:
    """What :class:`edgekit.quantize.engine.Repaired` says."""

    recipe: Recipe
    ladder: tuple[RungResult, ...]
    digest: str


@dataclass(frozen=True)
class ExportResult:
    """One artifact.

    ``promised_share`` is what its recipe promises to hold in int8 of this program's
    multiply-accumulates; None without a promise.
    """

    recipe: Recipe
    promised_share: float | None
    tool_versions: dict[str, str]
    inspection: Inspection
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class EvaluateResult:
    """One artifact's quality on the host; ``golden`` are its outputs on the evaluation set."""

    choose: EvalResult
    report: EvalResult | None
    golden: tuple[RawTensor, ...]
