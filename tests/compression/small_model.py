"""A small classifier without dropout, and its rows, on which methods that act in training are tried step by step."""

from __future__ import annotations

import jax
import numpy as np

import tinybert_jax as tb
from tinybert_jax.batch import Params
from tinybert_jax.data.tokens import Tokens

CONFIG = tb.BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def rows(n: int = 16) -> Tokens:
    """Rows of 6 tokens with labels."""
    ids = np.random.default_rng(0).integers(5, 40, 6 * n).astype(np.int32)
    lengths, labels = np.full(n, 6, np.int32), np.arange(n, dtype=np.int32) % 2
    return Tokens(ids, np.arange(n + 1) * 6, lengths, labels, "rows", CONFIG.pad_token_id)


def make_params() -> Params:
    return tb.init_params(tb.BertForSequenceClassification(CONFIG), jax.random.key(1))
