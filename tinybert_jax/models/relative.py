"""The relative position bias that MPNet adds to the attention scores of all layers (T5, arXiv 1910.10683).

Each bucket of distances has one bias. In each direction, the first half of the buckets holds one distance each, the
other half ranges that grow logarithmically up to FARTHEST tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig

TABLE = "relative_attention_bias"  # the name of its parameters, beside the layers
FARTHEST = 128  # tokens; greater distances share its bucket


def buckets(distances: np.ndarray, count: int) -> np.ndarray:
    """The bucket of each distance (position of the key minus position of the query), of `count` buckets in all.

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
    """The biases of the scores between `tokens` tokens, from the bias of each bucket."""
    at = np.arange(tokens)
    return jnp.moveaxis(jnp.asarray(table)[buckets(at[None] - at[:, None], len(table))], 2, 0)


def bias_table(config: BertConfig, encoder: Params) -> Any:
    """The bias of each bucket [n, h], from an encoder's parameters; None in a family without them."""
    return encoder["encoder"][TABLE]["embedding"] if config.family.position_buckets else None


def position_bias(config: BertConfig, encoder: Params, tokens: int) -> Any:
    """The biases of the scores between `tokens` tokens [h, q, k], from an encoder's parameters, or None."""
    table = bias_table(config, encoder)
    return None if table is None else spread(table, tokens)
