"""The step: one function for every mesh, no recompilation for another hyper-parameter, a state of arrays only."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import rest_long

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.masked_lm import masked_lm_objective
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.training import optim
from tinybert_jax.training.step import create_state, make_train_step

SIZES = {"vocab_size": 40, "num_attention_heads": 4, "intermediate_size": 32, "initializer_range": 0.2}
TEACHER = tb.BertConfig(hidden_size=24, num_hidden_layers=4, **SIZES)
STUDENT = tb.BertConfig(hidden_size=16, num_hidden_layers=2, **SIZES)


def make_batch() -> tb.Batch:
    random = np.random.default_rng(0)
    ids = random.integers(5, 40, (8, 6)).astype(np.int32)
    mask = (np.arange(6) < random.integers(2, 7, (8, 1))).astype(np.int32)
    return tb.Batch(ids, mask, np.zeros_like(ids), np.zeros(8, np.int32), np.ones(8, np.float32))


def run_steps(mesh, hypers: list[tb.Hyper]):
    """The loss of each step, and the compiled step."""
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(0))
    student = tb.init_params(tb.BertForSequenceClassification(STUDENT), jax.random.key(1))
    objective = transformer_objective(STUDENT, TEACHER)
    optimizer = optim.make_optimizer("adamw")
    state = create_state(objective.init(jax.random.key(2), student), optimizer, jax.random.key(3), mesh)
    schedule = optim.make_schedule("constant")
    step = make_train_step(objective, optimizer, schedule, mesh, state, teacher)
    losses = []
    for hyper in hypers:
        state, metrics = step(state, teacher, make_batch(), hyper)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == len(hypers)
    return losses, step


def test_loss_falls_and_another_hyper_is_no_recompilation() -> None:
    hypers = [tb.Hyper(1e-2, temperature=1.0)] * 4 + [tb.Hyper(1e-2, temperature=2.0)]
    losses, step = run_steps(sharding.make_mesh(), hypers)
    assert losses[3] < 0.9 * losses[0]
    assert step._cache_size() == 1


def test_the_share_of_real_tokens_is_that_of_the_batch() -> None:
    config, mesh, batch = STUDENT, sharding.make_mesh(), make_batch()
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(1))
    optimizer, schedule = optim.make_optimizer("adamw"), optim.make_schedule("constant")
    state = create_state(params, optimizer, jax.random.key(3), mesh)
    step = make_train_step(supervised_objective(config), optimizer, schedule, mesh, state, {})
    _, metrics = step(state, {}, batch, tb.Hyper())
    np.testing.assert_allclose(metrics["real_tokens"], batch.attention_mask.mean(), rtol=1e-6)


def test_equal_seeds_give_equal_losses() -> None:
    hypers = [tb.Hyper(learning_rate=1e-2)] * 2
    assert run_steps(sharding.make_mesh(), hypers)[0] == run_steps(sharding.make_mesh(), hypers)[0]


@pytest.mark.parametrize("stage", rest_long(["supervised", "masked_lm"], ["masked_lm"]))
def test_a_batch_in_parts_gives_loss_and_gradient_norm_of_the_whole(stage: str) -> None:
    """Filler rows, or masked tokens, are spread unevenly over the parts; dropout, whose keys would differ, is off."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tb.BertConfig(hidden_size=16, num_hidden_layers=2, **SIZES, **still)
    batch = make_batch()._replace(example_mask=np.array([1, 0, 0, 0, 1, 1, 1, 0], np.float32))
    if stage == "masked_lm":
        objective, model = masked_lm_objective(config), tb.BertForMaskedLM(config)
        labels = np.full(batch.input_ids.shape, -1, np.int32)
        labels[0, :5], labels[1, 2], labels[4, 0] = 7, 8, 9  # of the first row's five, two are decoded
        batch = batch._replace(labels=labels)
    else:
        objective, model = supervised_objective(config), tb.BertForSequenceClassification(config)
        batch = batch._replace(labels=np.array([0, 1] * 4, np.int32))
    params, mesh = tb.init_params(model, jax.random.key(1)), sharding.make_mesh()
    optimizer, schedule = optim.make_optimizer("adamw"), optim.make_schedule("constant")
    after = []
    for parts in (1, 4):
        trainable = objective.init(jax.random.key(2), params)
        state = create_state(trainable, optimizer, jax.random.key(3), mesh)
        step = make_train_step(objective, optimizer, schedule, mesh, state, {}, parts)
        state, metrics = step(state, {}, batch, tb.Hyper(learning_rate=1e-2))
        after.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    np.testing.assert_allclose(after[1], after[0], rtol=1e-5)
