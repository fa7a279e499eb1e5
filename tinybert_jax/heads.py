"""The heads of a BERT: sequences, tokens, answer spans, masked words."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from tinybert_jax.config import BertConfig, Head
from tinybert_jax.model import ACTIVATIONS, BertModel, BertOutput, Dropout, dense, layer_norm
from tinybert_jax.precision import product
from tinybert_jax.sharding import constrain


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
