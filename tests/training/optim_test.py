"""Schedules and optimizers: multipliers, the decay mask, clipping per layer. BertAdam's ten steps: official_test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinybert_jax.errors import InputError
from tinybert_jax.training import optim

PARAMS = {
    "encoder": {
        "encoder": {"layer": {"output": {"dense": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}}}},
        "embeddings": {"LayerNorm": {"scale": jnp.ones(4), "bias": jnp.ones(4)}},
    },
    "classifier": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}


def test_linear_schedule_starts_at_0_peaks_after_warm_up_and_ends_at_0() -> None:
    schedule = optim.make_schedule("linear", 0.1)
    np.testing.assert_allclose(
        [schedule(progress) for progress in (0, 0.05, 0.1, 0.55, 1)], [0, 0.5, 1, 0.5, 0], atol=1e-6
    )


def test_linear_schedule_without_warm_up_starts_at_its_peak() -> None:
    assert float(optim.make_schedule("linear", 0.0)(0)) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.make_schedule.__wrapped__("cosine"),
            "schedule is 'cosine'; it must be one of constant, linear",
        ),
        (lambda: optim.make_optimizer.__wrapped__("adam"), "optimizer is 'adam'; it must be one of adamw, bert_adam"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_constant_schedule_is_1() -> None:
    assert float(optim.make_schedule("constant")(0.99)) == 1.0


def test_decay_spares_biases_and_layer_norms_by_name() -> None:
    mask = optim.decay_mask(PARAMS)
    decayed = {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(mask) if leaf}
    assert decayed == {"['encoder']['encoder']['layer']['output']['dense']['kernel']", "['classifier']['kernel']"}


def test_adamw_is_optax_adamw_after_global_clipping() -> None:
    optimizer = optim.make_optimizer("adamw", 0.1)
    reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1, mask=optim.decay_mask))
    params, reference_params = PARAMS, PARAMS
    state, reference_state = optimizer.init(params), reference.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, step=step: jnp.cos(jnp.arange(p.size) + step).reshape(p.shape), PARAMS)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        updates, reference_state = reference.update(grads, reference_state, reference_params)
        reference_params = optax.apply_updates(reference_params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, reference_params)


def test_bert_adam_clips_every_layer_of_a_stacked_leaf_by_itself() -> None:
    optimizer = optim.make_optimizer("bert_adam", 0.0)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    kernel = jnp.zeros((2, 3, 4)).at[0, 0, 0].set(100.0).at[1, 0, 0].set(0.5)
    grads["encoder"]["encoder"]["layer"]["output"]["dense"]["kernel"] = kernel
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    mu = state[1]["mu"]["encoder"]["encoder"]["layer"]["output"]["dense"]["kernel"][:, 0, 0]
    np.testing.assert_allclose(mu, [0.1, 0.05], rtol=1e-5)  # (1 - b1) times the clipped 1 and the whole 0.5


def test_bert_adam_clips_every_projection_of_a_stacked_leaf_by_itself() -> None:
    params = {"projections": {"fit_denses": {"kernel": jnp.zeros((2, 3, 4))}}}
    optimizer = optim.make_optimizer("bert_adam", 0.0)
    grads = jax.tree.map(lambda x: x.at[0, 0, 0].set(100.0).at[1, 0, 0].set(0.5), params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    mu = state[1]["mu"]["projections"]["fit_denses"]["kernel"][:, 0, 0]
    np.testing.assert_allclose(mu, [0.1, 0.05], rtol=1e-5)
