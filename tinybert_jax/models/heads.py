"""The heads of a BERT: their models, losses and names.

Each head is a row of the table `HEADS`. All code that depends on a model's head reads its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig, TextVector
from tinybert_jax.models.encoder import BertModel, BertOutput
from tinybert_jax.models.layers import BertModule, Dropout
from tinybert_jax.models.masked_lm import BertForMaskedLM
from tinybert_jax.precision import unit


class BertForSequenceClassification(BertModule):
    """`logits` [b, c] from the pooled first token; c = 1 is regression. Arguments as `BertModel`."""

    @nn.compact
    def __call__(self, *args: Any, deterministic: bool = True, **kwargs: Any) -> BertOutput:
        config = self.config
        out = BertModel(config, self.compute, name="encoder")(*args, deterministic=deterministic, **kwargs)
        x = Dropout(config.classifier_dropout_rate)(out.pooled, deterministic)
        return out._replace(logits=self.dense(config.num_labels, "classifier")(x).astype(jnp.float32))


class BertForTokenClassification(BertModule):
    """`logits` [b, q, c], one label per token. Arguments as `BertModel`."""

    @nn.compact
    def __call__(self, *args: Any, deterministic: bool = True, **kwargs: Any) -> BertOutput:
        config = self.config
        out = BertModel(config, self.compute, add_pooler=False, name="encoder")(
            *args, deterministic=deterministic, **kwargs
        )
        x = Dropout(config.classifier_dropout_rate)(out.last_hidden_state, deterministic)
        return out._replace(logits=self.dense(config.num_labels, "classifier")(x).astype(jnp.float32))


class BertForQuestionAnswering(BertModule):
    """`logits` [b, q, 2]: start and end of the answer span. Arguments as `BertModel`."""

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> BertOutput:
        out = BertModel(self.config, self.compute, add_pooler=False, name="encoder")(*args, **kwargs)
        return out._replace(logits=self.dense(2, "qa_outputs")(out.last_hidden_state).astype(jnp.float32))


class BertForEmbedding(BertModule):
    """`logits` [b, n]: the vector of each text, as in the config's `embedding`. Arguments as `BertModel`."""

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array | None = None, *args: Any, **kwargs: Any) -> BertOutput:
        how = self.config.embedding or TextVector()
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        encoder = BertModel(self.config, self.compute, add_pooler=False, name="encoder")
        out = encoder(input_ids, mask, *args, **kwargs)
        x = POOLED[how.pooling](out.last_hidden_state.astype(jnp.float32), mask[:, :, None])
        if how.width is not None:
            x = DENSE_ACTIVATIONS[how.activation](self.dense(how.width, EMBEDDING_DENSE)(x).astype(jnp.float32))
        return out._replace(logits=unit(x) if how.normalize else x)


DENSE_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"Identity": lambda x: x, "Tanh": jnp.tanh}
# states [b, q, d], mask [b, q, 1] -> vectors [b, d], finite also for a row that is all padding
POOLED: dict[str, Callable[[Array, Array], Array]] = {
    "cls": lambda states, mask: states[:, 0],
    "mean": lambda states, mask: jnp.sum(states * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1),
    "max": lambda states, mask: jnp.max(jnp.where(mask > 0, states, -1e9), axis=1),
}
EACH: Literal["each"] = "each"
ClassAxis = int | Literal["each"] | None


