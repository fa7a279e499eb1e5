"""How alike the insides of two models are: hidden states by CKA, attention by cosine."""

from __future__ import annotations

import numpy as np


def centred_gram(states: np.ndarray) -> np.ndarray:
    """The products of every two tokens' states [n, n] of states [n, d], with a diagonal of 0: the kernel of `cka`."""
    states = np.asarray(states, np.float64)
    states = states - states.mean(axis=0)
    gram = states @ states.T
    np.fill_diagonal(gram, 0.0)
    return gram


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of states of the same n tokens (Kornblith et al. 2019, arXiv
    1905.00414), by the unbiased estimator of HSIC (Song et al. 2012, equation 5; as in Nguyen et al., arXiv
    2010.15327): about 0 for unrelated states however wide they are, 1 for states that are a rotation and scaling of
    each other. It needs no equal widths.

    Args:
        first: of `centred_gram` [n, n], n at least 4.
        second: likewise.
    """
    scale = _hsic(first, first) * _hsic(second, second)
    return _hsic(first, second) / scale**0.5 if scale > 0 else 0.0


def _hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of HSIC of two kernels with a diagonal of 0, times n (n - 3)."""
    n = len(first)
    sums = first.sum(axis=0), second.sum(axis=0)
    total = float(np.sum(first * second))
    total += float(sums[0].sum() * sums[1].sum()) / ((n - 1) * (n - 2))
    return total - 2 / (n - 2) * float(sums[0] @ sums[1])


def attention_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The mean cosine of two models' attention, over tokens; each row says where a token looks, [n, k]."""
    products = np.sum(first * second, axis=1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean(products / norms))
