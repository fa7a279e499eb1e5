"""Random parameters for tests, without a compilation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tinybert_jax as tb
from tinybert_jax.models.parameters import parameter_shapes


def random_params(model: Any, seed: int = 0) -> tb.Params:
    """Parameters distributed as those of `tb.init_params`, drawn by NumPy, so that nothing is compiled."""
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        constant = {"scale": np.ones, "bias": np.zeros}.get(path[-1].key)
        if constant is not None:
            return jnp.asarray(constant(leaf.shape, np.float32))
        return jnp.asarray(random.normal(0, model.config.initializer_range, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))
