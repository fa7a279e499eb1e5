"""The masked-LM head, its logits at chosen positions, and what is most probable at one position of each sequence."""

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
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.encoder import BertModel, BertOutput
from tinybert_jax.models.layers import ACTIVATIONS, dense, layer_norm
from tinybert_jax.precision import product


class Transform(nn.Module):
    """What a state passes before the masked-LM decoder [b, q, d] -> [b, q, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = dense(self.config, self.config.hidden_size, "dense")(x)
        return layer_norm(self.config)(ACTIVATIONS[self.config.hidden_act](x))


class Predictions(nn.Module):
    """The masked-LM decoder over the word embedding table [b, q, d], [v, d] -> [b, q, v]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        x = Transform(self.config, name="transform")(x)
        vocabulary, rows = self.config.vocab_size, self.config.padded_vocab_size
        bias = self.param("bias", nn.initializers.zeros, (rows,))
        logits = product("bqd,vd->bqv", x, table.astype(x.dtype))
        logits = constrain(logits + bias[None, None], "batch", None, "vocab")
        # rows that only pad the table are no words
        return logits if rows == vocabulary else jnp.where((jnp.arange(rows) < vocabulary)[None, None], logits, -1e9)


class MaskedLMHead(nn.Module):
    """The masked-LM head, one level of Hugging Face's names above `Predictions`."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        return Predictions(self.config, name="predictions")(x, table)


class BertForMaskedLM(nn.Module):
    """`logits` [b, q, v] over the vocabulary; the decoder is the word embedding table. Arguments as `BertModel`."""

    config: BertConfig

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> BertOutput:
        bert = BertModel(self.config, add_pooler=False, name="bert")
        out = bert(*args, **kwargs)
        table = bert.variables["params"]["embeddings"]["word_embeddings"]["embedding"]
        return out._replace(logits=MaskedLMHead(self.config, name="cls")(out.last_hidden_state, table))


def logits_at(
    config: BertConfig, params: Params, states: Float[Array, "b q d"], positions: Int[Array, "b p"]
) -> Float[Array, "b p v"]:
    """The masked-LM head's logits at `positions` alone: over all, a vocabulary each is most of time and memory."""
    states = jnp.take_along_axis(states, positions[:, :, None], axis=1)
    table = params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    return jnp.asarray(MaskedLMHead(config).apply({"params": params["cls"]}, states, table))


def masked_lm_function(config: BertConfig, params: Params, k: int) -> Callable[..., Any]:
    """The k most probable ids at one position of each sequence, compiled once per shape.

    Args:
        config: of the model.
        params: as `hf.load_hf` gives them, with `cls`.
        k: ids per sequence; fewer where the vocabulary has not so many.

    Returns:
        `mlm(input_ids [b, q], attention_mask [b, q], token_type_ids [b, q], positions [b])` -> ids [b, k], the most
        probable first; arrays of numpy or jax in, of jax out, which may still be computing.
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
    bert: Any = BertModel(config, add_pooler=False)
    out = bert.apply({"params": params["bert"]}, input_ids, attention_mask, token_type_ids, score_layers=())
    logits = logits_at(config, params, out.last_hidden_state, positions[:, None])[:, 0]
    return jax.lax.top_k(logits, min(k, config.vocab_size))[1]
