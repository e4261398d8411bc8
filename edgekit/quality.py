"""How close the outputs of an artifact are to the float PyTorch model's. numpy only.

Arrays stack the samples on axis 0 and may be memory maps: they are read in blocks of about a
million elements, so memory does not grow with the set. All sums are in float64.

Results are always finite, because they are written as JSON: SQNR stays within +-200 dB, errors
within the largest float32. NaN or infinity where the reference is finite gives the worst value, so
that such an artifact is rejected by its figures and stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, EdgekitError
from edgekit.types import Metric, OutputQuality

Array = NDArray[Any]

SQNR_CAP_DB = 200.0
"""What identical outputs get, since infinity is not JSON; 32-bit floats end near 150 dB."""

WORST_ERROR = float(np.finfo(np.float32).max)

MIN_SQNR_DB = 6.0
"""Below this a quarter of an output's power is error: it is another output, whatever the metric of
the first one says. Working INT8 artifacts lie between 10 and 40 dB."""

#: 0.1 may come out of 1 - 0.9 as 0.09999999999999998 or of a sum as 0.1000000000000001.
_ROUNDING = 1e-9

_BLOCK_ELEMENTS = 1 << 20
_METRIC_REMEDY = 'Set metric = "agreement", "cosine" or "relative_error".'


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to quantization noise, ``10 log10(sum ref^2 / sum (ref - other)^2)`` in dB.

    Over all elements of all samples at once, as `compute_sqnr` of torch.ao's numeric suite does.
    Both arrays have the same shape (n, ...). Elements where both are the same infinity (masked
    scores) count neither as signal nor as noise.

    Raises:
        DataError: the reference holds NaN, or there are no elements.
        EdgekitError: the shapes differ.
    """
    signal = noise = 0.0
    for ref, err in _errors(reference, other):
        signal += float(np.sum(np.square(ref), where=np.isfinite(ref)))
        noise += float(np.sum(np.square(err)))
    if not math.isfinite(noise):
        return -SQNR_CAP_DB
    if noise == 0.0:
        return SQNR_CAP_DB
    if signal == 0.0:
        return -SQNR_CAP_DB
    return float(np.clip(10.0 * math.log10(signal / noise), -SQNR_CAP_DB, SQNR_CAP_DB))


def max_abs_err(reference: Array, other: Array) -> float:
    """Largest absolute difference, in the unit of the output; same shapes, raises as `sqnr_db`."""
    worst = max(float(np.max(np.abs(err))) for _, err in _errors(reference, other))
    return min(worst, WORST_ERROR)


def output_quality(
    names: Sequence[str], reference: Sequence[Array], other: Sequence[Array]
) -> tuple[OutputQuality, ...]:
    """SQNR and largest error of each output tensor by itself, in the order of the outputs.

    Never over all tensors at once: a box tensor in pixels would drown a score tensor in 0..1.
    """
    if not len(names) == len(reference) == len(other):
        raise EdgekitError(
            f"The model has {len(names)} outputs, compared were {len(reference)} of the float "
            f"model with {len(other)} of the artifact."
        )
    return tuple(
        OutputQuality(name, sqnr_db(ref, out), max_abs_err(ref, out))
        for name, ref, out in zip(names, reference, other, strict=True)
    )


def unlike_float(output: str, sqnr: float) -> str:
    """Says that an output's SQNR against float is below `MIN_SQNR_DB`; empty where it is not."""
    if sqnr >= MIN_SQNR_DB:
        return ""
    return (
        f"output {output} is at {sqnr:.1f} dB against the float model (at least {MIN_SQNR_DB:g} dB)"
    )


def within(drop: float, max_drop: float) -> bool:
    """Whether a drop keeps the budget; one that is exactly as large does, however it was summed."""
    return drop <= max_drop + _ROUNDING


def top1_agreement(reference: Array, other: Array) -> float:
    """Fraction (0..1) of positions with the same largest class.

    Classes are the last axis of (n, C) and (n, length, C), and axis 1 of maps (n, C, H, W), unless
    all others have one element. Equal scores count for the first of them, as in numpy. A single
    score (C = 1) is one of two classes: see `metric_drop`. A position with NaN never agrees.

    Raises:
        DataError: one value per sample, without an axis of classes.
    """
    reference, other = _classes_last(reference), _classes_last(other)
    threshold = _threshold(reference)
    agree = total = 0
    for ref, out in _blocks(reference, other):
        same = _classes(ref, threshold) == _classes(out, threshold)
        same &= ~np.isnan(out).any(axis=-1)
        agree += int(np.count_nonzero(same))
        total += same.size
    return agree / total


def agreement(metric: Metric, reference: Array, other: Array) -> float | None:
    """`top1_agreement` of a first output; None where its metric says that it has no classes."""
    return top1_agreement(reference, other) if metric in ("top1", "agreement") else None


