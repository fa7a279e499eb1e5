"""The similarity of two models' layers: hidden states by CKA, attention by cosine."""

from __future__ import annotations

import numpy as np


def centred_gram(states: np.ndarray) -> np.ndarray:
    """The kernel for `cka`: the products of all pairs of states [n, d], [n, n], with a zero diagonal."""
    states = np.asarray(states, np.float64)
    states = states - states.mean(axis=0)
    gram = states @ states.T
    np.fill_diagonal(gram, 0.0)
    return gram


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment (CKA) of two models' states of the same n tokens (Kornblith et al. 2019, arXiv
    1905.00414), with the unbiased estimator of HSIC (Song et al. 2012, equation 5; as in Nguyen et al., arXiv
    2010.15327). It is 1 for states that are equal up to rotation and scale, and about 0 for unrelated states of any
    width. The widths may differ.

    Args:
        first: the result of `centred_gram` for one model, [n, n], n at least 4.
        second: the result of `centred_gram` for the other model, [n, n].
    """
    scale = _hsic(first, first) * _hsic(second, second)
    return _hsic(first, second) / scale**0.5 if scale > 0 else 0.0


def _hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of HSIC for two kernels with a zero diagonal, times n (n - 3)."""
    n = len(first)
    sums = first.sum(axis=0), second.sum(axis=0)
    total = float(np.sum(first * second))
    total += float(sums[0].sum() * sums[1].sum()) / ((n - 1) * (n - 2))
    return total - 2 / (n - 2) * float(sums[0] @ sums[1])


def attention_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over tokens of the cosine of two models' attention. Each row of [n, k] is a token's distribution."""
    products = np.sum(first * second, axis=1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean(products / norms))
