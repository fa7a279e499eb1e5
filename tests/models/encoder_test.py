"""The model: sizes, masking, dropout and the choice of returned scores. Parity with torch is in parity_test."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import tinybert_jax as tb
from tinybert_jax.models.layers import attention_scores, dropout
from tinybert_jax.models.parameters import count_parameters

COMPUTE = tb.Compute()
CONFIG = tb.BertConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.2,
)
IDS = jnp.array(np.random.default_rng(0).integers(5, 50, (3, 9)))
PARAMS = random_params(tb.BertForSequenceClassification(CONFIG))


def apply(config: tb.BertConfig = CONFIG, compute: tb.Compute = COMPUTE, **kwargs) -> tb.BertOutput:
    return tb.BertForSequenceClassification(config, compute).apply({"params": PARAMS}, IDS, **kwargs)


@pytest.mark.parametrize(("preset", "count"), [("tinybert-4l-312d", 14_350_248), ("tinybert-6l-768d", 66_955_008)])
def test_preset_students_have_the_papers_parameter_counts(preset: str, count: int) -> None:
    model = tb.BertModel(tb.student_config(preset, tb.BertConfig()))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert count_parameters(params) == count


@pytest.mark.parametrize(
    "layers",
    [
        (),
        pytest.param((0,), marks=pytest.mark.long),
        (1, 3),
        pytest.param((0, 1), marks=pytest.mark.long),
        pytest.param((3,), marks=pytest.mark.long),
        pytest.param((0, 1, 2, 3), marks=pytest.mark.long),
    ],
)
def test_score_layers_choose_among_the_scores_of_all_layers(layers: tuple[int, ...]) -> None:
    every, some = apply(), apply(score_layers=layers)
    np.testing.assert_array_equal(some.attention_scores, every.attention_scores[np.array(layers, int)])
    np.testing.assert_array_equal(some.hidden_states, every.hidden_states)


@pytest.mark.parametrize("layers", [(-1,), (4,), (2, 0), (1, 1)])
def test_layers_that_are_no_increasing_selection_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="they must increase, from 0 up to 3"):
        apply(score_layers=layers)
    with pytest.raises(ValueError, match="they must increase, from 0 up to 3"):
        apply(qkv_layers=layers)


def test_scores_are_of_float32_where_jax_has_float64() -> None:
    query = jnp.ones((2, 3, 4), jnp.float32)
    with jax.enable_x64(True):
        assert attention_scores(query, query).dtype == jnp.float32


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param((), marks=pytest.mark.long),
        pytest.param((0,), marks=pytest.mark.long),
        (1, 3),
        pytest.param((0, 1, 2, 3), marks=pytest.mark.long),
    ],
)
def test_qkv_layers_choose_among_queries_keys_and_values_and_change_nothing_else(layers: tuple[int, ...]) -> None:
    every, some = apply(qkv_layers=(0, 1, 2, 3)), apply(qkv_layers=layers)
    np.testing.assert_array_equal(some.qkv, every.qkv[np.array(layers, int)])
    np.testing.assert_array_equal(some.attention_scores, every.attention_scores)
    np.testing.assert_array_equal(some.logits, apply().logits)


def test_scores_are_the_products_of_the_queries_and_keys_that_come_out() -> None:
    out = apply(qkv_layers=(0, 1, 2, 3))
    query, key, _ = np.moveaxis(np.asarray(out.qkv).reshape(4, 3, 3, 9, 4, 6), 1, 0)
    scores = np.einsum("lbqhd,lbkhd->lbhqk", query, key) / np.sqrt(6)
    np.testing.assert_allclose(out.attention_scores, scores, rtol=1e-4, atol=1e-5)


def test_values_that_come_out_are_those_of_the_layer() -> None:
    out = apply(qkv_layers=(2,))
    dense = PARAMS["encoder"]["encoder"]["layer"]["attention"]["self"]["value"]
    value = out.hidden_states[2] @ dense["kernel"][2] + dense["bias"][2][None, None]
    np.testing.assert_allclose(out.qkv[0, 2], value, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_gradients_through_chosen_scores_equal_those_through_all() -> None:
    def loss(params, layers, pick):
        out = tb.BertForSequenceClassification(CONFIG).apply({"params": params}, IDS, score_layers=layers)
        return jnp.sum(jnp.sin(out.attention_scores[pick]))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    chosen = gradient(PARAMS, (1, 2), jnp.array([0, 1]))
    every = gradient(PARAMS, None, jnp.array([1, 2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), chosen, every)


def test_padding_does_not_change_what_real_tokens_get() -> None:
    mask = jnp.array([[1] * 6 + [0] * 3] * 3)
    padded = apply(attention_mask=mask)
    other = tb.BertForSequenceClassification(CONFIG).apply({"params": PARAMS}, IDS.at[:, 6:].set(7), mask)
    np.testing.assert_array_equal(padded.hidden_states[:, :, :6], other.hidden_states[:, :, :6])
    np.testing.assert_array_equal(padded.logits, other.logits)


def test_an_example_that_is_all_padding_is_finite() -> None:
    out = apply(attention_mask=jnp.zeros_like(IDS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def test_dropout_comes_from_the_key_alone() -> None:
    def states(seed: int) -> np.ndarray:
        return np.asarray(apply(deterministic=False, rngs={"dropout": jax.random.key(seed)}).hidden_states)

    np.testing.assert_array_equal(states(1), states(1))
    assert not np.array_equal(states(1), states(2))


def test_dropout_keeps_the_expectation_and_drops_the_rounded_rate() -> None:
    dropped = np.asarray(dropout(jnp.ones(200_000), 0.1, jax.random.key(0)))
    assert abs(dropped.mean() - 1) < 0.003
    assert abs((dropped == 0).mean() - 26 / 256) < 0.003


def test_dropout_draws_every_byte_of_a_word_once() -> None:
    dropped = np.asarray(dropout(jnp.ones((20_000, 7)), 0.5, jax.random.key(0))) == 0  # two words a row
    np.testing.assert_allclose(np.corrcoef(dropped.T), np.eye(7), atol=0.03)


def test_bfloat16_is_near_float32_with_float32_scores_and_logits() -> None:
    half, full = apply(compute=tb.Compute("bfloat16")), apply()
    assert half.hidden_states.dtype == jnp.bfloat16
    assert half.attention_scores.dtype == half.logits.dtype == jnp.float32
    np.testing.assert_allclose(half.logits, full.logits, atol=0.05)


def test_too_long_input_is_refused() -> None:
    config = dataclasses.replace(CONFIG, max_position_embeddings=8)
    with pytest.raises(ValueError, match="9 tokens, but the model has 8 positions"):
        tb.BertModel(config).init(jax.random.key(0), IDS)