class HeadLosses(NamedTuple):
    """The losses of a head's logits, one value per example [b].

    hard(logits, batch): the loss against the labels. Its value is meaningless for a row without a label.
    labelled(batch): whether each row has a label. A class or position of -1 and a NaN mean that it has none.
    soft(logits, targets, batch, temperature): the loss against a teacher's targets.
    target(logits): the targets, from a teacher's logits.
    """

    hard: Callable[[Array, Batch], Float[Array, "b"]]
    soft: Callable[[Array, Array, Batch, Any], Float[Array, "b"]]
    labelled: Callable[[Batch], Bool[Array, "b"]]
    target: Callable[[Array], Array] = lambda logits: logits
    # the axis of the logits over which probabilities add up to 1; EACH: each class has a separate probability; None:
    # the outputs are numbers
    class_axis: ClassAxis = -1

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are classes, so that a temperature divides their logits."""
        return self.class_axis is not None


CLASSES = HeadLosses(
    hard=lambda logits, batch: jax.vmap(losses.cross_entropy)(logits, batch.labels),
    soft=lambda logits, targets, batch, temperature: jax.vmap(losses.soft_cross_entropy, (0, 0, None))(
        logits, targets, temperature
    ),
    labelled=lambda batch: jnp.asarray(batch.labels) >= 0,
)
CLASS_SETS = HeadLosses(
    hard=lambda logits, batch: jax.vmap(losses.sigmoid_cross_entropy)(logits, batch.labels),
    soft=lambda logits, targets, batch, temperature: jax.vmap(losses.soft_sigmoid_cross_entropy, (0, 0, None))(
        logits, targets, temperature
    ),
    labelled=lambda batch: jnp.asarray(batch.labels)[:, 0] >= 0,
    class_axis=EACH,
)
NUMBERS = HeadLosses(
    hard=lambda logits, batch: jax.vmap(losses.squared_error)(logits, batch.labels),
    soft=lambda logits, targets, batch, temperature: jax.vmap(losses.squared_error)(logits, targets),
    labelled=lambda batch: ~jnp.isnan(jnp.asarray(batch.labels)),
    target=lambda logits: logits[:, 0],
    class_axis=None,
)
TAGS = HeadLosses(
    hard=lambda logits, batch: jax.vmap(losses.token_cross_entropy)(logits, batch.labels),
    soft=lambda logits, targets, batch, temperature: jax.vmap(losses.soft_token_cross_entropy, (0, 0, 0, None))(
        logits, targets, jnp.asarray(batch.labels) >= 0, temperature
    ),
    labelled=lambda batch: jnp.any(jnp.asarray(batch.labels) >= 0, axis=-1),
)
SPANS = HeadLosses(
    hard=lambda logits, batch: jax.vmap(losses.span_cross_entropy)(logits, batch.labels, batch.attention_mask),
    soft=lambda logits, targets, batch, temperature: jax.vmap(losses.soft_span_cross_entropy, (0, 0, 0, None))(
        logits, targets, batch.attention_mask, temperature
    ),
    labelled=lambda batch: jnp.asarray(batch.labels)[:, 0] >= 0,
    class_axis=1,
)


class Head(NamedTuple):
    """A row of the table of heads."""

    model: type[nn.Module]
    key: str | None  # the entry of its parameters, beside "encoder"; None: it has no parameters
    pooled: bool | None  # whether it reads the pooled first token; None: it works with or without a pooler
    title: str  # in messages
    pipeline: str  # the pipeline of transformers, for model cards
    architecture: str  # the name of its class in transformers, without the family's name
    losses: Callable[[BertConfig], HeadLosses] | None = None  # None: it has no outputs
    on_tasks: bool = True  # it is trained on a task, and predicts
    per_token: bool = False  # logits are [b, q, c], not [b, c]
    labelled: bool = False  # its outputs are the config's labels
    gives_vectors: bool = False  # logits are vectors, learnt without labels; the config's `embedding` describes them
    training: str = "tinybert finetune --model {model}"  # the command that trains it

    def is_in(self, params: Params, config: BertConfig) -> bool:
        """Whether a model of that config with these parameters has the head."""
        if self.gives_vectors:
            how = config.embedding
            return how is not None and (how.width is None or self.key in params)
        return self.key in params and self.pooled in (None, "pooler" in params["encoder"])


def sequence_losses(config: BertConfig) -> HeadLosses:
    """The losses of a sequence classifier: multi-label by `problem_type`, else by the number of outputs."""
    if config.is_multi_label:
        return CLASS_SETS
    return NUMBERS if config.num_labels == 1 else CLASSES


HEADS: dict[str, Head] = {
    "encoder": Head(BertModel, None, None, "encoder", "feature-extraction", "Model", on_tasks=False),
    "sequence": Head(
        BertForSequenceClassification,
        "classifier",
        True,
        "sequence classifier",
        "text-classification",
        "ForSequenceClassification",
        losses=sequence_losses,
        labelled=True,
    ),
    "tokens": Head(
        BertForTokenClassification,
        "classifier",
        False,
        "token classifier",
        "token-classification",
        "ForTokenClassification",
        losses=lambda config: TAGS,
        per_token=True,
        labelled=True,
    ),
    "span": Head(
        BertForQuestionAnswering,
        "qa_outputs",
        None,
        "question answering head",
        "question-answering",
        "ForQuestionAnswering",
        losses=lambda config: SPANS,
        per_token=True,
    ),
    "masked_lm": Head(
        BertForMaskedLM,
        "cls",
        None,
        "masked-LM head",
        "fill-mask",
        "ForMaskedLM",
        losses=lambda config: TAGS,
        on_tasks=False,
        per_token=True,
        training="tinybert pretrain --recipe masked_lm --student {model} --corpus FILE --out DIR",
    ),
    "embedding": Head(
        BertForEmbedding,
        EMBEDDING_DENSE,
        None,
        "modules.json of sentence-transformers",
        "sentence-similarity",
        "Model",
        gives_vectors=True,
        training="tinybert distill --task embedding --student {model}",
    ),
}


def head_losses(head: str, config: BertConfig) -> HeadLosses:
    """The losses of a head in a model with that config.

    Raises:
        ValueError: the head has no outputs.
    """
    make = HEADS[head].losses
    if make is None:
        raise ValueError(f"head {head!r} has no outputs")
    return make(config)
