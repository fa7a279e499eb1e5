"""A teacher whose vectors are projected onto their principal directions, for students with shorter vectors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import jax
import numpy as np

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig, TextVector
from tinybert_jax.objectives.embedding import embedding_objective
from tinybert_jax.teachers.teacher import Teacher

TEXTS, BATCH_SIZE = 8192, 64  # largest number of training texts to measure, and number of texts per batch


def with_projected_vectors(teacher: Teacher, examples: Examples, width: int, buckets: tuple[int, ...]) -> Teacher:
    """The teacher with a dense layer that projects its vectors onto their principal directions, the largest first.

    The directions are measured on a sample of the training texts, which is the same for every seed.

    Args:
        teacher: a single embedding model.
        examples: the training texts in the teacher's tokens.
        width: the width of projected vectors.
        buckets: the lengths to which texts are padded.

    Raises:
        InputError: the teacher's vectors are not wider, there are too few texts, or the vectors end with a Tanh.
    """
    model = teacher.model
    assert model is not None, "a teacher of vectors is a model"
    full = model.config.vector_width
    if width >= full:
        raise InputError(
            f"embedding_width is {width}, and the vectors of {teacher.name} have {full} numbers: give fewer, or leave"
            " it out"
        )
    run = jax.jit(embedding_objective(model.config, model.config).targets)
    params = jax.device_put(model.params)
    vectors = np.concatenate([np.asarray(run(params, batch))[:real] for real, batch in _sample(examples, buckets)])
    config, projected = project_vectors(model.config, model.params, principal_directions(vectors, width))
    digest = hashlib.sha256(f"{teacher.fingerprint} {examples.fingerprint} {width}".encode()).hexdigest()
    return dataclasses.replace(teacher, model=model._replace(config=config, params=projected), fingerprint=digest)


def principal_directions(vectors: np.ndarray, width: int) -> np.ndarray:
    """The orthonormal directions [d, width] that keep most of the squared length of vectors [n, d], the largest first.

    The mean is not subtracted, so dot products of the vectors are preserved as well as `width` directions can.

    Raises:
        InputError: there are fewer vectors than directions.

    >>> principal_directions(np.array([[3.0, 0.0], [0.0, -1.0], [0.0, 1.0]]), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if width > len(vectors):
        raise InputError(f"{len(vectors)} texts have vectors of fewer than {width} directions: give more texts")
    vectors = vectors.astype(np.float64)
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :width]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(width)]
    return (directions * np.sign(largest)).astype(np.float32)


def project_vectors(config: BertConfig, params: Params, directions: np.ndarray) -> tuple[BertConfig, Params]:
    """The embedding model with a dense layer that projects its vectors onto directions [d, width].

    Raises:
        InputError: the vectors end with a Tanh.
    """
    how = config.embedding or TextVector()
    if how.activation != "Identity":
        raise InputError(f"vectors behind {how.activation} are not projected: leave embedding_width out")
    identity = {"kernel": np.eye(config.hidden_size), "bias": np.zeros(config.hidden_size)}
    dense = params.get(EMBEDDING_DENSE, identity)
    dense = {name: np.asarray(dense[name] @ directions, np.float32) for name in ("kernel", "bias")}
    config = dataclasses.replace(config, embedding=how._replace(width=directions.shape[1]))
    return config, params | {EMBEDDING_DENSE: dense}


def _sample(examples: Examples, buckets: tuple[int, ...]) -> Iterator[tuple[int, Batch]]:
    """Batches of texts of similar lengths, filled up with filler rows, and the number of texts in each."""
    lengths = np.asarray(examples.lengths)
    rows = np.random.default_rng(0).permutation(len(examples))[:TEXTS]
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        length = next(bucket for bucket in buckets if bucket >= lengths[part[-1]])
        yield len(part), examples.batch(np.pad(part, (0, BATCH_SIZE - len(part)), constant_values=-1), length, 0)
