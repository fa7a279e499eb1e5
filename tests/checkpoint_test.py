"""Checkpoints: exact, the newest and the best kept, NaN never the best."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinybert_jax import optim, sharding, train_step
from tinybert_jax.checkpoint import Checkpoints


def make_state(seed: int) -> train_step.TrainState:
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4))}}
    return train_step.create_state(params, optim.make_optimizer("adamw"), jax.random.key(seed), sharding.make_mesh())


def test_a_restored_state_is_the_saved_one_random_key_included(tmp_path: Path) -> None:
    saved = make_state(1)._replace(step=jnp.array(7), best_metric=jnp.float32(0.5))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, saved, 0.5)
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore(make_state(2))
    assert restored is not None
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(saved.key))
    for a, b in zip(jax.tree.leaves(restored._replace(key=0)), jax.tree.leaves(saved._replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_empty_directory_restores_nothing(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).restore(make_state(0)) is None


def test_newest_and_best_are_kept_and_nan_is_not_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, metric in [(1, 0.2), (2, 0.9), (3, None), (4, math.nan), (5, 0.4), (6, None), (7, None)]:
        checkpoints.save(step, make_state(step), metric)
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 6, 7]


def test_a_save_that_orbax_would_skip_in_silence_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, make_state(1))
    with pytest.raises(RuntimeError, match="step 1 was not saved; 2 is the newest"):
        checkpoints.save(1, make_state(2))
