"""DistilBERT's objective: its terms and gradients by hand, from the logits of all positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_pair import STUDENT, TEACHER, make_batch

import tinybert_jax as tb
from tinybert_jax.objectives import distilbert_objective

SMALL = dataclasses.replace(STUDENT, hidden_size=24, intermediate_size=16)
TEACHER_PARAMS, STUDENT_PARAMS = (
    tb.init_params(tb.BertForMaskedLM(config), jax.random.key(seed)) for seed, config in enumerate((TEACHER, SMALL))
)
HYPER = tb.Hyper(temperature=3.0, soft_weight=0.7, hard_weight=0.4, cosine_weight=0.9)


def masked_batch() -> tb.Batch:
    """Two rows with a masked token each, one with two, and one in which nothing is masked."""
    batch = make_batch()
    labels = np.full(batch.input_ids.shape, -1)
    for row, column, label in ((0, 1, 7), (1, 2, 9), (2, 0, 11), (2, 2, 8)):
        labels[row, column] = label
    return batch._replace(labels=jnp.asarray(labels))


def by_hand(trainable: tb.Params, batch: tb.Batch) -> jax.Array:
    """The loss from the logits of all positions: a mean over masked tokens, and one over real tokens."""
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    teacher = tb.BertForMaskedLM(TEACHER).apply({"params": TEACHER_PARAMS}, *inputs)
    student = tb.BertForMaskedLM(SMALL).apply({"params": trainable}, *inputs)
    soft = hard = count = 0.0
    for row, column in np.argwhere(np.asarray(batch.labels) >= 0):
        z, t = student.logits[row, column], teacher.logits[row, column]
        soft += -jnp.sum(jax.nn.softmax(t / 3.0) * jax.nn.log_softmax(z / 3.0)) * 3.0**2
        hard += -jax.nn.log_softmax(z)[batch.labels[row, column]]
        count += 1
    distances = []
    for row, column in np.argwhere(np.asarray(batch.attention_mask)):
        a, b = student.last_hidden_state[row, column], teacher.last_hidden_state[row, column]
        distances.append(1 - a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))
    return 0.7 * soft / count + 0.4 * hard / count + 0.9 * sum(distances) / len(distances)


@pytest.mark.long
def test_value_and_gradient_are_those_of_all_positions_by_hand() -> None:
    objective, batch = distilbert_objective(SMALL, TEACHER), masked_batch()
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)

    def loss(trainable: tb.Params) -> jax.Array:
        return objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, HYPER, None)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(trainable)
    expected, expected_gradient = jax.jit(jax.value_and_grad(lambda trainable: by_hand(trainable, batch)))(trainable)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0), gradient, expected_gradient)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("cosine_weight", -1.0), ("soft_weight", np.nan)])
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(tb.InputError, match=f"{name} is {value}"):
        tb.DistilBert(**{name: value})
