"""One split of any task, ready for a model: its tokens, and the meaning of a model's logits on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Split:
    """Tokens, and pure functions of a model's logits on them, in the order of the rows.

    `score` gives the task's metrics, `skill` how far the model is above chance (0) on the way to perfection (1), and
    `predictions` the content of a predictions file.
    """

    tokens: Tokens
    label_names: tuple[str, ...]  # by id; () in regression and for answers
    labelled: bool
    score: Callable[[np.ndarray], dict[str, float]]
    skill: Callable[[np.ndarray], float]
    predictions: Callable[[np.ndarray], str]
    rows: Rows | None = None  # what the tokens were made of, where it was rows
