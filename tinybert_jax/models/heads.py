"""The heads of a BERT: sequences, tokens, answer spans, masked words."""

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
from tinybert_jax.models.layers import ACTIVATIONS, Dropout, dense, layer_norm
from tinybert_jax.precision import product
from tinybert_jax.settings.choices import Head


class BertForSequenceClassification(nn.Module):
    """`logits` [b, c] from the pooled first token; c = 1 is regression. Arguments as `BertModel`."""

    config: BertConfig

    @nn.compact
    def __call__(self, *args: Any, deterministic: bool = True, **kwargs: Any) -> BertOutput:
        config = self.config
        out = BertModel(config, name="bert")(*args, deterministic=deterministic, **kwargs)
        x = Dropout(classifier_dropout(config))(out.pooled, deterministic)
        return out._replace(logits=dense(config, config.num_labels, "classifier")(x).astype(jnp.float32))


class BertForTokenClassification(nn.Module):
    """`logits` [b, q, c], one label per token. Arguments as `BertModel`."""

    config: BertConfig

    @nn.compact
    def __call__(self, *args: Any, deterministic: bool = True, **kwargs: Any) -> BertOutput:
        config = self.config
        out = BertModel(config, add_pooler=False, name="bert")(*args, deterministic=deterministic, **kwargs)
        x = Dropout(classifier_dropout(config))(out.last_hidden_state, deterministic)
        return out._replace(logits=dense(config, config.num_labels, "classifier")(x).astype(jnp.float32))


class BertForQuestionAnswering(nn.Module):
    """`logits` [b, q, 2]: start and end of the answer span. Arguments as `BertModel`."""

    config: BertConfig

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> BertOutput:
        out = BertModel(self.config, add_pooler=False, name="bert")(*args, **kwargs)
        return out._replace(logits=dense(self.config, 2, "qa_outputs")(out.last_hidden_state).astype(jnp.float32))


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


HEADS: dict[Head, type[nn.Module]] = {
    "encoder": BertModel,
    "sequence": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "span": BertForQuestionAnswering,
    "masked_lm": BertForMaskedLM,
}
HEAD_KEYS: dict[Head, str] = {  # where a head's own parameters are; an encoder has none
    "sequence": "classifier",
    "tokens": "classifier",
    "span": "qa_outputs",
    "masked_lm": "cls",
}


def classifier_dropout(config: BertConfig) -> float:
    """Hugging Face's rule: `hidden_dropout_prob` unless the config says otherwise."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


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


# what a head that predicts is called, and whether a pooler is before it
NEEDS = {"sequence": ("classifier", True), "tokens": ("classifier", False), "span": ("qa_outputs", False)}


PIPELINES: dict[Head, tuple[str, str]] = {
    "encoder": ("feature-extraction", "AutoModel"),
    "sequence": ("text-classification", "AutoModelForSequenceClassification"),
    "tokens": ("token-classification", "AutoModelForTokenClassification"),
    "span": ("question-answering", "AutoModelForQuestionAnswering"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
}
