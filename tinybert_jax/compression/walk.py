"""A forward pass of a sample through an encoder, layer by layer, in which each dense layer may be replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.layers import Embeddings, Intermediate, SelfAttention
from tinybert_jax.models.relative import position_bias
from tinybert_jax.models.sample import Sample

# the dense layers of a layer, in the order of the forward pass: names and paths below "layer"
DENSE: dict[str, tuple[str, ...]] = {
    "query": ("attention", "self", "query"),
    "key": ("attention", "self", "key"),
    "value": ("attention", "self", "value"),
    "attention_output": ("attention", "output", "dense"),
    "intermediate": ("intermediate", "dense"),
    "output": ("output", "dense"),
}


class Site(NamedTuple):
    """A dense layer that the forward pass has reached."""

    layer: int
    name: str  # a row of DENSE
    inputs: np.ndarray  # float32 [n, i]: a row for each real token
    residual: np.ndarray  # float32 [n, d]: the input of this half of the layer
    dense: Params  # its current parameters


class Sums(NamedTuple):
    """The sums before the LayerNorms of both halves of a layer, each float32 [n, d]."""

    attention: np.ndarray
    feed_forward: np.ndarray


def walk(
    config: BertConfig, params: Params, sample: Sample, choose: Callable[[Site], Params]
) -> tuple[Params, list[Sums]]:
    """Run a sample through the layers of a model, and replace each dense layer by the result of `choose`.

    Args:
        config: the model's config; its layers share no parameters.
        params: the model's parameters, as numpy arrays.
        sample: the texts.
        choose: returns the new parameters of a dense layer. It is called in the order of DENSE, with inputs that were
            computed with the dense layers chosen before.

    Returns:
        The parameters with the chosen dense layers, and the sums of each layer.
    """
    encoder = params["encoder"]
    embed = jax.jit(lambda p, ids, types: Embeddings(config).apply({"params": p}, ids, types, True))

    @jax.jit
    def attend(params: Params, x: Array, mask: Array) -> Array:
        bias = position_bias(config, encoder, x.shape[1])
        context: Any = SelfAttention(config).apply({"params": params}, x, mask, bias, True)
        return context[0]

    widen = jax.jit(lambda p, x: Intermediate(config).apply({"params": p}, x))

    def layer_norm(x: np.ndarray, params: Params) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + config.layer_norm_eps)
        return np.asarray(x * params["scale"] + params["bias"])

    layers: list[Params] = []
    sums: list[Sums] = []
    inputs = ((batch.input_ids, batch.token_type_ids) for batch in sample.batches)
    x = sample.tokens((embed(encoder["embeddings"], *pair) for pair in inputs), np.float32)
    for number in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, i=number: np.asarray(leaf[i]), encoder["encoder"]["layer"])

        def chosen(
            names: Iterable[str], inputs: np.ndarray, residual: np.ndarray, layer: Params = layer, number: int = number
        ) -> list[Params]:
            return [choose(Site(number, name, inputs, residual, at(layer, DENSE[name]))) for name in names]

        attention = layer["attention"]
        query, key, value = chosen(("query", "key", "value"), x, x)
        projections = {"query": query, "key": key, "value": value}
        pairs = zip(sample.batched(x), sample.masks, strict=True)
        context = sample.tokens((attend(projections, state, mask) for state, mask in pairs), np.float32)
        (outer,) = chosen(("attention_output",), context, x)
        of_attention = dense(context, outer) + x
        middle = layer_norm(of_attention, attention["output"]["LayerNorm"])
        (inner,) = chosen(("intermediate",), middle, middle)
        wide = sample.tokens((widen({"dense": inner}, state) for state in sample.batched(middle)), np.float32)
        (narrow,) = chosen(("output",), wide, middle)
        of_feed_forward = dense(wide, narrow) + middle
        x = layer_norm(of_feed_forward, layer["output"]["LayerNorm"])
        sums.append(Sums(of_attention, of_feed_forward))
        outputs = {"attention": attention["output"] | {"dense": outer}, "output": layer["output"] | {"dense": narrow}}
        layers.append(
            {
                "attention": {"self": projections, "output": outputs["attention"]},
                "intermediate": {"dense": inner},
                "output": outputs["output"],
            }
        )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return params | {"encoder": encoder | {"encoder": encoder["encoder"] | {"layer": stacked}}}, sums


def dense(x: np.ndarray, params: Params) -> np.ndarray:
    """`x @ kernel + bias`."""
    return np.asarray(x @ params["kernel"] + params["bias"])


def at(tree: Params, path: tuple[str, ...]) -> Params:
    """The branch of a tree at a path."""
    return functools.reduce(lambda branch, name: branch[name], path, tree)


def replaced(tree: Params, path: tuple[str, ...], branch: Params) -> Params:
    """The tree with another branch at the path."""
    return tree | {path[0]: replaced(tree[path[0]], path[1:], branch)} if path else branch
