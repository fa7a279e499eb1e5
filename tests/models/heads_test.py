"""Objectives of the heads that label tokens, mark answers or predict masked words: what counts, and what does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long

import tinybert_jax as tb
from tinybert_jax.models.heads import HEADS
from tinybert_jax.objectives.masked_lm import masked_lm_objective
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.supervised import supervised_objective

TEACHER = tb.BertConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.2,
    id2label=("O", "B-PER", "I-PER"),
)
STUDENT = dataclasses.replace(TEACHER, hidden_size=16, num_hidden_layers=2)
LABELS: dict[Head, np.ndarray] = {
    "tokens": np.array([[-1, 0, 1, -1, 2, -1], [-1, 0, -1, -1, -1, -1]], np.int32),
    "span": np.array([[2, 3], [0, 0]], np.int32),
    "masked_lm": np.array([[-1, 7, -1, -1, -1, -1], [-1, -1, 9, -1, -1, -1]], np.int32),
}


def make_batch(head: str) -> tb.Batch:
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.int32)
    ids = np.random.default_rng(0).integers(5, 40, (2, 6)).astype(np.int32) * mask
    arrays = (ids, mask, np.zeros_like(ids), LABELS[head], np.ones(2, np.float32))
    return tb.Batch(*map(jnp.asarray, arrays))


def params_of(head: str, config: tb.BertConfig, seed: int) -> dict:
    return tb.init_params(HEADS[head].model(config), jax.random.key(seed))


def logits_of(head: str, config: tb.BertConfig, params: dict, batch: tb.Batch) -> np.ndarray:
    return np.asarray(HEADS[head].model(config).apply({"params": params}, *batch[:3]).logits)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def per_example(head: str, student: np.ndarray, target: np.ndarray, batch: tb.Batch) -> list[float]:
    """Cross-entropy of each example in plain numpy; `target` holds a distribution where the student's logits do."""
    out = []
    for i in range(2):
        real = np.asarray(batch.attention_mask[i], bool)
        if head == "span":
            out.append(-(target[i][real] * log_softmax(student[i][real], 0)).sum(axis=0).mean())
        else:
            counted = np.asarray(batch.labels[i]) >= 0
            out.append(-(target[i][counted] * log_softmax(student[i][counted], -1)).sum(axis=-1).mean())
    return out


def loss_of(objective: Objective, params: dict, teacher: dict, batch: tb.Batch, **hyper: float) -> float:
    trainable = objective.init(jax.random.key(0), params)
    targets = objective.targets(teacher, batch)
    loss = jax.jit(lambda *arguments: objective.loss(*arguments, None)[0])
    return float(loss(trainable, targets, batch, tb.Hyper(**hyper)))


@pytest.mark.parametrize("head", rest_long(["tokens", "span", "masked_lm"], ["tokens"]))
def test_supervised_loss_is_the_cross_entropy_of_what_is_labelled(head: str) -> None:
    batch, params = make_batch(head), params_of(head, STUDENT, 1)
    objective = supervised_objective(STUDENT, head)
    if head == "masked_lm":
        objective = masked_lm_objective(STUDENT)
    logits = logits_of(head, STUDENT, params, batch)
    target = np.zeros_like(logits)
    labels = np.asarray(batch.labels)
    for i in range(2):
        if head == "span":
            target[i, labels[i, 0], 0] = target[i, labels[i, 1], 1] = 1
        else:
            target[i, np.arange(6), np.maximum(labels[i], 0)] = 1
    np.testing.assert_allclose(
        loss_of(objective, params, {}, batch), np.mean(per_example(head, logits, target, batch)), rtol=1e-5
    )


@pytest.mark.parametrize("head", rest_long(["tokens", "span"], ["span"]))
def test_prediction_loss_is_the_cross_entropy_against_the_teacher_at_a_temperature(head: str) -> None:
    batch, params, teacher = make_batch(head), params_of(head, STUDENT, 1), params_of(head, TEACHER, 0)
    student_logits = logits_of(head, STUDENT, params, batch) / 2
    teacher_logits = logits_of(head, TEACHER, teacher, batch) / 2
    if head == "span":
        teacher_logits[1, 3:] = -np.inf  # padding is no answer
    target = np.exp(log_softmax(teacher_logits, 1 if head == "span" else -1))
    loss = loss_of(prediction_objective(STUDENT, TEACHER, head=head), params, teacher, batch, temperature=2.0)
    expected = 4 * np.mean(per_example(head, student_logits, target, batch))  # temperature**2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("head", rest_long(["tokens", "span", "masked_lm"], ["masked_lm"]))
