"""A masked LM: its logits at chosen positions, and what is most probable at one position of each sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tinybert_jax.config import BertConfig, Params
from tinybert_jax.heads import MaskedLMHead
from tinybert_jax.model import BertModel


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
