"""Calibration: whether predictions with a probability of 80 % are right in 80 % of the cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # as in Guo et al., section 4.2


class Bin(NamedTuple):
    """Decisions with similar confidence: their number, their mean confidence, and the share that is right."""

    decisions: int
    confidence: float
    accuracy: float


def confidence_bins(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The decisions in bins of equal width over [0, 1]; bins without a decision are left out.

    Bin m holds the confidences in ((m - 1) / bins, m / bins]; the first one also holds 0.

    Args:
        confidence: the model's probability of each decision, [m].
        right: whether each is right, [m].
        bins: the number of bins.

    >>> confidence_bins(np.array([0.9, 0.8, 0.3]), np.array([True, False, False]), bins=2)
    [Bin(decisions=1, confidence=0.3, accuracy=0.0), Bin(decisions=2, confidence=0.85, accuracy=0.5)]
    """
    values = np.asarray(confidence, np.float64)
    numbers = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    chosen = [numbers == number for number in range(bins)]
    return [
        Bin(int(of.sum()), round(float(values[of].mean()), 12), float(right[of].mean())) for of in chosen if of.any()
    ]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    It is the mean distance between accuracy and confidence of the bins, weighted by their shares of the decisions.
    Arguments as in `confidence_bins`.

    >>> round(calibration_error(np.array([0.9, 0.8, 0.3]), np.array([True, False, False]), bins=2), 4)
    0.3333
    """
    each = confidence_bins(confidence, right, bins)
    return sum(part.decisions * abs(part.accuracy - part.confidence) for part in each) / len(confidence)
