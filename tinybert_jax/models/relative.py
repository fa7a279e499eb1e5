"""Biases of relative positions, which MPNet adds to the attention scores of all layers (T5, arXiv 1910.10683).

Distances share buckets: the shorter half of a direction's buckets holds one distance each, the others ranges that
grow, up to FARTHEST tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig

TABLE = "relative_attention_bias"  # among the parameters of all layers
FARTHEST = 128  # tokens; greater distances are in its bucket


def buckets(distances: np.ndarray, count: int) -> np.ndarray:
    """The bucket of each distance, the position of a key less that of its query; a direction has half of the count.

    >>> buckets(np.array([0, -1, 1, -7, -8, 500]), 32).tolist()
    [0, 1, 17, 7, 8, 31]
    """
    of_direction = count // 2
    single = of_direction // 2
    far = np.maximum(np.abs(distances), single)
    growth = np.log(far.astype(np.float32) / single) / np.float32(math.log(FARTHEST / single))
    ranged = np.minimum(single + (growth * (of_direction - single)).astype(int), of_direction - 1)
    return np.where(np.abs(distances) < single, np.abs(distances), ranged) + of_direction * (distances > 0)


def spread(table: Float[Array | np.ndarray, "n h"], tokens: int) -> Float[Array, "h q k"]:
    """The biases of the scores of that many tokens, from those of each bucket."""
    at = np.arange(tokens)
    return jnp.moveaxis(jnp.asarray(table)[buckets(at[None] - at[:, None], len(table))], 2, 0)


def bias_table(config: BertConfig, encoder: Params) -> Any:
    """The biases of each bucket [n, h], from an encoder's parameters; None in a family without."""
    return encoder["encoder"][TABLE]["embedding"] if config.family.position_buckets else None


def position_bias(config: BertConfig, encoder: Params, tokens: int) -> Any:
    """The biases of the scores of that many tokens [h, q, k], from an encoder's parameters; None as `bias_table`."""
    table = bias_table(config, encoder)
    return None if table is None else spread(table, tokens)
