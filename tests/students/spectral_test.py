"""The spectral start: near its teacher on unseen text, the same every time, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import tinybert_jax as tb
from tinybert_jax.models import sample as samples
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.students import spectral
from tinybert_jax.students.start import from_teacher, start_params

TEACHER = tb.BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    initializer_range=0.2,
)
STUDENT = dataclasses.replace(TEACHER, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
TEACHER_PARAMS = random_params(tb.BertForSequenceClassification(TEACHER))
STUDENT_PARAMS = random_params(tb.BertForSequenceClassification(STUDENT), 1)


def batches(count: int, seed: int = 0, pad_token_id: int = 0) -> Iterator[tb.Batch]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        mask = (np.arange(12) < random.integers(4, 13, (16, 1))).astype(np.int32)
        ids = np.where(mask, random.integers(5, 40, (16, 12)), pad_token_id).astype(np.int32)
        types = mask * (np.arange(12) > 5).astype(np.int32)
        yield tb.Batch(ids, mask, types, np.zeros(16, np.int32), np.ones(16, np.float32))


def start(student: tb.BertConfig = STUDENT, layer_map="uniform", count: int = 16):
    spectral_parts = from_teacher("spectral", student, TEACHER, TEACHER_PARAMS, layer_map, batches(count))
    return start_params(STUDENT_PARAMS, spectral_parts)


STARTED = start()


def metrics(params, layer_map="uniform") -> dict[str, float]:
    objective = transformer_objective(STUDENT, TEACHER, layer_map)
    batch = jax.tree.map(jnp.asarray, next(batches(1, seed=9)))
    trainable = objective.init(jax.random.key(2), params)
    terms = objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, tb.Hyper(), None)[1]
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize("layer_map", ["uniform", pytest.param((3, 1), marks=pytest.mark.long)])
def test_every_term_of_the_loss_starts_far_below_that_of_a_random_start(layer_map) -> None:
    params = STARTED if layer_map == "uniform" else start(layer_map=layer_map)
    random, fitted = metrics(STUDENT_PARAMS, layer_map), metrics(params, layer_map)
    for name in random:
        assert fitted[name] < 0.75 * random[name], name


@pytest.mark.long
def test_positions_behind_padding_are_fitted_where_they_are() -> None:
    teacher, student = (
        dataclasses.replace(config, model_type="roberta", pad_token_id=1, max_position_embeddings=16)
        for config in (TEACHER, STUDENT)
    )
    teacher_params = tb.init_params(tb.BertForSequenceClassification(teacher), jax.random.key(0))
    spectral_parts = from_teacher("spectral", student, teacher, teacher_params, "uniform", batches(16, pad_token_id=1))
    batch = next(batches(1, seed=9, pad_token_id=1))
    states = [
        tb.BertModel(config, add_pooler=False).apply({"params": params}, *map(jnp.asarray, batch[:3])).hidden_states[0]
        for config, params in (
            (teacher, {name: teacher_params["encoder"][name] for name in ("embeddings", "encoder")}),
            (student, spectral_parts["encoder"]),
        )
    ]
    real = batch.attention_mask > 0
    error = (states[1] @ spectral_parts["projections"]["embedding"]["kernel"] - states[0])[real]
    assert jnp.square(error).mean() < 0.5 * jnp.square(states[0][real]).mean()


def test_projections_and_encoder_are_given_pooler_and_head_stay() -> None:
    assert set(STARTED) == {"encoder", "classifier", "projections"}
    for name in ("classifier",):
        jax.tree.map(np.testing.assert_array_equal, STARTED[name], STUDENT_PARAMS[name])
    jax.tree.map(np.testing.assert_array_equal, STARTED["encoder"]["pooler"], STUDENT_PARAMS["encoder"]["pooler"])
    objective = transformer_objective(STUDENT, TEACHER)
    trainable = objective.init(jax.random.key(2), STARTED)
    jax.tree.map(np.testing.assert_array_equal, trainable["projections"], STARTED["projections"])
    assert jax.tree.structure(objective.export(trainable, STARTED)) == jax.tree.structure(STUDENT_PARAMS)


def test_it_has_the_shapes_and_types_of_a_random_start() -> None:
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), p["encoder"]) for p in (STARTED, STUDENT_PARAMS)]
    assert kinds[0] == kinds[1]


def test_it_is_a_function_of_teacher_and_text_alone() -> None:
    jax.tree.map(np.testing.assert_array_equal, start(), STARTED)


def test_it_does_not_depend_on_how_far_the_text_is_padded() -> None:
    def longer() -> Iterator[tb.Batch]:
        for batch in batches(16):
            pad = [np.pad(array, ((0, 0), (0, 4))) for array in batch[:3]]
            yield tb.Batch(*pad, batch.labels, batch.example_mask)

    params = spectral.spectral_start(STUDENT, TEACHER, TEACHER_PARAMS, longer(), "uniform")
    for leaf, expected in zip(
        jax.tree.leaves(params["projections"]), jax.tree.leaves(STARTED["projections"]), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.long
def test_attention_scores_are_the_best_of_their_rank_on_the_sample() -> None:
    """Where the student's heads are as wide as the teacher's, only the narrower states stand between their scores."""
    wide = dataclasses.replace(STUDENT, head_dim=8)
    params = spectral.spectral_start(wide, TEACHER, TEACHER_PARAMS, batches(16), "uniform")
    batch = jax.tree.map(jnp.asarray, next(batches(1, seed=9)))

    def error(config: tb.BertConfig, params) -> float:
        objective = transformer_objective(config, TEACHER)
        trainable = objective.init(jax.random.key(2), params)
        targets = objective.targets(TEACHER_PARAMS, batch)
        return float(objective.loss(trainable, targets, batch, tb.Hyper(), None)[1]["attention/1"])

    assert error(wide, params) < error(STUDENT, STARTED)


def test_no_more_text_is_read_than_the_sample_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SAMPLE_TOKENS", 500)
    source = batches(100)
    spectral.spectral_start(STUDENT, TEACHER, TEACHER_PARAMS, source, "uniform")
    assert len(list(source)) >= 94


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, "'spectral' needs equal num_attention_heads: the student has 2, the teacher 4"),
        (
            {"hidden_size": 26, "num_attention_heads": 2},
            "the student has 2, the teacher 4; a student 24 wide could take its start$",
        ),
        ({"hidden_size": 36}, "narrower student: its hidden_size is 36, the teacher's 32"),
        ({"head_dim": 9}, "narrower student: its attention_head_dim is 9, the teacher's 8"),
        ({"intermediate_size": 65}, "narrower student: its intermediate_size is 65, the teacher's 64"),
    ],
)
def test_students_that_cannot_start_so_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        start(dataclasses.replace(STUDENT, **changes))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(tb.InputError, match="needs more text"):
        start(count=0)
