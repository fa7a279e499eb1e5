"""A masked LM as a compiled function: what most probably stands at one position of each sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tinybert_jax.config import BertConfig, Params
from tinybert_jax.heads import MaskedLMHead
from tinybert_jax.model import BertModel


def masked_lm_function(config: BertConfig, params: Params, k: int) -> Callable[..., Any]:
    """The k most probable ids at one position of each sequence, compiled once per shape.

    Only the states at these positions pass the head: the decoder over the vocabulary costs as much as a layer or two.

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
    states = jnp.take_along_axis(out.last_hidden_state, positions[:, None, None], axis=1)
    table = params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    head: Any = MaskedLMHead(config)
    logits = head.apply({"params": params["cls"]}, states, table)
    return jax.lax.top_k(logits[:, 0], min(k, config.vocab_size))[1]