def test_longer_padding_changes_nothing(head: str) -> None:
    batch, params, teacher = make_batch(head), params_of(head, STUDENT, 1), params_of(head, TEACHER, 0)
    widths = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0} | ({} if head == "span" else {"labels": -1})
    longer = batch._replace(
        **{name: jnp.pad(getattr(batch, name), ((0, 0), (0, 4)), constant_values=v) for name, v in widths.items()}
    )
    if head == "masked_lm":
        objective = masked_lm_objective(STUDENT)
    else:
        objective = prediction_objective(STUDENT, TEACHER, head=head)
    losses = [loss_of(objective, params, teacher, b) for b in (batch, longer)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_sequence_in_which_nothing_is_masked_does_not_count_as_solved() -> None:
    batch, params = make_batch("masked_lm"), params_of("masked_lm", STUDENT, 1)
    objective = masked_lm_objective(STUDENT)
    first = loss_of(objective, params, {}, jax.tree.map(lambda x: x[:1], batch))
    empty = batch._replace(labels=batch.labels.at[1].set(-1))
    np.testing.assert_allclose(loss_of(objective, params, {}, empty), first, rtol=1e-5)


@pytest.mark.long
def test_a_batch_in_which_nothing_is_masked_contributes_nothing() -> None:
    batch, params = make_batch("masked_lm"), params_of("masked_lm", STUDENT, 1)
    objective = masked_lm_objective(STUDENT)
    nothing = batch._replace(labels=jnp.full((2, 6), -1))
    trainable = objective.init(jax.random.key(0), params)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, (), nothing, tb.Hyper(), None)[0]))(trainable)
    assert loss == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_masked_lm_student_that_started_with_projections_is_written_without_them() -> None:
    params = params_of("masked_lm", STUDENT, 1)
    objective = masked_lm_objective(STUDENT)
    trained = objective.init(jax.random.key(0), params)
    assert objective.export(trained, params | {"projections": {}}).keys() == params.keys()


def test_masked_lm_trains_the_tied_table_and_keeps_what_it_does_not_reach() -> None:
    params = params_of("masked_lm", STUDENT, 1)
    params["cls"]["seq_relationship"] = {"kernel": jnp.ones((16, 2)), "bias": jnp.ones(2)}
    objective = masked_lm_objective(STUDENT)
    trainable = objective.init(jax.random.key(0), params)
    assert "seq_relationship" not in trainable["cls"]
    assert "seq_relationship" in objective.export(trainable, params)["cls"]


def test_official_has_no_arithmetic_for_answers_and_tags() -> None:
    for head in ("tokens", "span"):
        with pytest.raises(tb.InputError, match="authors' code knows no tokens' labels"):
            prediction_objective(STUDENT, TEACHER, "official", head)


@pytest.mark.long
def test_a_teacher_of_another_vocabulary_reads_its_own_tokens() -> None:
    teacher_config = dataclasses.replace(TEACHER, vocab_size=50)
    teacher, params = params_of("sequence", teacher_config, 0), params_of("sequence", STUDENT, 1)
    batch = make_batch("span")._replace(labels=jnp.zeros(2, jnp.int32))
    teacher_inputs = (jnp.full((2, 9), 45), jnp.ones((2, 9), jnp.int32), jnp.zeros((2, 9), jnp.int32))
    objective = prediction_objective(STUDENT, teacher_config)
    expected = HEADS["sequence"].model(teacher_config).apply({"params": teacher}, *teacher_inputs).logits
    np.testing.assert_array_equal(objective.targets(teacher, batch._replace(teacher_inputs=teacher_inputs)), expected)
    assert not np.allclose(objective.targets(teacher, batch), expected)
    assert loss_of(objective, params, teacher, batch._replace(teacher_inputs=teacher_inputs)) > 0
