"""The schedule of methods that act during a stage."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def cubic_fall(progress: Any, until: float) -> Any:
    """A fall from 1 to 0, fast at first (Zhu and Gupta, arXiv 1710.01878).

    Args:
        progress: the share of the steps that are done.
        until: the progress from which on it is 0.

    >>> [float(cubic_fall(progress, 0.5)) for progress in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.125, 0.0, 0.0]
    """
    return (1 - jnp.minimum(progress / until, 1.0)) ** 3
