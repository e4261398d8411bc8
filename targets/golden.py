"""Outputs that a device gave for the golden inputs, compared with float and with the host's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import quality
from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.types import Artifact, GoldenCheck, TensorSpec

if TYPE_CHECKING:
    import numpy as np

#: The same file on two CPUs: kernels round differently, which for int8 shows as single steps.
MIN_HOST_SQNR_DB = 30.0
#: What 30 dB of noise added to the artifact's own error may cost against float.
SQNR_MARGIN_DB = 3.0
#: From here on an artifact counts as float itself; float kernels differ in the last digits.
FLOAT_SQNR_DB = 60.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """The golden samples, run on the device and judged on the host.

    ``host_drop`` is the drop of the host's outputs over the same samples: what the bundle promises.
    """

    checks: tuple[GoldenCheck, ...]
    host_sqnr_db: tuple[float, ...]
    n: int
    top1_agreement: float | None
    drop: float
    host_drop: float


def host_outputs(bundle: Bundle, artifact: Artifact) -> list[np.ndarray[Any, Any]]:
    """The artifact's own golden outputs on the host, each (n, *shape)."""
    tensors = bundle.manifest.golden.artifact_outputs.get(artifact.id)
    if tensors is None or len(tensors) != len(artifact.outputs):
        raise BundleError(f"{bundle.path}: {artifact.id} has no golden outputs to compare with.")
    return [bundle.tensor(tensor) for tensor in tensors]


def compare(
    bundle: Bundle, artifact: Artifact, outputs: Sequence[np.ndarray[Any, Any]]
) -> Replayed:
    """Judges the device's outputs.

    Args:
        outputs: one array per output of the artifact, shape (n, *shape), in order.
    """
    golden = bundle.manifest.golden
    reference = [bundle.tensor(tensor) for tensor in golden.outputs]
    own = host_outputs(bundle, artifact)
    labels = None if golden.labels is None else bundle.tensor(golden.labels)
    drops = quality.output_drops(golden.metric, reference, outputs, labels)
    checks = tuple(
        GoldenCheck(
            output=spec.name,
            sqnr_db_float=quality.sqnr_db(ref, out),
            max_abs_err_float=quality.max_abs_err(ref, out),
            sqnr_db_host=quality.sqnr_db(host, out),
            max_abs_err_host=quality.max_abs_err(host, out),
            drop=drop,
        )
        for spec, ref, host, out, drop in zip(
            artifact.outputs, reference, own, outputs, drops, strict=True
        )
    )
    return Replayed(
        checks=checks,
        host_sqnr_db=tuple(quality.sqnr_db(r, h) for r, h in zip(reference, own, strict=True)),
        n=golden.n,
        top1_agreement=quality.agreement(golden.metric, reference[0], outputs[0]),
        drop=max(drops),
        host_drop=quality.metric_drop(golden.metric, reference, own, labels),
    )


def broken_promises(replayed: Replayed) -> list[str]:
    """Why these outputs may not go live; empty where they may.

    Each output has to be the host's within MIN_HOST_SQNR_DB, and as close to float as the bundle
    says, less SQNR_MARGIN_DB, but never below `quality.MIN_SQNR_DB`: a bundle may hold an artifact
    that is bad on the host already. The drop may be worse than the host's by one sample.
    """
    problems = []
    for check, promised in zip(replayed.checks, replayed.host_sqnr_db, strict=True):
        if check.sqnr_db_host < MIN_HOST_SQNR_DB:
            problems.append(
                f"output {check.output} is at {check.sqnr_db_host:.1f} dB against the same file's "
                f"outputs on the host (at least {MIN_HOST_SQNR_DB:.0f} dB)"
            )
        least = min(promised - SQNR_MARGIN_DB, FLOAT_SQNR_DB)
        if unlike := quality.unlike_float(check.output, check.sqnr_db_float):
            problems.append(unlike)
        elif check.sqnr_db_float < least:
            problems.append(
                f"output {check.output} is at {check.sqnr_db_float:.1f} dB against the float model "
                f"(the bundle promises {promised:.1f} dB)"
            )
    if replayed.drop > replayed.host_drop + 1 / replayed.n + 1e-9:
        problems.append(
            f"the drop over {replayed.n} golden samples is {replayed.drop:.3f} "
            f"(the bundle promises {replayed.host_drop:.3f})"
        )
    return problems


def layout_problem(artifact: Artifact, found: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """How the outputs that a runner reported differ from the artifact's, or an empty string."""
    wanted = [_layout(spec) for spec in artifact.outputs]
    return "" if list(found) == wanted else f"its outputs are {list(found)}, not {wanted}"


def _layout(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.dtype, spec.shape
