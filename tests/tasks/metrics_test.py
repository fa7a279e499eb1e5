"""Task metrics against their definitions, and on degenerate input."""

import math

import numpy as np
import pytest

from tinybert_jax.tasks import metrics

ALL = [metrics.accuracy, metrics.f1, metrics.matthews, metrics.pearson, metrics.spearman]


def test_class_metrics_equal_their_definitions():
    random = np.random.default_rng(0)
    for _ in range(20):
        labels, predictions = random.integers(0, 2, 50), random.integers(0, 2, 50)
        tp, fp = np.sum((predictions == 1) & (labels == 1)), np.sum((predictions == 1) & (labels == 0))
        fn, tn = np.sum((predictions == 0) & (labels == 1)), np.sum((predictions == 0) & (labels == 0))
        root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        assert metrics.accuracy(predictions, labels) == pytest.approx((tp + tn) / 50)
        assert metrics.f1(predictions, labels) == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert metrics.matthews(predictions, labels) == pytest.approx((tp * tn - fp * fn) / root)


def test_correlations_equal_their_definitions():
    random = np.random.default_rng(1)
    labels = random.normal(size=40).astype(np.float32)
    predictions = (labels + random.normal(size=40)).astype(np.float32)
    rank = np.argsort(np.argsort(labels)), np.argsort(np.argsort(predictions))
    assert metrics.pearson(predictions, labels) == pytest.approx(np.corrcoef(predictions, labels)[0, 1])
    assert metrics.spearman(predictions, labels) == pytest.approx(np.corrcoef(*rank)[0, 1])


def test_perfect_predictions_score_one():
    labels = np.array([0, 1, 1, 0])
    assert [metric(labels, labels) for metric in ALL] == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("metric", ALL[1:], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([0, 0, 0], [0, 1, 1]), ([0, 0, 0], [0, 0, 0]), ([0], [1]), ([], [])],
    ids=["constant predictions", "constant both", "one row", "no row"],
)
def test_degenerate_input_scores_zero_without_a_warning(metric, predictions, labels):
    assert metric(np.array(predictions, np.float32), np.array(labels, np.float32)) == 0.0


def test_predictions_that_are_not_numbers_correlate_with_nothing():
    predictions = np.array([np.nan, 1.0, 2.0])
    assert metrics.pearson(predictions, np.array([1.0, 2.0, 3.0])) == 0.0
    assert metrics.spearman(predictions, np.array([1.0, 2.0, 3.0])) == 0.0


def test_nearly_constant_predictions_give_no_warning():
    predictions = np.array([1.0, 1.0, 1.0 + 1e-15])
    assert math.isfinite(metrics.pearson(predictions, np.array([1.0, 2.0, 3.0])))


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r"predictions \(2,\) and labels \(3,\)"):
        metric(np.zeros(2), np.zeros(3))
