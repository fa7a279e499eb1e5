"""A teacher's vectors are projected on their principal directions, and shorter students learn these."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from conftest import rest_long

import tinybert_jax as tb
from tinybert_jax.data.tokens import Tokens, TwoVocabularies
from tinybert_jax.models.config import TextVector
from tinybert_jax.models.fit import fit_head
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.teachers import projected
from tinybert_jax.teachers.projected import principal_directions, project_vectors, with_projected_vectors
from tinybert_jax.teachers.teacher import Teacher, TeacherModel

PLAIN = tb.BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    initializer_range=0.2,
)
BUCKETS = (8, 16)


def make_tokens(texts: int, seed: int = 0) -> Tokens:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 13, texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(5, 40, offsets[-1]).astype(np.int32)
    return Tokens(ids, offsets, lengths.astype(np.int32), np.zeros(texts, np.float32), f"tokens {seed}")


def make_teacher(**vector: Any) -> Teacher:
    config = dataclasses.replace(PLAIN, embedding=TextVector(**vector))
    params = jax.device_get(tb.init_params(tb.BertForEmbedding(config), jax.random.key(0)))
    return Teacher("a teacher", "its fingerprint", (), TeacherModel(config, params, None))


def vectors_of(teacher: Teacher, tokens: Tokens) -> np.ndarray:
    assert teacher.model is not None
    inputs = tokens.batch(np.arange(len(tokens)), 16)[:3]
    model = tb.BertForEmbedding(teacher.model.config)
    return np.asarray(model.apply({"params": teacher.model.params}, *map(jax.numpy.asarray, inputs)).logits)


def test_principal_directions_keep_the_most_of_dot_products() -> None:
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(50, 3)) * np.array([9.0, 3.0, 0.1])) @ random.normal(size=(3, 8))
    directions = principal_directions(vectors, 3)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    lengths = np.linalg.norm(vectors @ directions, axis=0)
    assert lengths[0] > lengths[1] > lengths[2] > 0
    np.testing.assert_allclose(vectors @ directions @ directions.T, vectors, atol=1e-4)  # they are of rank 3
    with pytest.raises(tb.InputError, match="2 texts have vectors of fewer than 3 directions: give more texts"):
        principal_directions(vectors[:2], 3)


@pytest.mark.parametrize(
    "vector", rest_long([{"normalize": True}, {"width": 12, "normalize": True}, {"width": 12}], [{"width": 12}])
)
def test_a_projected_teacher_gives_its_vectors_on_their_directions(vector: dict[str, Any]) -> None:
    teacher, tokens = make_teacher(**vector), make_tokens(100)
    vectors = vectors_of(teacher, tokens)
    expected = vectors @ principal_directions(vectors, 4)
    if vector.get("normalize"):
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    short = with_projected_vectors(teacher, tokens, 4, BUCKETS)
    np.testing.assert_allclose(vectors_of(short, tokens), expected, atol=1e-4)
    assert (
        len({teacher.fingerprint, short.fingerprint, with_projected_vectors(teacher, tokens, 5, BUCKETS).fingerprint})
        == 3
    )


@pytest.mark.long
def test_a_teacher_of_another_vocabulary_is_measured_on_its_own_tokens() -> None:
    teacher, tokens = make_teacher(), make_tokens(100)
    both = TwoVocabularies(make_tokens(100, seed=1), tokens)
    one, other = (vectors_of(with_projected_vectors(teacher, rows, 4, BUCKETS), tokens) for rows in (tokens, both))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_of_many_texts_a_sample_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "TEXTS", 70)
    tokens = make_tokens(100)
    counts = [
        (real, batch.input_ids.shape, int(batch.example_mask.sum()))
        for real, batch in projected._sample(tokens, BUCKETS)
    ]
    assert [count[0] for count in counts] == [64, 6]
    assert all(real == filled and shape[0] == 64 for real, shape, filled in counts)


@pytest.mark.parametrize(("hidden", "width"), [(4, None), (8, 4), (16, 4)])
def test_a_student_as_wide_as_the_projected_vectors_needs_no_dense_layer(hidden: int, width: int | None) -> None:
    short = with_projected_vectors(make_teacher(normalize=True), make_tokens(20), 4, BUCKETS)
    assert short.model is not None
    student = dataclasses.replace(PLAIN, hidden_size=hidden)
    config, _ = fit_head("m", student, None, TASKS["embedding"], (), short.model.config)
    assert config.embedding == TextVector(width=width, normalize=True)


def test_what_is_not_projected_is_refused() -> None:
    teacher, tokens = make_teacher(), make_tokens(3)
    with pytest.raises(
        tb.InputError, match="embedding_width is 16, and the vectors of a teacher have 16 numbers: give few"
    ):
        with_projected_vectors(teacher, tokens, 16, BUCKETS)
    with pytest.raises(tb.InputError, match="3 texts have vectors of fewer than 4 directions"):
        with_projected_vectors(teacher, tokens, 4, BUCKETS)
    config = dataclasses.replace(PLAIN, embedding=TextVector(width=12, activation="Tanh"))
    with pytest.raises(tb.InputError, match="vectors behind Tanh are not projected: leave embedding_width out"):
        project_vectors(config, {}, np.eye(12, 4))
    with pytest.raises(tb.InputError, match="embedding_width is 0; it must be at least 1"):
        tb.Embedding(embedding_width=0)
    stages = tuple(tb.Stage(tb.Embedding(embedding_width=width), max_steps=1) for width in (4, 8))
    with pytest.raises(tb.InputError, match="stages have unlike embedding_width"):
        tb.Experiment("embedding", tb.DataSource(train="x", dev="y"), "1x8", stages, "teacher")
