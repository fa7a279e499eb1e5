"""Task metrics on numpy arrays. Degenerate input (one class, nothing to rank) scores 0.0, never NaN or a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np


def share_of(score: float | None, whole: float | None) -> str:
    """A score as a share of another one, as text; "-" if one is unknown, or the other one is not above 0.

    >>> share_of(0.8, 0.9), share_of(0.8, -0.1), share_of(0.8, None)
    ('88.9%', '-', '-')
    """
    return f"{score / whole:.1%}" if score is not None and whole is not None and whole > 0 else "-"


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of equal entries. predictions, labels: class ids [n]."""
    _check(predictions, labels)
    return float(np.mean(predictions == labels)) if len(labels) else 0.0


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 against all others. predictions, labels: class ids [n]."""
    from sklearn.metrics import f1_score

    _check(predictions, labels)
    return float(f1_score(labels == 1, predictions == 1, zero_division=0.0)) if len(labels) else 0.0


def micro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of all classes together. predictions, labels: [n, c], not 0 for the classes of a row."""
    return _set_f1(predictions, labels, "micro")


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the F1 of each class. predictions, labels: [n, c], not 0 for the classes of a row."""
    return _set_f1(predictions, labels, "macro")


def _set_f1(predictions: np.ndarray, labels: np.ndarray, average: str) -> float:
    from sklearn.metrics import f1_score

    if predictions.shape != labels.shape or labels.ndim != 2:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must both be [n, c]")
    return float(f1_score(labels != 0, predictions != 0, average=average, zero_division=0.0)) if len(labels) else 0.0


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient. predictions, labels: class ids [n]."""
    from sklearn.metrics import matthews_corrcoef

    _check(predictions, labels)
    return 0.0 if _is_constant(predictions) or _is_constant(labels) else float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Linear correlation. predictions, labels: numbers [n]."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Rank correlation. predictions, labels: numbers [n]."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function: Callable, predictions: np.ndarray, labels: np.ndarray) -> float:
    _check(predictions, labels)
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    with warnings.catch_warnings():  # scipy warns on nearly constant input, where the value is finite but imprecise
        warnings.simplefilter("ignore")
        value = function(predictions.astype(np.float64), labels.astype(np.float64)).statistic
    return float(value) if np.isfinite(value) else 0.0


def _is_constant(values: np.ndarray) -> bool:
    return len(values) == 0 or bool(np.all(values == values[0]))


def _check(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must both be [n]")


def reciprocal_rank(scores: np.ndarray, relevance: np.ndarray, k: int = 10) -> float:
    """1 / rank of the first relevant passage of a query; 0 if it is not among the first k.

    Among equal scores, the less relevant passage comes first, so a constant model gains nothing.

    Args:
        scores: the scores of the passages, [n].
        relevance: the relevance of the passages, [n]; above 0 is relevant.
        k: number of ranks that count.

    >>> reciprocal_rank(np.array([0.1, 0.7, 0.5]), np.array([1, 0, 1]))
    0.5
    """
    hits = np.flatnonzero(_ranked(scores, relevance)[:k] > 0)
    return 1 / (int(hits[0]) + 1) if len(hits) else 0.0


def ndcg(scores: np.ndarray, relevance: np.ndarray, k: int = 10) -> float:
    """Normalised discounted cumulative gain of a query's first k passages, with the relevance as gain (Järvelin and
    Kekäläinen, 2002); 0 if none is relevant. The ideal order is over the same passages.

    Arguments and the rule for equal scores are as in `reciprocal_rank`.

    >>> round(ndcg(np.array([0.1, 0.7, 0.5]), np.array([2, 0, 1])), 4)  # (1 / log2(3) + 2 / 2) / (2 + 1 / log2(3))
    0.6199
    """
    ranked = _ranked(scores, relevance)
    discounts = 1 / np.log2(np.arange(2, min(k, len(ranked)) + 2))
    ideal = np.sort(ranked)[::-1][:k] @ discounts
    return float(ranked[:k] @ discounts / ideal) if ideal > 0 else 0.0


def pairs_in_order(scores: np.ndarray, relevance: np.ndarray) -> float:
    """The share of pairs of passages with different relevance whose scores are in order, minus the share of pairs that
    are not: from -1 to 1; 0 if there are no such pairs.

    >>> pairs_in_order(np.array([0.1, 0.7, 0.5]), np.array([1, 0, 2]))  # one of three
    -0.3333333333333333
    """
    _check(scores, relevance)
    rows = np.flatnonzero(relevance > relevance.min())  # usually few of the passages
    better = relevance[rows, None] > relevance
    return float(np.sign(scores[rows, None] - scores)[better].mean()) if better.any() else 0.0


def _ranked(scores: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """The relevance of passages sorted by falling score, among equal scores by rising relevance, float64 [n]."""
    _check(scores, relevance)
    return relevance[np.lexsort((relevance, -scores))].astype(np.float64)


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
SET_METRICS = {"micro_f1": micro_f1, "macro_f1": macro_f1}  # for multi-label tasks
RANKING_METRICS = {"ndcg_at_10": ndcg, "mrr_at_10": reciprocal_rank}  # for one query; scores are means over queries
