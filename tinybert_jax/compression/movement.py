"""Movement pruning: single weights that training moves towards zero become zero, while a model learns.

Source: Sanh et al., arXiv 2005.07683. In each step, a weight's score falls by the gradient of its mask, which is the
gradient of the masked weight times the weight (straight-through). The weights with the highest scores of each matrix
are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.compression.calibration import check_dense
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.schedule import cubic_fall
from tinybert_jax.compression.sparse import kernels_of, note_zeros, with_kernels
from tinybert_jax.models.config import BertConfig
from tinybert_jax.objectives.objective import Metrics, Objective, join_carried, split_carried, take_carried
from tinybert_jax.settings.compression import Movement
from tinybert_jax.settings.stages import Hyper

EVERY = 20  # steps between choices
NEVER = -1e30  # the score of weights that are zero at the start, which stay zero
TOLERANCE = 1e-6  # for the share, because it is in float32


def build(settings: Movement) -> Method:
    """The method with these settings."""
    return Method(
        check=functools.partial(check_dense, settings.name), wrap=functools.partial(wrap, settings), note=note_zeros
    )


def wrap(settings: Movement, objective: Objective, config: BertConfig, examples: Examples) -> Objective:
    """The objective with masks on weights, which become 0 until the share of each matrix is reached.

    If a stage begins with that share of zeros, masks do not change. So the first stage prunes, and later stages train
    the rest.
    """
    name = settings.name

    def taken_apart(trainable: Params) -> tuple[Params, Any]:
        """The trainable tree of the objective, with masked kernels; and the state of this method."""
        known, state = take_carried(trainable, name)
        masks = traverse_util.flatten_dict(state["masks"])
        # + 0.0 turns -0.0 into 0.0
        kernels = {path: kernel * masks[path] + 0.0 for path, kernel in kernels_of(known).items()}
        return with_kernels(known, kernels), state

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        params, carried = split_carried(objective.init(key, student_params))
        flat = {path: jnp.asarray(kernel != 0, jnp.float32) for path, kernel in kernels_of(params).items()}
        masks = traverse_util.unflatten_dict(flat)
        scores = jax.tree.map(lambda mask: jnp.where(mask > 0, 0.0, NEVER), masks)
        return join_carried(params, carried | {name: {"masks": masks, "scores": scores, "steps": jnp.zeros(())}})

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        known, state = taken_apart(trainable)
        total, metrics = objective.loss(known, targets, batch, hyper, key)
        masks = jax.tree.leaves(state["masks"])
        return total, metrics | {"zeros": 1 - sum(map(jnp.sum, masks)) / sum(mask.size for mask in masks)}

    def export(trainable: Params, student_params: Params) -> Params:
        return objective.export(taken_apart(trainable)[0], student_params)

    def settled(carried: Any) -> Array:
        masks = jax.tree.leaves(carried[name]["masks"])
        left = jnp.stack([jnp.max(jnp.mean(mask, axis=(1, 2))) for mask in masks])
        return jnp.all(left <= 1 - settings.share + TOLERANCE)

    def learn(carried: Any, gradients: Any, hyper: Hyper) -> Any:
        if objective.learn is not None:
            carried = objective.learn(carried, gradients, hyper)
        state, steps = carried[name], carried[name]["steps"] + 1
        scores = jax.tree.map(jnp.subtract, state["scores"], gradients[name]["masks"])
        share = share_at(settings, hyper.progress)
        masks = jax.lax.cond(
            ((steps % EVERY == 0) | (hyper.progress >= settings.until)) & ~settled(carried),
            lambda: jax.tree.map(lambda matrix: _highest(matrix, share), scores),
            lambda: state["masks"],
        )
        return carried | {name: {"masks": masks, "scores": scores, "steps": steps}}

    return objective._replace(init=init, loss=loss, export=export, learn=learn, settled=settled)


def share_at(settings: Movement, progress: Any) -> Any:
    """The share of weights that are zero when the share `progress` of the steps is done.

    >>> settings = Movement(share=0.8, until=0.5)
    >>> [round(float(share_at(settings, progress)), 6) for progress in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.7, 0.8, 0.8]
    """
    return settings.share * (1 - cubic_fall(progress, settings.until))


def _highest(scores: Float[Array, "l i o"], share: Any) -> Float[Array, "l i o"]:
    """1 for the weights of each layer that are kept when that share with the lowest scores is removed. Ties with the
    highest removed score are removed too."""
    flat = jnp.sort(scores.reshape(len(scores), -1), axis=1)
    removed = jnp.ceil(share * flat.shape[1] - TOLERANCE).astype(jnp.int32)
    highest = jnp.take(flat, jnp.maximum(removed - 1, 0), axis=1)
    return jnp.where((scores > highest[:, None, None]) | (removed == 0), 1.0, 0.0) * (scores > NEVER / 2)
