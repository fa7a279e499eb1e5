"""The biases of relative positions: a part of the scores, of what layers learn, and of what a student starts with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax.compression.table import check_methods
from tinybert_jax.compression.walk import walk
from tinybert_jax.models.relative import TABLE, buckets, spread
from tinybert_jax.models.sample import Sample
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.students.start import from_teacher

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tiny-mpnet-encoder"
CONFIG, PARAMS = tb.load_hf(FIXTURE)
MASK = np.arange(30) < np.array([[30], [12]])
IDS = np.where(MASK, np.random.default_rng(0).integers(2, 24, MASK.shape), 1).astype(np.int32)
BATCH = tb.Batch(IDS, MASK.astype(np.int32), 0 * IDS, np.zeros(2, np.int32), np.ones(2, np.float32))


def with_biases(scale: float) -> Any:
    """The parameters with other biases."""
    encoder = PARAMS["encoder"]["encoder"]
    table = {"embedding": scale * np.asarray(encoder[TABLE]["embedding"])}
    return {"encoder": PARAMS["encoder"] | {"encoder": encoder | {TABLE: table}}}


def outputs(params: Any) -> tb.BertOutput:
    model: Any = tb.BertModel(CONFIG, add_pooler=False)
    encoder = {name: params["encoder"][name] for name in ("embeddings", "encoder")}
    return model.apply({"params": encoder}, jnp.asarray(IDS), jnp.asarray(BATCH.attention_mask))


def test_distances_share_the_buckets_of_t5() -> None:
    far = [7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 128, 500]
    expected = [7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 15]
    assert buckets(-np.array(far), 32).tolist() == expected
    assert buckets(np.array(far), 32).tolist() == [16 + bucket for bucket in expected]
    table = np.arange(32, dtype=np.float32)[:, None]
    assert spread(table, 3)[0].tolist() == [[0, 17, 18], [1, 0, 17], [2, 1, 0]]


@pytest.mark.long
def test_layers_learn_scores_with_their_biases() -> None:
    objective = transformer_objective(CONFIG, CONFIG, layer_map=(1, 2))
    trainable = objective.init(jax.random.key(0), PARAMS)
    student, teacher = with_biases(0.5), PARAMS
    trainable |= {"encoder": {name: student["encoder"][name] for name in ("embeddings", "encoder")}}
    targets = objective.targets(teacher, BATCH)

    def attention(encoder: Any) -> Any:
        return objective.loss(trainable | {"encoder": encoder}, targets, BATCH, tb.Hyper(), None)[1]["attention/1"]

    value, grads = jax.jit(jax.value_and_grad(attention))(trainable["encoder"])
    difference = np.square(outputs(student).attention_scores[0] - outputs(teacher).attention_scores[0])
    pairs = MASK[:, None, :, None] & MASK[:, None, None, :]
    means = [(row * pair).sum() / (pair.sum() * len(row)) for row, pair in zip(difference, pairs, strict=True)]
    np.testing.assert_allclose(value, np.mean(means), rtol=1e-4)
    assert np.abs(grads["encoder"][TABLE]["embedding"]).max() > 1e-3


@pytest.mark.parametrize("start", ["copy", pytest.param("spectral", marks=pytest.mark.long)])
def test_a_student_starts_with_the_biases_of_its_teacher(start: Any) -> None:
    sizes = {"copy": {"num_hidden_layers": 1}, "spectral": {"num_hidden_layers": 1, "hidden_size": 4, "head_dim": 2}}
    student = dataclasses.replace(CONFIG, **sizes[start])
    params = from_teacher(start, student, CONFIG, PARAMS, "uniform", [BATCH])
    table = params["encoder"]["encoder"][TABLE]["embedding"]
    np.testing.assert_array_equal(table, PARAMS["encoder"]["encoder"][TABLE]["embedding"])
    model: Any = tb.BertModel(student, add_pooler=False)
    encoder = {name: params["encoder"][name] for name in ("embeddings", "encoder")}
    model.apply({"params": encoder}, jnp.asarray(IDS))


def test_the_walk_through_the_layers_knows_them() -> None:
    seen = []

    def choose(site: Any) -> Any:
        seen.append(site)
        return site.dense

    params, sums = walk(CONFIG, jax.tree.map(np.asarray, PARAMS), Sample.take([BATCH]), choose)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    expected = outputs(PARAMS).hidden_states[1][MASK]
    last = next(site for site in seen if site.layer == 1)
    np.testing.assert_allclose(last.inputs, expected, atol=1e-5)
    assert len(sums) == CONFIG.num_hidden_layers


@pytest.mark.parametrize("method", [tb.Prune(0.5), tb.GradualPrune(0.5)])
def test_its_heads_are_not_removed(method: Any) -> None:
    with pytest.raises(tb.InputError, match="but mpnet's layers share the biases of heads: take --sparse"):
        check_methods([method], CONFIG, "sequence")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_attention_num_buckets": 16}, "buckets is 16: An MPNet is supported where it is 32"),
        ({"pad_token_id": 0}, "pad_token_id is 0: An MPNet is supported where it is 1"),
    ],
)
def test_an_mpnet_that_its_class_computes_in_another_way_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.BertConfig.from_hf(CONFIG.to_hf() | change)


def test_an_mpnet_has_no_form_with_shared_layers() -> None:
    with pytest.raises(tb.InputError, match="An MPNet has no form with shared layers: take a BERT or an ALBERT"):
        check_methods([tb.Share(1)], CONFIG, "sequence")