def float_metric(
    metric: Metric, float_outputs: Sequence[Array], labels: Array | None
) -> float | None:
    """Top-1 accuracy (0..1) of the float model for ``"top1"``; None for metrics relative to it."""
    if metric != "top1":
        return None
    first = float_outputs[0]
    return _accuracy(first, _checked_labels(first, labels), _threshold(first))


def metric_drop(
    metric: Metric,
    float_outputs: Sequence[Array],
    outputs: Sequence[Array],
    labels: Array | None,
) -> float:
    """What the artifact loses against the float model: the worst of `output_drops`; same raises."""
    return max(output_drops(metric, float_outputs, outputs, labels))


def output_drops(
    metric: Metric,
    float_outputs: Sequence[Array],
    outputs: Sequence[Array],
    labels: Array | None,
) -> tuple[float, ...]:
    """What each output loses against the float model's, absolute (0.01 = one point).

    The first output by ``metric``, each other one by what `pick_metric` gives for it without
    labels.

    ``top1``: accuracy of the float model minus that of the artifact (negative where it gained). A
    single score per sample is that of class 1 of two, from 0.5 on where all scores of the float
    model lie in 0..1 and else from 0 on. ``agreement``: 1 - top-1 agreement. ``cosine``: 1 - mean
    over samples of the cosine between the flattened outputs. ``relative_error``: squared error over
    all samples relative to the float output's squared distance from its own mean, at most 1; so a
    constant loses everything (1 - R^2, the fraction of variance unexplained); of integers and truth
    values, the share that differs.

    Args:
        labels: (n,) integers, for ``top1``.

    Raises:
        DataError: ``top1`` without labels, or labels that the outputs have no class for.
    """
    if not 0 < len(float_outputs) == len(outputs):
        raise EdgekitError(
            f"Compared were {len(float_outputs)} outputs of the float model with {len(outputs)} "
            "of the artifact."
        )
    metrics = [metric, *(pick_metric(None, [reference]) for reference in float_outputs[1:])]
    return tuple(
        _drop(one, reference, other, labels)
        for one, reference, other in zip(metrics, float_outputs, outputs, strict=True)
    )


def pick_metric(labels: Array | None, outputs: Sequence[Array]) -> Metric:
    """The metric that fits the first output, for ``metric = "auto"``.

    One score per class (n, [1,] C >= 2) gives ``top1`` with labels and ``agreement`` without; a
    single score gives ``top1`` with labels of 0 and 1. Rows of length one that are no probabilities
    are an embedding: ``cosine``. Anything else (maps, boxes, single values, integers) has neither
    classes nor a direction: ``relative_error``.

    Raises:
        DataError: there are labels other than 0 and 1 for a single score.
    """
    first = outputs[0]
    if first.ndim < 2 or math.prod(first.shape[1:-1]) != 1 or first.dtype.kind != "f":
        return "relative_error"
    if first.shape[-1] == 1:
        if labels is None:
            return "relative_error"
        if not np.isin(labels, (0, 1)).all():
            raise DataError(
                "The model gives a single value per sample, but the labels are not only 0 and 1; "
                "whether that is a regression or a score cannot be told.",
                remedy='Set metric = "relative_error" for a regression, or correct the labels.',
            )
        return "top1"
    if labels is not None:
        return "top1"
    head = np.asarray(first[:256], dtype=np.float64).reshape(-1, first.shape[-1])
    unit_length = np.allclose(np.linalg.norm(head, axis=-1), 1.0, atol=1e-3)
    # A one-hot softmax has length one too, but it sums to one and has no negative entries.
    if unit_length and (head < 0).any():
        return "cosine"
    return "agreement"


def _drop(metric: Metric, reference: Array, other: Array, labels: Array | None) -> float:
    _check_shapes(reference, other)
    if metric == "top1":
        checked, threshold = _checked_labels(reference, labels), _threshold(reference)
        return _accuracy(reference, checked, threshold) - _accuracy(other, checked, threshold)
    if metric == "agreement":
        return 1.0 - top1_agreement(reference, other)
    if metric == "cosine":
        return 1.0 - _mean_cosine(reference, other)
    if reference.dtype.kind != "f":
        return _unlike(reference, other)
    return _relative_error(reference, other)


def _classes_last(outputs: Array) -> Array:
    if outputs.ndim < 2:
        raise DataError(
            f"The metric agreement needs scores per class; the outputs are of shape "
            f"{outputs.shape}, one value per sample.",
            remedy='Set metric = "relative_error".',
        )
    is_map = outputs.ndim > 3 and math.prod(outputs.shape[1:-1]) != 1
    return np.moveaxis(outputs, 1, -1) if is_map else outputs


def _threshold(reference: Array) -> float:
    """From where on a single score means class 1; of no use where there are more scores."""
    if reference.shape[-1] != 1:
        return 0.0
    probabilities = all(((ref >= 0) & (ref <= 1)).all() for ref, _ in _blocks(reference, reference))
    return 0.5 if probabilities else 0.0


