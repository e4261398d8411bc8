"""Closeness to the float model: against closed forms, at the edges, and over memory maps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import quality
from edgekit.errors import DataError, EdgekitError

rng = np.random.default_rng(7)
LOGITS = rng.normal(size=(40, 1, 10)).astype(np.float32)
LABELS = np.argmax(LOGITS, axis=-1)[:, 0].astype(np.int64)


def test_sqnr_of_a_relative_error_is_its_logarithm() -> None:
    reference = LOGITS.astype(np.float64)
    assert quality.sqnr_db(reference, reference * 0.9) == pytest.approx(20.0, abs=1e-9)


def test_sqnr_is_of_all_samples_together_not_a_mean_of_samples() -> None:
    reference = np.array([[1.0, 1.0], [100.0, 100.0]])
    other = reference + np.array([[1.0, 1.0], [0.0, 0.0]])
    assert quality.sqnr_db(reference, other) == pytest.approx(10 * math.log10(20002 / 2))


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 0.5))
def test_sqnr_does_not_depend_on_the_scale_of_the_output(scale: float, share: float) -> None:
    reference = LOGITS.astype(np.float64)
    noisy = reference * (1 + share * np.sin(reference))
    expected = quality.sqnr_db(reference, noisy)
    assert quality.sqnr_db(reference * scale, noisy * scale) == pytest.approx(expected, abs=1e-6)


def test_extremes_stay_finite() -> None:
    zeros = np.zeros((3, 4), np.float32)
    assert quality.sqnr_db(LOGITS, LOGITS) == quality.SQNR_CAP_DB
    assert quality.sqnr_db(zeros, zeros) == quality.SQNR_CAP_DB
    assert quality.sqnr_db(zeros, zeros + 1) == -quality.SQNR_CAP_DB
    for bad in (np.nan, np.inf, -np.inf):
        broken = LOGITS.copy()
        broken[3, 0, 2] = bad
        assert quality.sqnr_db(LOGITS, broken) == -quality.SQNR_CAP_DB
        assert quality.max_abs_err(LOGITS, broken) == quality.WORST_ERROR


def test_masked_scores_count_neither_as_signal_nor_as_noise() -> None:
    masked, other = LOGITS.astype(np.float64), LOGITS * np.float64(1.1)
    expected = quality.sqnr_db(masked[:, :, :-1], other[:, :, :-1])
    masked[..., -1] = other[..., -1] = -np.inf
    assert quality.sqnr_db(masked, other) == pytest.approx(expected)
    assert quality.metric_drop("cosine", [masked], [masked], None) == 0.0


def test_a_float_model_that_gives_nan_is_refused() -> None:
    broken = LOGITS.copy()
    broken[0] = np.nan
    with pytest.raises(DataError, match="holds NaN"):
        quality.sqnr_db(broken, LOGITS)


def test_other_shape_and_no_samples_are_refused() -> None:
    with pytest.raises(EdgekitError, match=r"\(40, 1, 10\) of the float model, \(40, 10\)"):
        quality.max_abs_err(LOGITS, LOGITS[:, 0])
    with pytest.raises(DataError, match="no samples"):
        quality.top1_agreement(LOGITS[:0], LOGITS[:0])


def test_max_abs_err_finds_the_one_wrong_element() -> None:
    other = LOGITS.copy()
    other[17, 0, 3] += np.float32(2.5)
    assert quality.max_abs_err(LOGITS, other) == pytest.approx(2.5, rel=1e-6)


def test_each_output_tensor_is_judged_by_itself() -> None:
    boxes = rng.uniform(0, 640, size=(40, 1, 4)).astype(np.float32)
    scores = LOGITS / 1000
    found = quality.output_quality(["boxes", "scores"], [boxes, scores], [boxes, scores * 0])
    assert [q.output for q in found] == ["boxes", "scores"]
    assert found[0].sqnr_db == quality.SQNR_CAP_DB
    assert found[1].sqnr_db == pytest.approx(0.0)
    with pytest.raises(EdgekitError, match="2 outputs"):
        quality.output_quality(["boxes", "scores"], [boxes], [boxes])


def test_top1_agreement_counts_positions_and_nan_never_agrees() -> None:
    other = LOGITS.copy()
    other[:10] = -other[:10]
    assert quality.top1_agreement(LOGITS, other) == 0.75
    other[20, 0, LABELS[20]] = np.nan
    assert quality.top1_agreement(LOGITS, other) == 29 / 40


def test_classes_of_a_map_are_its_channels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 3, 16, 16)).astype(np.float32)
    turned = np.roll(scores, 1, axis=1)
    assert quality.metric_drop("agreement", [scores], [turned], None) == 1.0
    half = np.where(np.arange(16) < 8, scores, turned)
    assert quality.metric_drop("agreement", [scores], [half], None) == 0.5
    tokens = rng.normal(size=(4, 16, 3)).astype(np.float32)
    assert quality.top1_agreement(tokens, np.roll(tokens, 1, axis=-1)) == 0.0


def test_one_value_per_sample_has_no_classes_to_agree_on() -> None:
    values = np.arange(50, dtype=np.float32)
    with pytest.raises(DataError, match="one value per sample"):
        quality.metric_drop("agreement", [values], [values], None)


def test_integers_and_truth_values_differ_or_not() -> None:
    """However far apart two classes are numbered, and however rare a truth is."""
    classes = np.arange(1000)
    other = classes.copy()
    other[:10] = 999
    assert quality.metric_drop("relative_error", [classes], [other], None) == 0.01
    rare = np.arange(500) % 50 == 0
    flipped = rare.copy()
    flipped[1] = True
    assert quality.output_drops("agreement", [LOGITS, rare], [LOGITS, flipped], None)[1] == 0.002


def test_drop_of_the_labelled_metric_is_a_difference_of_accuracies() -> None:
    wrong = LABELS.copy()
    wrong[:8] = (wrong[:8] + 1) % 10
    other = LOGITS.copy()
    other[30:] = -other[30:]
    assert quality.float_metric("top1", [LOGITS], wrong) == 0.8
    assert quality.metric_drop("top1", [LOGITS], [other], wrong) == pytest.approx(0.25)
    assert quality.metric_drop("top1", [other], [LOGITS], wrong) == pytest.approx(-0.25)
    assert quality.float_metric("agreement", [LOGITS], None) is None


def test_drop_without_labels() -> None:
    other = LOGITS.copy()
    other[:10] = -other[:10]
    assert quality.metric_drop("agreement", [LOGITS], [other], None) == 0.25
    assert quality.metric_drop("cosine", [LOGITS], [other], None) == pytest.approx(0.5)
    assert quality.metric_drop("cosine", [LOGITS], [LOGITS * 3], None) == pytest.approx(0, abs=1e-6)


def auto_drop(reference: np.ndarray, other: np.ndarray) -> float:
    return quality.metric_drop(quality.pick_metric(None, [reference]), [reference], [other], None)


DEPTH = rng.uniform(2, 80, size=(6, 1, 1, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        (LOGITS[..., 0], LOGITS[::-1, :, 0] * 10),
        (1 / (1 + np.exp(-LOGITS[..., :1])), np.full((40, 1, 1), 0.5)),
        (DEPTH, np.full_like(DEPTH, 0.0014)),
        (DEPTH, np.full_like(DEPTH, DEPTH.mean())),
        (DEPTH, np.where(np.arange(6)[:, None, None, None, None] == 3, np.nan, DEPTH)),
        (DEPTH, -DEPTH),
    ],
)
def test_nothing_is_left_of_a_single_value_or_map_that_says_nothing(
    reference: np.ndarray, other: np.ndarray
) -> None:
    assert auto_drop(reference, other) == pytest.approx(1.0, abs=1e-6)


def test_the_relative_error_is_one_minus_r_squared() -> None:
    truth = LOGITS[..., :1].astype(np.float64)
    noise = rng.normal(size=truth.shape)
    expected = np.sum((0.1 * noise) ** 2) / np.sum((truth - truth.mean()) ** 2)
    for offset in (0.0, 1e6):  # the distance from zero says nothing about what a value tells
        assert auto_drop(truth + offset, truth + offset + 0.1 * noise) == pytest.approx(
            expected, rel=1e-3
        )
    assert auto_drop(truth, truth) == 0.0


def test_the_relative_error_of_constants_is_relative_to_their_square() -> None:
    same = np.full((7, 1), 0.1)
    assert auto_drop(same, same) == 0.0
    assert auto_drop(same, same * 0.9) == pytest.approx(0.01)
    assert auto_drop(same * 0, same * 0) == 0.0
    assert auto_drop(same * 0, same) == 1.0
    assert auto_drop(np.full((7, 1), np.inf), same) == 1.0


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_single_score_with_labels_is_that_of_class_one(bias: float) -> None:
    """As logits around 0 and as probabilities around 0.5."""
    labels = (np.arange(40) % 2).astype(np.int64)
    size = np.where(labels == 1, 0.4, -0.4)
    size[:4] *= -1
    scores = (size + bias).reshape(40, 1).astype(np.float32)
    assert quality.pick_metric(labels, [scores]) == "top1"
    assert quality.float_metric("top1", [scores], labels) == 0.9
    constant = np.full_like(scores, bias)
    assert quality.metric_drop("top1", [scores], [constant], labels) == pytest.approx(0.4)
    assert quality.agreement("top1", scores, constant) == 0.5
    assert quality.agreement("relative_error", scores, constant) is None
    assert quality.metric_drop("top1", [scores], [scores * np.nan], labels) == 0.9
    with pytest.raises(DataError, match=r"Label 2 of sample 1 .* 0\.\.1"):
        quality.metric_drop("top1", [scores], [scores], labels * 2)


def test_the_worst_output_decides_by_a_metric_of_its_own() -> None:
    float_outputs = [LOGITS, DEPTH.repeat(7, axis=0)[:40], LOGITS[:, :, :5]]
    flat = np.full_like(float_outputs[1], 3.0)
    outputs = [LOGITS, flat, -float_outputs[2]]
    assert quality.output_drops("top1", float_outputs, outputs, LABELS) == (0.0, 1.0, 1.0)
    assert quality.metric_drop("top1", float_outputs, outputs, LABELS) == 1.0
    assert quality.metric_drop("top1", float_outputs, float_outputs, LABELS) == 0.0
    with pytest.raises(EdgekitError, match="3 outputs of the float model with 1"):
        quality.metric_drop("top1", float_outputs, outputs[:1], LABELS)


def test_cosine_of_broken_and_of_zero_vectors() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    other = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 0.0]])
    assert quality.metric_drop("cosine", [vectors], [other], None) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "needs labels"),
        (LABELS[:-1], "39 labels"),
        (np.where(np.arange(40) == 6, 10, LABELS), "Label 10 of sample 6 .* 0..9"),
        (np.where(np.arange(40) == 2, -1, LABELS), "Label -1 of sample 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray | None, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        quality.metric_drop("top1", [LOGITS], [LOGITS], labels)
    assert caught.value.remedy


def test_pick_metric() -> None:
    unit = LOGITS / np.linalg.norm(LOGITS, axis=-1, keepdims=True)
    one_hot = np.eye(10, dtype=np.float32)[LABELS][:, None]
    assert quality.pick_metric(LABELS, [LOGITS]) == "top1"
    assert quality.pick_metric(None, [LOGITS]) == "agreement"
    assert quality.pick_metric(None, [one_hot]) == "agreement"
    assert quality.pick_metric(None, [unit]) == "cosine"
    assert quality.pick_metric(LABELS, [rng.normal(size=(40, 1, 3, 8, 8))]) == "relative_error"
    assert quality.pick_metric(None, [LOGITS[..., :1]]) == "relative_error"
    assert quality.pick_metric(None, [LOGITS.astype(np.int64)]) == "relative_error"
    assert quality.pick_metric(LABELS % 2, [LOGITS[..., :1]]) == "top1"


@pytest.mark.parametrize("labels", [LABELS, np.full(40, -1), LABELS % 2 + 1])
def test_whole_numbers_for_a_single_value_are_not_taken_for_classes(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="not only 0 and 1") as caught:
        quality.pick_metric(labels, [LOGITS[..., :1]])
    assert "relative_error" in caught.value.remedy


def test_blocks_of_a_memory_map_give_what_the_whole_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = LOGITS + rng.normal(scale=0.3, size=LOGITS.shape).astype(np.float32)
    mapped = []
    for name, array in (("a", LOGITS), ("b", noisy)):
        array.tofile(tmp_path / name)
        mapped.append(np.memmap(tmp_path / name, np.float32, "r", shape=array.shape))

    def figures(ref: np.ndarray, out: np.ndarray) -> list[float]:
        return [
            quality.sqnr_db(ref, out),
            quality.max_abs_err(ref, out),
            quality.top1_agreement(ref, out),
            quality.metric_drop("cosine", [ref], [out], None),
            quality.metric_drop("relative_error", [ref], [out], None),
            quality.metric_drop("top1", [ref], [out], LABELS),
        ]

    whole = figures(LOGITS, noisy)
    monkeypatch.setattr(quality, "_BLOCK_ELEMENTS", 30)
    assert figures(*mapped) == pytest.approx(whole, rel=1e-12)
