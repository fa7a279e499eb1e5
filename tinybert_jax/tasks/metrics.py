"""Task metrics on numpy arrays. Degenerate input (one class, nothing to rank) scores 0.0, never NaN or a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np


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


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
SET_METRICS = {"micro_f1": micro_f1, "macro_f1": macro_f1}  # of rows with any number of classes
