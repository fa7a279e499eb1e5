"""The objective of text vectors: its errors, what fills a batch, and the dense layer to the teacher's width."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_pair
from conftest import rest_long
from random_params import random_params
from small_pair import make_batch, padded

import tinybert_jax as tb
from tinybert_jax import losses
from tinybert_jax.models.config import TextVector
from tinybert_jax.models.fit import fit_head
from tinybert_jax.objectives.embedding import embedding_objective
from tinybert_jax.objectives.objective import Context, Objective
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.students.start import copy_layers, from_teacher, start_params

TEACHER = dataclasses.replace(small_pair.TEACHER, embedding=TextVector(normalize=True))
STUDENT = dataclasses.replace(small_pair.STUDENT, embedding=TextVector(width=24, normalize=True))
NARROW = dataclasses.replace(STUDENT, embedding=TextVector(normalize=True))
TEACHER_PARAMS = random_params(tb.BertForEmbedding(TEACHER))
STUDENT_PARAMS = random_params(tb.BertForEmbedding(STUDENT), 1)
LOSSES = ("mse", "cosine", "similarity")


def vectors(config: tb.BertConfig, params: Any, batch: tb.Batch) -> np.ndarray:
    return np.asarray(tb.BertForEmbedding(config).apply({"params": params}, *batch[:3]).logits, np.float64)


def loss_of(objective: Objective, params: Any, batch: tb.Batch) -> float:
    targets = objective.targets(TEACHER_PARAMS, batch)
    trainable = objective.init(jax.random.key(0), params)
    return float(objective.loss(trainable, targets, batch, tb.Hyper(), None)[0])


def expected_loss(name: str, student: np.ndarray, teacher: np.ndarray) -> float:
    """In plain numpy; the vectors have length 1."""
    if name == "mse":
        return float(np.mean((student - teacher) ** 2))
    if name == "cosine":
        return float(np.mean(1 - np.sum(student * teacher, axis=1)))
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    return float(np.mean([(student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2 for i, j in pairs]))


@pytest.mark.parametrize("name", rest_long(LOSSES, ["similarity"]))
def test_the_loss_is_the_error_of_the_vectors_whatever_pads_or_fills_the_batch(name: str) -> None:
    batch = make_batch()
    objective = embedding_objective(STUDENT, TEACHER, settings=tb.Embedding(embedding_loss=name))
    sides = vectors(STUDENT, STUDENT_PARAMS, batch), vectors(TEACHER, TEACHER_PARAMS, batch)
    expected = expected_loss(name, *sides)
    assert expected > 1e-3
    np.testing.assert_allclose(loss_of(objective, STUDENT_PARAMS, batch), expected, rtol=1e-4)
    np.testing.assert_allclose(loss_of(objective, STUDENT_PARAMS, padded(batch)), expected, rtol=1e-4)
    filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]), batch)
    np.testing.assert_allclose(loss_of(objective, STUDENT_PARAMS, filled), expected, rtol=1e-4)
    targets = objective.targets(TEACHER_PARAMS, filled)
    gradient = jax.jit(jax.grad(lambda p: objective.loss(p, targets, filled, tb.Hyper(), None)[0]))
    gradients = gradient(STUDENT_PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["embedding_dense"]["kernel"]).max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    objective = embedding_objective(TEACHER, TEACHER, settings=tb.Embedding(embedding_loss=name))
    assert loss_of(objective, TEACHER_PARAMS, make_batch()) == pytest.approx(0, abs=1e-6)


@pytest.mark.long
def test_a_single_text_has_no_pairs() -> None:
    batch = make_batch(rows=1)
    objective = embedding_objective(NARROW, TEACHER, settings=tb.Embedding(embedding_loss="similarity"))
    params = {"encoder": STUDENT_PARAMS["encoder"]}
    assert loss_of(objective, params, batch) == 0.0
    one = jnp.ones((1, 3))
    assert float(jax.grad(lambda x: losses.similarity_mse(x, one, jnp.ones(1)))(one).sum()) == 0.0


def test_only_similarities_are_learnt_between_unlike_widths() -> None:
    params = {"encoder": STUDENT_PARAMS["encoder"]}
    objective = embedding_objective(NARROW, TEACHER, settings=tb.Embedding(embedding_loss="similarity"))
    assert loss_of(objective, params, make_batch()) > 0
    for name in ("mse", "cosine"):
        with pytest.raises(tb.InputError, match="vectors are 16 wide and the teacher's 24: take the loss of simil"):
            embedding_objective(NARROW, TEACHER, settings=tb.Embedding(embedding_loss=name))


def test_the_first_numbers_of_a_vector_learn_the_cosines_of_whole_ones() -> None:
    batch, dims = make_batch(), (8, 4)
    settings = tb.Embedding(embedding_loss="similarity", matryoshka_dims=dims)
    student, teacher = vectors(STUDENT, STUDENT_PARAMS, batch), vectors(TEACHER, TEACHER_PARAMS, batch)

    def first(width: int) -> np.ndarray:
        return student[:, :width] / np.linalg.norm(student[:, :width], axis=1, keepdims=True)

    parts = [expected_loss("similarity", first(width), teacher) for width in (24, *dims)]
    assert len({round(part, 4) for part in parts}) == 3
    objective = embedding_objective(STUDENT, TEACHER, settings=settings)
    np.testing.assert_allclose(loss_of(objective, STUDENT_PARAMS, batch), np.mean(parts), rtol=1e-4)


def test_matryoshka_dims_are_shorter_than_the_vectors_and_have_one_loss() -> None:
    settings = tb.Embedding(embedding_loss="similarity", matryoshka_dims=(8, 24))
    with pytest.raises(tb.InputError, match="vectors have 24 numbers: give fewer than these, not 24"):
        embedding_objective(STUDENT, TEACHER, settings=settings)
    with pytest.raises(tb.InputError, match=r"have no loss 'mse': .* add --embedding-loss similarity"):
        tb.Embedding(matryoshka_dims=(8,))
    with pytest.raises(tb.InputError, match=r"matryoshka_dims are \(0,\); each must be at least 1"):
        tb.Embedding(embedding_loss="similarity", matryoshka_dims=(0,))


def test_a_teacher_of_another_vocabulary_reads_its_own_tokens() -> None:
    batch, other = make_batch(), make_batch(seed=1)
    objective = embedding_objective(STUDENT, TEACHER)
    targets = objective.targets(TEACHER_PARAMS, batch._replace(teacher_inputs=tuple(other[:3])))
    np.testing.assert_allclose(targets, vectors(TEACHER, TEACHER_PARAMS, other), atol=1e-6)


def context(head: str, teacher: tb.BertConfig | None = TEACHER) -> Context:
    return Context(STUDENT, teacher, head, "uniform", PRESETS["default"])


def test_what_does_not_fit_the_head_is_refused() -> None:
    for settings in (tb.Supervised(), tb.Prediction(), tb.Patient()):
        message = f"stage '{settings.name}' learns labels, or outputs like them, which the task has not"
        with pytest.raises(tb.InputError, match=message):
            build_objective(settings, context("embedding"))
    with pytest.raises(tb.InputError, match="'embedding' learns vectors of texts, which the task does not give"):
        build_objective(tb.Embedding(), context("sequence"))
    with pytest.raises(tb.InputError, match="stage 'embedding' learns from a model: give its directory"):
        build_objective(tb.Embedding(), context("embedding", None))


@pytest.mark.parametrize(
    ("hidden", "teacher_width", "width"),
    [(16, None, 24), (24, None, None), (16, 16, None), (16, 20, 20), (24, 24, 24), (24, 10, 10)],
)
def test_a_student_gets_a_dense_layer_where_it_needs_one(
    hidden: int, teacher_width: int | None, width: int | None
) -> None:
    plain = dataclasses.replace(small_pair.STUDENT, hidden_size=hidden)
    teacher = dataclasses.replace(TEACHER, embedding=TextVector("max", teacher_width, True))
    config, keeps = fit_head("m", plain, None, TASKS["embedding"], (), teacher)
    assert config.embedding == TextVector("max", width, True)
    assert not keeps
    own = dataclasses.replace(plain, embedding=TextVector("cls"))
    assert fit_head("m", own, {"encoder": {}}, TASKS["embedding"], (), teacher) == (own, True)
    assert fit_head("m", own, None, TASKS["classification"], ("a", "b"))[0].embedding is None


def test_the_projection_of_the_layers_becomes_the_dense_layer() -> None:
    objective = transformer_objective(STUDENT, TEACHER)
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)
    exported = objective.export(trainable, STUDENT_PARAMS)
    kernel = trainable["projections"]["hidden"]["kernel"]
    np.testing.assert_array_equal(exported["embedding_dense"]["kernel"], kernel)
    assert not exported["embedding_dense"]["bias"].any()
    shared = transformer_objective(STUDENT, TEACHER, preset="official")
    trainable = shared.init(jax.random.key(2), STUDENT_PARAMS)
    assert shared.export(trainable, STUDENT_PARAMS)["embedding_dense"] == trainable["projections"]["fit_dense"]


@pytest.mark.parametrize(
    ("teacher", "layer_map"),
    [(dataclasses.replace(TEACHER, embedding=TextVector(width=24)), "uniform"), (TEACHER, "bottom")],
    ids=["the teacher's vectors are no means of states", "the last state is not compared"],
)
def test_a_projection_that_leads_elsewhere_stays_out(teacher: tb.BertConfig, layer_map: Any) -> None:
    objective = transformer_objective(STUDENT, teacher, layer_map=layer_map)
    exported = objective.export(objective.init(jax.random.key(2), STUDENT_PARAMS), STUDENT_PARAMS)
    np.testing.assert_array_equal(exported["embedding_dense"]["kernel"], STUDENT_PARAMS["embedding_dense"]["kernel"])


@pytest.mark.long
def test_a_student_starts_with_the_teacher_s_dense_layer() -> None:
    teacher = dataclasses.replace(TEACHER, embedding=TextVector(width=10))
    params = tb.init_params(tb.BertForEmbedding(teacher), jax.random.key(0))
    copied = copy_layers(dataclasses.replace(teacher, num_hidden_layers=2), teacher, params, "uniform")
    assert copied["embedding_dense"] is params["embedding_dense"]
    student = dataclasses.replace(teacher, hidden_size=16, intermediate_size=32)
    batches = [make_batch(seed, rows=16) for seed in range(8)]
    spectral = from_teacher("spectral", student, teacher, jax.device_get(params), "uniform", batches)
    kernel = spectral["projections"]["hidden"]["kernel"] @ params["embedding_dense"]["kernel"]
    np.testing.assert_allclose(spectral["embedding_dense"]["kernel"], kernel, rtol=1e-5)
    random = tb.init_params(tb.BertForEmbedding(student), jax.random.key(3))
    assert start_params(random, spectral)["embedding_dense"] is spectral["embedding_dense"]
    without = dataclasses.replace(student, embedding=TextVector())
    random = tb.init_params(tb.BertForEmbedding(without), jax.random.key(3))
    assert "embedding_dense" not in start_params(random, spectral)
