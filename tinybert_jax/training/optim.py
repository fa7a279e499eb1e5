"""Schedules, AdamW with a decay mask by name, and the BertAdam of the original code.

Transforms are learning-rate-free: the training step multiplies by `hyper.learning_rate * schedule(step)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from tinybert_jax.batch import Params
from tinybert_jax.errors import check_choice
from tinybert_jax.settings.choices import OptimizerName, ScheduleName

Schedule = Callable[[ArrayLike], Array]
STACKED = ("encoder", "layer")


def make_schedule(name: ScheduleName, warmup_ratio: float = 0.1) -> Schedule:
    """A schedule: `progress`, the share of the steps that are done -> the multiplier of the learning rate.

    "constant" is 1. "linear" rises from 0 to 1 at `warmup_ratio`, then falls to 0 at 1. With a warm-up, the first
    update is zero, as in the original code. A schedule depends on progress, not on the number of steps, so a compiled
    step serves stages of any length.

    Raises:
        InputError: the name is unknown.

    >>> [round(float(make_schedule("linear", 0.2)(progress)), 3) for progress in (0.0, 0.1, 0.2, 1.0)]
    [0.0, 0.5, 1.0, 0.0]
    """
    check_choice("schedule", name, ScheduleName)
    if name == "constant":
        return lambda progress: jnp.ones(())

    def linear(progress: ArrayLike) -> Array:
        progress = jnp.asarray(progress)
        falling = jnp.maximum((1 - progress) / (1 - warmup_ratio), 0.0)
        return jnp.where(progress < warmup_ratio, progress / max(warmup_ratio, 1e-9), falling)

    return linear


def make_optimizer(name: OptimizerName, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """The descent direction without learning rate: `params - learning_rate * update`.

    "adamw": global gradient norm clipped to 1, Adam with bias correction, decoupled weight decay.
    "bert_adam": gradient norm of each tensor clipped to 1 (a layer's slice of a stacked leaf is one tensor), Adam
    without bias correction, eps 1e-6, decoupled weight decay.
    Biases and LayerNorm are not decayed.

    Raises:
        InputError: the name is unknown.
    """
    check_choice("optimizer", name, OptimizerName)
    decay = optax.add_decayed_weights(weight_decay, decay_mask)
    if name == "adamw":
        return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), decay)
    return optax.chain(_clip_by_tensor_norm(1.0), _scale_by_uncorrected_adam(), decay)


def decay_mask(params: Params) -> Any:
    """True for leaves with weight decay. It goes by name, because a stacked bias has two axes like a kernel."""

    def decayed(path: tuple[Any, ...], leaf: Array) -> bool:
        names = [entry.key for entry in path]
        return names[-1] != "bias" and "LayerNorm" not in names

    return jax.tree.map_with_path(decayed, params)


def _clip_by_tensor_norm(max_norm: float) -> optax.GradientTransformation:
    def clip(path: tuple[Any, ...], grad: Array) -> Array:
        names = tuple(entry.key for entry in path)
        stacked = "fit_denses" in names or any(names[i : i + 2] == STACKED for i in range(len(names)))
        axes = tuple(range(1 if stacked else 0, grad.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(grad), axis=axes, keepdims=True))
        return grad * jnp.minimum(1.0, max_norm / (norm + 1e-6))  # torch's clip_grad_norm_ adds the same 1e-6

    return optax.stateless(lambda grads, params: jax.tree.map_with_path(clip, grads))


def _scale_by_uncorrected_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    def init(params: Params) -> Any:
        return {"mu": jax.tree.map(jnp.zeros_like, params), "nu": jax.tree.map(jnp.zeros_like, params)}

    def update(grads: Any, state: Any, params: Params | None = None) -> tuple[Any, Any]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mu"], grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state["nu"], grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), {"mu": mu, "nu": nu}

    return optax.GradientTransformation(init, update)
