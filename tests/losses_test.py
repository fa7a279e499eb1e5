"""Losses agree with plain numpy, ignore padding, and have finite gradients where nothing is real."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tinybert_jax import losses


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_mse_is_the_mean_over_pairs_of_real_tokens() -> None:
    student, teacher = random(0, 3, 5, 5), random(1, 3, 5, 5)
    expected = np.mean((student - teacher)[:, :2, :2] ** 2)
    got = losses.attention_mse(jnp.array(student), jnp.array(teacher), jnp.array([1, 1, 0, 0, 0]))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_attention_mse_without_mask_counts_all_pairs() -> None:
    student, teacher = random(0, 3, 5, 5), random(1, 3, 5, 5)
    got = losses.attention_mse(jnp.array(student), jnp.array(teacher))
    np.testing.assert_allclose(got, np.mean((student - teacher) ** 2), rtol=1e-6)


def test_zero_padding_counts_padded_keys_as_zeros_and_padded_queries_in_full() -> None:
    student, teacher = random(0, 3, 5, 5), random(1, 3, 5, 5)
    difference = student - teacher
    difference[:, :, 3:] = 0
    got = losses.attention_mse(jnp.array(student), jnp.array(teacher), jnp.array([1, 1, 1, 0, 0]), padding="zero")
    np.testing.assert_allclose(got, np.mean(difference**2), rtol=1e-6)


def test_zero_padding_takes_scores_of_minus_100_for_padding() -> None:
    got = losses.attention_mse(jnp.full((1, 1, 1), -100.0), jnp.full((1, 1, 1), 2.0), padding="zero")
    assert float(got) == 4.0


def test_hidden_mse_is_the_mean_over_real_positions() -> None:
    student, teacher = random(0, 5, 4), random(1, 5, 4)
    got = losses.hidden_mse(jnp.array(student), jnp.array(teacher), jnp.array([1, 1, 1, 0, 0]))
    np.testing.assert_allclose(got, np.mean((student - teacher)[:3] ** 2), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_has_no_temperature_factor(temperature: float) -> None:
    student, teacher = random(0, 4), random(1, 4)
    target = scipy.special.softmax(teacher / temperature)
    expected = -np.sum(target * scipy.special.log_softmax(student / temperature))
    got = losses.soft_cross_entropy(jnp.array(student), jnp.array(teacher), temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_losses_are_float32_for_bfloat16_inputs() -> None:
    student, teacher = jnp.array(random(0, 8, 4), jnp.bfloat16), jnp.array(random(1, 8, 4), jnp.bfloat16)
    got = losses.hidden_mse(student, teacher)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.mean((np.float32(student) - np.float32(teacher)) ** 2), rtol=1e-6)


def relations(x: np.ndarray, heads: int) -> np.ndarray:
    """softmax(x x^T / sqrt(width)) of each relation head, rows of real tokens only: [r, q, q]."""
    split = np.split(x, heads, axis=1)
    return np.stack([scipy.special.softmax(part @ part.T / np.sqrt(part.shape[1]), axis=1) for part in split])


def test_relation_kl_is_the_mean_over_relation_heads_and_real_rows() -> None:
    student, teacher = random(0, 5, 6), random(1, 5, 12)
    student_relations, teacher_relations = relations(student[:3], 2), relations(teacher[:3], 2)
    expected = scipy.special.rel_entr(teacher_relations, student_relations).sum(-1).mean()
    got = losses.relation_kl(jnp.array(student), jnp.array(teacher), jnp.array([1, 1, 1, 0, 0]), 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def relation_kl(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    return losses.relation_kl(student, teacher, mask, 2)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(losses.attention_mse, (2, 3, 3)), (losses.hidden_mse, (3, 4)), (relation_kl, (3, 4))],
    ids=["attention", "hidden", "relation"],
)
def test_an_example_that_is_all_padding_contributes_0_to_value_and_gradient(loss, shape) -> None:
    value, grad = jax.value_and_grad(loss)(jnp.array(random(0, *shape)), jnp.array(random(1, *shape)), jnp.zeros(3))
    assert float(value) == 0.0
    assert not np.any(grad)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(losses.attention_mse, (2, 3, 3)), (losses.hidden_mse, (3, 4)), (relation_kl, (3, 4))],
    ids=["attention", "hidden", "relation"],
)
def test_vmap_over_a_batch_equals_a_loop(loss, shape) -> None:
    student, teacher = jnp.array(random(0, 5, *shape)), jnp.array(random(1, 5, *shape))
    masks = jnp.array(np.random.default_rng(2).integers(0, 2, (5, 3)))
    looped = [float(loss(s, t, m)) for s, t, m in zip(student, teacher, masks, strict=True)]
    np.testing.assert_allclose(jax.vmap(loss)(student, teacher, masks), looped, rtol=1e-5)
