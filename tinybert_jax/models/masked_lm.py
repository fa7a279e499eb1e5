"""The masked-LM head, its logits at chosen positions, and the most probable tokens at one position per sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tinybert_jax.batch import Params
from tinybert_jax.devices.sharding import constrain
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.encoder import BertModel, BertOutput
from tinybert_jax.models.layers import ACTIVATIONS, BertModule, word_table
from tinybert_jax.precision import product


class Transform(BertModule):
    """The dense layer, activation and LayerNorm before the masked-LM decoder [b, q, d] -> [b, q, embedding width]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = self.config.family.lm_activation or self.config.hidden_act
        return self.layer_norm()(ACTIVATIONS[activation](self.dense(self.config.embedding_width, "dense")(x)))


class Predictions(BertModule):
    """The masked-LM decoder: products with the word table [b, q, d], [v, e] -> [b, q, v]."""

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        x = Transform(self.config, self.compute, name="transform")(x)
        vocabulary, rows = self.config.vocab_size, self.compute.vocab_rows(self.config)
        bias = self.param("bias", nn.initializers.zeros, (rows,))
        logits = product("bqd,vd->bqv", x, table.astype(x.dtype))
        logits = constrain(logits + bias[None, None], "batch", None, "vocab")
        # padding rows of the table are not words
        return logits if rows == vocabulary else jnp.where((jnp.arange(rows) < vocabulary)[None, None], logits, -1e9)


class MaskedLMHead(BertModule):
    """The masked-LM head: `Predictions` under the name that Hugging Face gives it."""

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        return Predictions(self.config, self.compute, name="predictions")(x, table)


class BertForMaskedLM(BertModule):
    """`logits` [b, q, v] over the vocabulary; the decoder shares the word table. Arguments as `BertModel`."""

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> BertOutput:
        encoder = BertModel(self.config, self.compute, add_pooler=False, name="encoder")
        out = encoder(*args, **kwargs)
        table = word_table(self.config, encoder.variables["params"]["embeddings"])
        return out._replace(logits=MaskedLMHead(self.config, self.compute, name="cls")(out.last_hidden_state, table))


def logits_at(
    config: BertConfig,
    params: Params,
    states: Float[Array, "b q d"],
    positions: Int[Array, "b p"],
    compute: Compute = DEFAULT,
) -> Float[Array, "b p v"]:
    """The masked-LM head's logits at `positions` only. At all positions, they would take most of time and memory."""
    states = jnp.take_along_axis(states, positions[:, :, None], axis=1)
    table = word_table(config, params["encoder"]["embeddings"])
    return jnp.asarray(MaskedLMHead(config, compute).apply({"params": params["cls"]}, states, table))


def masked_lm_function(config: BertConfig, params: Params, k: int) -> Callable[..., Any]:
    """The k most probable ids at one position of each sequence, compiled once per shape.

    Args:
        config: the model's config.
        params: the model's parameters as `load_hf` returns them, with `cls`.
        k: number of ids per sequence; at most the vocabulary's size is returned.

    Returns:
        `mlm(input_ids [b, q], attention_mask [b, q], token_type_ids [b, q], positions [b])` -> ids [b, k], the most
        probable first. It takes numpy or JAX arrays and returns a JAX array without waiting for it.
    """
    return functools.partial(jax.jit(functools.partial(_most_probable, config, k)), params)


def _most_probable(
    config: BertConfig,
    k: int,
    params: Params,
    input_ids: Int[Array, "b q"],
    attention_mask: Int[Array, "b q"],
    token_type_ids: Int[Array, "b q"],
    positions: Int[Array, "b"],
) -> Int[Array, "b k"]:
    encoder: Any = BertModel(config, add_pooler=False)
    out = encoder.apply({"params": params["encoder"]}, input_ids, attention_mask, token_type_ids, score_layers=())
    logits = logits_at(config, params, out.last_hidden_state, positions[:, None])[:, 0]
    return jax.lax.top_k(logits, min(k, config.vocab_size))[1]
