"""A student learns relations between queries, keys and values where scores cannot be compared."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_pair import (
    STUDENT,
    STUDENT_PARAMS,
    TEACHER,
    TEACHER_PARAMS,
    TWO_HEADS,
    assert_close,
    attention_gradients,
    make_batch,
    padded,
    value,
)

import tinybert_jax as tb
from tinybert_jax import losses
from tinybert_jax.objectives.transformer import transformer_objective


@pytest.mark.long
def test_gradient_of_the_relations_is_that_through_queries_keys_and_values() -> None:
    mask = make_batch().attention_mask

    def plain(student_output: tb.BertOutput, teacher_output: tb.BertOutput) -> jax.Array:
        loss = jax.vmap(functools.partial(losses.relation_kl, relation_heads=4))
        pairs = (
            (student_output.qkv[m, i], teacher_output.qkv[g - 1, i]) for m, g in ((0, 3), (1, 2)) for i in range(3)
        )
        return sum(jnp.mean(loss(*pair, mask)) for pair in pairs)

    objective = transformer_objective(TWO_HEADS, TEACHER, layer_map=(3, 2))
    assert_close(*attention_gradients(objective, TWO_HEADS, plain), 1e-5)


@pytest.mark.long
def test_unlike_heads_learn_relations_of_queries_keys_and_values() -> None:
    objective = transformer_objective(TWO_HEADS, TEACHER, layer_map=(3, 2))
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    teacher = tb.BertModel(TEACHER).apply({"params": TEACHER_PARAMS["encoder"]}, *inputs, qkv_layers=(1, 2))
    student = tb.BertModel(TWO_HEADS).apply({"params": STUDENT_PARAMS["encoder"]}, *inputs, qkv_layers=(0, 1))
    _, metrics = objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, tb.Hyper(), None)
    for m, slot in ((1, 1), (2, 0)):  # layer 3 of the teacher is in slot 1, layer 2 in slot 0
        expected = np.mean(
            [
                sum(
                    losses.relation_kl(student.qkv[m - 1, i, b], teacher.qkv[slot, i, b], batch.attention_mask[b], 4)
                    for i in range(3)
                )
                for b in range(4)
            ]
        )
        np.testing.assert_allclose(metrics[f"relation/{m}"], expected, rtol=1e-4)
    assert "attention/1" not in metrics


@pytest.mark.long
def test_relations_ignore_padding_and_filler_and_reach_every_leaf() -> None:
    objective = transformer_objective(TWO_HEADS, TEACHER)
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    unpadded = value(objective, trainable, batch)
    np.testing.assert_allclose(value(objective, trainable, padded(batch)), unpadded, rtol=1e-5)
    filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]), batch)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: value(objective, p, filled)))(trainable)
    np.testing.assert_allclose(loss, unpadded, rtol=1e-5)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_relations_are_weighed_by_the_attention_weight_and_can_be_asked_of_like_heads() -> None:
    objective = transformer_objective(STUDENT, TEACHER, attention="relations", relation_heads=8)
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    targets = objective.targets(TEACHER_PARAMS, batch)
    hyper = tb.Hyper(embedding_weight=0.0, attention_weight=0.5, hidden_weight=0.0)
    loss, metrics = objective.loss(trainable, targets, batch, hyper, None)
    np.testing.assert_allclose(loss, 0.5 * (metrics["relation/1"] + metrics["relation/2"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (TWO_HEADS, {"preset": "official"}, "student has 2 attention heads and the teacher 4; only relations"),
        (TWO_HEADS, {"preset": "paper"}, "student has 2 attention heads and the teacher 4; only relations"),
        (TWO_HEADS, {"attention": "scores"}, "student has 2 attention heads and the teacher 4; only relations"),
        (STUDENT, {"preset": "paper", "attention": "relations"}, "relations leave padding out of the means"),
        (TWO_HEADS, {"relation_heads": 3}, "relation_heads 3 does not divide both widths, 16 and 24"),
    ],
)
def test_relations_that_do_not_go_are_refused(student: tb.BertConfig, options: dict, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        transformer_objective(student, TEACHER, **options)
