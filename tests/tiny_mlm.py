"""A random masked LM of a few words, and its tokenizer, for the tests of the augmentation."""

from __future__ import annotations

import jax
import numpy as np
from transformers import BertTokenizer

from tinybert_jax.data.augmentation.candidate_table import Settings
from tinybert_jax.data.augmentation.candidates import build_table
from tinybert_jax.data.augmentation.neighbours import embedding_neighbours
from tinybert_jax.data.augmentation.rules import RULES
from tinybert_jax.data.rows import Rows
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.masked_lm import BertForMaskedLM, masked_lm_function
from tinybert_jax.models.parameters import init_params

WORDS = (
    "the a film plot actor scene story music is was seems felt good bad dull fine warm cold great slow not "
    "very so and walk talk play un re over act watch love hate see go run say old new big small light dark soft "
    "loud quick odd"
).split()
PIECES = "##ing ##ed ##able ##ly ##ness ##s ##er ##est ##play ##act".split()
COMPOUNDS = "walking talked playable slowly darkness unplayable reacted softest overact loudness".split()  # of pieces
MARKS = [".", ",", "!", '"', "'", "7", "42"]
UNUSED = ["[unused0]", "[unused1]"]
VOCABULARY = ["[PAD]", *UNUSED, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES, *MARKS]


def make_tokenizer(folder, vocabulary=tuple(VOCABULARY)):
    path = folder / f"vocab{len(vocabulary)}.txt"
    path.write_text("\n".join(vocabulary), "utf-8")
    return BertTokenizer(vocab=str(path))


def make_mlm(tokenizer, positions=64):
    """The model's config and parameters."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    return config, init_params(BertForMaskedLM(config), jax.random.key(0))


def make_rows(n, pair=False, seed=0, labels=None):
    random = np.random.default_rng(seed)
    words = [*WORDS, *COMPOUNDS, *COMPOUNDS, *MARKS, "Caf\u00e9", "xyz"]

    def text():
        return " ".join(random.choice(words, random.integers(1, 16)))

    texts = [(text(), text()) if pair else (text(),) for _ in range(n)]
    if labels is None:
        labels = random.integers(0, 2, n).astype(np.int32)
    names = ("no", "yes") if labels.dtype == np.int32 else ()
    return Rows(texts, labels, names, f"rows {n} {pair} {seed}", range(1, n + 1))


_COMPILED: dict = {}


def compiled(model, k):
    """The model as a function; that of one model is compiled once."""
    config, params = model
    if (id(params), k) not in _COMPILED:
        _COMPILED[id(params), k] = params, masked_lm_function(config, params, k)  # params, so that the id stays
    return _COMPILED[id(params), k][1]


def build(directory, rows, tokenizer, model, preset="default", variants=5, max_length=32, near=None, **kwargs):
    """Build the real table; the neighbours are by default those of the model's own embeddings."""
    _, params = model
    table = np.asarray(params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    function = compiled(model, RULES[preset].asked)
    settings = Settings(preset, variants, max_length, "model")
    near = embedding_neighbours(table, tokenizer) if near is None else near
    build_table(directory, rows, tokenizer, function, near, settings, **kwargs)