def _classes(scores: Array, threshold: float) -> Array:
    """The class of each position; shape (n, ..., C) gives (n, ...)."""
    if scores.shape[-1] == 1:
        above: Array = scores[..., 0] >= threshold
        return above.astype(np.int64)
    found: Array = np.argmax(scores, axis=-1)
    return found


def _errors(reference: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of (reference, reference - other); a NaN or infinite difference becomes +inf."""
    for ref, out in _blocks(reference, other):
        if np.isnan(ref).any():
            raise DataError(
                "The float model's own output holds NaN, so nothing can be compared with it.",
                remedy="Check the weights and the preprocessing of the samples.",
            )
        with np.errstate(invalid="ignore"):
            err = np.where(ref == out, 0.0, ref - out)
        yield ref, np.where(np.isfinite(err), err, np.inf)


def _blocks(reference: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    _check_shapes(reference, other)
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(reference.shape[1:])))
    for start in range(0, reference.shape[0], rows):
        stop = start + rows
        yield (
            np.asarray(reference[start:stop], dtype=np.float64),
            np.asarray(other[start:stop], dtype=np.float64),
        )


def _check_shapes(reference: Array, other: Array) -> None:
    if reference.shape != other.shape:
        raise EdgekitError(
            f"The outputs cannot be compared: shape {reference.shape} of the float model, "
            f"{other.shape} of the artifact."
        )
    if reference.ndim == 0 or reference.size == 0:
        raise DataError("There are no samples to compare outputs on.")


def _checked_labels(outputs: Array, labels: Array | None) -> Array:
    if labels is None:
        raise DataError(
            "The metric top1 needs labels, and the evaluation set has none.",
            remedy='Add labels, or set metric = "agreement".',
        )
    scores, n = outputs.shape[-1], outputs.shape[0]
    if outputs.size == 0 or outputs.size != n * scores or labels.shape != (n,):
        raise DataError(
            f"The metric top1 needs one label and one row of scores per sample; there are "
            f"{labels.size} labels for outputs of shape {outputs.shape}.",
            remedy=_METRIC_REMEDY,
        )
    classes = max(2, scores)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"Label {int(labels[first])} of sample {first} is outside the model's classes "
            f"0..{classes - 1}.",
            remedy="Check the order of the class folders or the numbers in labels.csv.",
        )
    return labels


def _accuracy(outputs: Array, labels: Array, threshold: float) -> float:
    rows = max(1, _BLOCK_ELEMENTS // outputs.shape[-1])
    right = 0
    for start in range(0, labels.size, rows):
        block = np.asarray(outputs[start : start + rows]).reshape(-1, outputs.shape[-1])
        hit = _classes(block, threshold) == labels[start : start + rows]
        right += int(np.count_nonzero(hit & ~np.isnan(block).any(axis=-1)))
    return right / labels.size


def _mean_cosine(reference: Array, other: Array) -> float:
    total = 0.0
    for ref, out in _blocks(reference, other):
        a = ref.reshape(ref.shape[0], -1)
        b = out.reshape(out.shape[0], -1)
        masked: Array = (a == b) & np.isinf(a)
        a, b = np.where(masked, 0.0, a), np.where(masked, 0.0, b)
        broken: Array = ~np.all(np.isfinite(a) & np.isfinite(b), axis=1)
        a, b = (np.where(broken[:, None], 0.0, v) for v in (a, b))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = np.all(a == b, axis=1) & ~broken
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.where(lengths > 0, np.sum(a * b, axis=1) / lengths, 0.0)
        # Two zero vectors are the same answer, though their angle is undefined.
        total += float(np.sum(np.where(same, 1.0, cosine)))
    return total / len(reference)


def _unlike(reference: Array, other: Array) -> float:
    """The share of elements that differ: numbers of classes and truth values have no distance."""
    unlike = sum(int(np.count_nonzero(ref != out)) for ref, out in _blocks(reference, other))
    return unlike / reference.size


def _relative_error(reference: Array, other: Array) -> float:
    """1 - R^2 within 0..1, over all elements of all samples with one common mean.

    Where the reference itself is one constant, the error is relative to its square.
    """
    finite, total, highest, lowest = 0, 0.0, -math.inf, math.inf
    for ref, _ in _blocks(reference, reference):
        values = ref[np.isfinite(ref)]
        finite += values.size
        total += float(values.sum())
        highest = max(highest, float(values.max(initial=-math.inf)))
        lowest = min(lowest, float(values.min(initial=math.inf)))
    # Of a constant the sum is rounded, and the distance from that mean would be dust.
    mean = 0.0 if highest == lowest else total / max(1, finite)
    spread = noise = 0.0
    for ref, err in _errors(reference, other):
        spread += float(np.sum(np.square(ref - mean), where=np.isfinite(ref)))
        noise += float(np.sum(np.square(err)))
    if noise == 0.0:
        return 0.0
    return min(1.0, noise / spread) if spread > 0.0 and math.isfinite(noise) else 1.0
