"""The tests of the objectives share a small teacher, its students, a batch, and the gradients by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from random_params import random_params

import tinybert_jax as tb
from tinybert_jax.objectives.objective import Objective

TEACHER = tb.BertConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.2,
    id2label=("a", "b", "c"),
)
COMPUTE = tb.Compute()
STUDENT = dataclasses.replace(TEACHER, hidden_size=16, num_hidden_layers=2)
TWO_HEADS = dataclasses.replace(STUDENT, num_attention_heads=2)
TEACHER_PARAMS = random_params(tb.BertForSequenceClassification(TEACHER))
STUDENT_PARAMS = random_params(tb.BertForSequenceClassification(STUDENT), 1)


def make_batch(seed: int = 0, rows: int = 4, length: int = 8) -> tb.Batch:
    random = np.random.default_rng(seed)
    mask = (np.arange(length) < random.integers(3, length + 1, (rows, 1))).astype(np.int32)
    ids = jnp.array(random.integers(5, 40, (rows, length)) * mask)
    labels = jnp.array(random.integers(0, 3, rows))
    return tb.Batch(ids, jnp.array(mask), jnp.zeros_like(ids), labels, jnp.ones(rows))


def padded(batch: tb.Batch) -> tb.Batch:
    """The same rows, five positions of padding longer."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return batch._replace(**{name: jnp.pad(getattr(batch, name), ((0, 0), (0, 5))) for name in names})


def value(objective: Objective, trainable, batch: tb.Batch, hyper: tb.Hyper | None = None) -> jax.Array:
    return objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, hyper or tb.Hyper(), None)[0]


def attention_gradients(
    objective: Objective,
    student: tb.BertConfig,
    plain: Callable[[tb.BertOutput, tb.BertOutput], jax.Array],
    compute: tb.Compute = COMPUTE,
) -> tuple[tb.Params, tb.Params]:
    """Gradients by the student's BERT: of the attention term, and of `plain(student's output, teacher's output)`."""
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    targets = jax.jit(objective.targets)(TEACHER_PARAMS, batch)
    model = tb.BertModel(TEACHER, compute)
    apply = jax.jit(partial(model.apply, qkv_layers=(0, 1, 2, 3)))
    teacher = apply({"params": TEACHER_PARAMS["encoder"]}, *inputs)

    def ours(bert: tb.Params) -> jax.Array:
        hyper = tb.Hyper(embedding_weight=0.0, hidden_weight=0.0)
        return objective.loss(trainable | {"encoder": bert}, targets, batch, hyper, None)[0]

    def expected(bert: tb.Params) -> jax.Array:
        model = tb.BertModel(student, compute, add_pooler=False)
        return plain(model.apply({"params": bert}, *inputs, qkv_layers=(0, 1)), teacher)

    return jax.jit(jax.grad(ours))(trainable["encoder"]), jax.jit(jax.grad(expected))(trainable["encoder"])


def assert_close(computed: tb.Params, expected: tb.Params, tolerance: float) -> None:
    """The tolerance is relative to the largest number of all leaves."""
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest), computed, expected)
