"""In bfloat16, every product is bfloat16's, of the gradients too, and no sum over tokens loses what it adds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long

import tinybert_jax as tb
from tinybert_jax.objectives.masked_lm import masked_lm_objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.precision import Dense, product

TEACHER = tb.BertConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=64,
    initializer_range=0.2,
)
STUDENT = dataclasses.replace(TEACHER, hidden_size=16, num_hidden_layers=2)
TWO_HEADS = dataclasses.replace(STUDENT, num_attention_heads=2)
OBJECTIVES = {
    "transformer": lambda s, t, compute: transformer_objective(s, t, compute=compute),
    "official": lambda s, t, compute: transformer_objective(s, t, preset="official", compute=compute),
    "prediction": lambda s, t, compute: prediction_objective(s, t, compute=compute),
    "masked_lm": lambda s, t, compute: masked_lm_objective(s, compute),
}


OBJECTIVES_OF = [*((name, STUDENT) for name in OBJECTIVES), ("transformer", TWO_HEADS)]


def batch_of(rows: int, length: int, masked: bool) -> tb.Batch:
    random = np.random.default_rng(0)
    ids = random.integers(5, 50, (rows, length))
    labels = np.where(random.random((rows, length)) < 0.15, ids, -1) if masked else np.zeros(rows, int)
    types = (np.arange(length) >= length // 2) * np.ones_like(ids)
    return tb.Batch(*map(jnp.asarray, (ids, np.ones_like(ids), types, labels, np.ones(rows))))


def value_and_grad(name: str, dtype: str, student: tb.BertConfig, batch: tb.Batch) -> tuple[Any, tb.Params, Any]:
    """The compiled function of (trainable, targets), and both: those of float32 whatever the dtype."""
    head = tb.BertForMaskedLM if name == "masked_lm" else tb.BertForSequenceClassification
    params = tb.init_params(head(student), jax.random.key(0))
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(1))
    full = OBJECTIVES[name](student, TEACHER, tb.Compute())
    trainable = full.init(jax.random.key(2), params)
    targets = full.targets(teacher, batch)
    objective = OBJECTIVES[name](student, TEACHER, tb.Compute(dtype))

    def loss(trainable: tb.Params, targets: Any) -> jax.Array:
        return objective.loss(trainable, targets, batch, tb.Hyper(), None)[0]

    return jax.jit(jax.value_and_grad(loss)), trainable, targets


@pytest.mark.parametrize("name", rest_long(OBJECTIVES, ["prediction"]))
def test_no_product_is_float32s(name: str) -> None:
    step, *arguments = value_and_grad(name, "bfloat16", STUDENT, batch_of(2, 16, name == "masked_lm"))
    products = re.findall(r"stablehlo\.dot_general.* : \((.*)\) -> ", step.lower(*arguments).as_text())
    assert len(products) > 20
    assert [operands for operands in products if "xf32>" in operands] == []


@pytest.mark.long
def test_no_product_of_relations_is_float32s() -> None:
    step, *arguments = value_and_grad("transformer", "bfloat16", TWO_HEADS, batch_of(2, 16, masked=False))
    products = re.findall(r"stablehlo\.dot_general.* : \((.*)\) -> ", step.lower(*arguments).as_text())
    # the targets are float32's here, and so is the one product of theirs
    assert len([operands for operands in products if "xf32>" in operands]) == 1


@pytest.mark.long
@pytest.mark.parametrize(("name", "student"), OBJECTIVES_OF, ids=[*OBJECTIVES, "relations"])
def test_each_leafs_gradient_is_near_that_of_float32(name: str, student: tb.BertConfig) -> None:
    """A sum over 2,048 tokens in bfloat16 would miss some of them."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        step, *arguments = value_and_grad(name, dtype, student, batch_of(32, 64, name == "masked_lm"))
        gradients.append(step(*arguments)[1])
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients[0]))

    def near(path: Any, full: jax.Array, half: jax.Array) -> None:
        # keys' biases move no softmax: what is left of their gradients is rounding
        error = float(jnp.linalg.norm(half - full)) / (float(jnp.linalg.norm(full)) + 1e-2 * largest)
        assert error < 0.05, jax.tree_util.keystr(path)

    jax.tree.map_with_path(near, *gradients)


def dense(dtype: str) -> tuple[Dense, tb.Params, jax.Array]:
    """A dense layer, its parameters, and an input [2, 3, 8]."""
    layer, x = Dense(4, dtype, nn.initializers.normal()), jax.random.normal(jax.random.key(0), (2, 3, 8))
    return layer, layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize(("name", "result"), [("dense", "bf16"), ("product", "f32")])
def test_a_kernels_gradient_is_summed_in_float32_and_an_inputs_as_the_result(name: str, result: str) -> None:
    """XLA's own choice for CPUs is bfloat16, from jaxlib 0.11.2 on."""
    layer, params, x = dense("bfloat16")

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        if name == "dense":
            return jnp.sum(layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(4)}}, x))
        return jnp.sum(product("bqi,io->bqo", x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)))

    text = jax.jit(jax.grad(loss, (0, 1))).lower(params["params"]["kernel"], x).as_text()
    products = re.findall(r"stablehlo\.dot_general.* : \(.*xbf16>, .*xbf16>\) -> tensor<(.*)x(\w+)>", text)
    assert sorted(products) == [("2x3x8", result), ("8x4", "f32")]


def test_in_float32_a_dense_layer_and_its_gradients_are_a_matmuls() -> None:
    layer, params, x = dense("float32")

    def plain(params: tb.Params, x: jax.Array) -> jax.Array:
        return jnp.matmul(x, params["params"]["kernel"]) + params["params"]["bias"].reshape(1, 1, -1)

    np.testing.assert_array_equal(layer.apply(params, x), plain(params, x))

    def gradients(f: Callable[..., jax.Array]) -> Any:
        return jax.grad(lambda *arguments: jnp.sum(jnp.sin(f(*arguments))), (0, 1))(params, x)

    jax.tree.map(np.testing.assert_array_equal, gradients(layer.apply), gradients(plain))


def test_a_product_and_its_gradients_are_einsums() -> None:
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 3, 4), (4, 5)]))

    def ours(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(product("...i,io->...o", a, b)))

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.einsum("...i,io->...o", a, b)))

    for gradient, expected in zip(jax.grad(ours, (0, 1))(a, b), jax.grad(plain, (0, 1))(a, b), strict=True):
        np.testing.assert_array_equal(gradient, expected)
    assert product("...i,io->...o", a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).dtype == jnp.float32
