"""The BERT encoder. Layers are stacked on axis 0; all hidden states and pre-softmax attention scores are returned."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tinybert_jax.devices.sharding import constrain
from tinybert_jax.models import relative
from tinybert_jax.models.layers import (
    ACTIVATIONS,
    Attention,
    BertModule,
    Dropout,
    Embeddings,
    Intermediate,
    Residual,
    attention_scores,
)


class BertOutput(NamedTuple):
    """The outputs of a BERT. Under `jit`, fields that are not used cost nothing."""

    last_hidden_state: Float[Array, "b q d"]
    hidden_states: Float[Array, "l+1 b q d"]  # [0] is the embedding output
    attention_scores: Float[Array, "l b h q k"]  # before mask and softmax, of `score_layers`
    qkv: Float[Array, "l n b q e"]  # queries, keys and values of `qkv_layers`; e is heads * head_dim
    pooled: Any = None  # [b, d]; None without a pooler
    logits: Any = None  # [b, c], or [b, q, c] for token heads; None without a head


class Layer(BertModule):
    """One Transformer layer, or `repeats` layers with the same parameters: the body of the scan over layers.

    Each layer writes its scores, and its queries, keys and values, into its slots of the buffers in the carry. Returns
    the carry and the states after each layer, [repeats, b, q, d].
    """

    deterministic: bool = True
    repeats: int = 1

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array, Array], slots: tuple[Array, Array], attention_mask: Array, bias: Array | None
    ) -> tuple[Any, Array]:
        x, scores, qkv = carry
        config = self.config
        attention = Attention(config, self.compute, name="attention")
        intermediate = Intermediate(config, self.compute, name="intermediate")
        output = Residual(config, self.compute, config.ranks.output, config.feed_forward_eps, name="output")
        states = []
        for i in range(self.repeats):
            x, parts = attention(x, attention_mask, bias, self.deterministic)
            if scores.shape[0]:
                layer_scores = constrain(attention_scores(*parts[:2], bias), "batch", "heads", None, None)
                scores = jax.lax.dynamic_update_index_in_dim(scores, layer_scores, slots[0][i], axis=0)
            if qkv.shape[0]:
                stacked = jnp.stack(parts[: qkv.shape[1]]).swapaxes(2, 3).reshape(qkv.shape[1:])
                qkv = jax.lax.dynamic_update_index_in_dim(qkv, stacked, slots[1][i], axis=0)
            x = output(intermediate(x), x, self.deterministic)
            states.append(x)
        return (x, scores, qkv), jnp.stack(states)


class Encoder(BertModule):
    """All layers -> the last state, all states, attention scores, and queries, keys and values.

    All states are [l+1, b, q, d]. Scores are returned for `score_layers`, [l, b, h, q, k]. The first `qkv_parts` of
    queries, keys and values are returned for `qkv_layers`, [l, qkv_parts, b, q, h * head_dim].
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array,
        score_layers: tuple[int, ...],
        qkv_layers: tuple[int, ...],
        qkv_parts: int,
        deterministic: bool,
    ) -> tuple[Array, Array, Array, Array]:
        config, (b, q, _) = self.config, x.shape
        heads, depth = config.num_attention_heads, config.num_hidden_layers
        score_slots, score_size = _slots(score_layers, depth)
        qkv_slots, qkv_size = _slots(qkv_layers, depth)
        scores = jnp.zeros((score_size, b, heads, q, q), jnp.float32)
        scores = constrain(scores, None, "batch", "heads", None, None)
        qkv = jnp.zeros((qkv_size, qkv_parts, b, q, heads * config.attention_head_dim), x.dtype)
        qkv = constrain(qkv, None, None, "batch", None, "heads")
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False) if self.compute.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.layer_groups,
        )
        bias = None
        if config.family.position_buckets:
            table = nn.Embed(
                config.family.position_buckets,
                heads,
                embedding_init=nn.initializers.normal(config.initializer_range),
                name=relative.TABLE,
            )
            bias = constrain(relative.spread(jnp.asarray(table.embedding), q), "heads", None, None)
        repeats = depth // config.layer_groups
        slots = (score_slots.reshape(-1, repeats), qkv_slots.reshape(-1, repeats))
        (last, scores, qkv), states = layers(config, self.compute, deterministic, repeats, name="layer")(
            (x, scores, qkv), slots, attention_mask, bias
        )
        states = states.reshape(depth, *states.shape[2:])
        # the last state is taken from the carry: if only this one is used, the others are not kept
        states = jnp.concatenate([x[None], states])
        return last, states, scores[: len(score_layers)], qkv[: len(qkv_layers)]


def _slots(selected: tuple[int, ...], depth: int) -> tuple[Array, int]:
    """The slot of each layer [l] in a buffer of the selected layers, and the number of slots, 0 without a selection.

    A layer that is not selected writes into the slot of the next selected layer, which then overwrites it. Layers past
    the last selected one share a spare slot. So the scan needs no branch.

    Raises:
        ValueError: the selected layers do not increase, or are not in 0, ..., depth - 1.
    """
    if list(selected) != [layer for layer in range(depth) if layer in selected]:
        raise ValueError(f"layers {selected}: they must increase, from 0 up to {depth - 1}")
    slots = np.searchsorted(selected, np.arange(depth))
    return jnp.asarray(slots), int(slots[-1]) + 1 if selected else 0


class Pooler(BertModule):
    """A dense layer with the family's activation on the first token's state [b, q, d] -> [b, d]."""

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        first_token = x[:, 0]
        if self.config.family.dropout_before_pooler:
            first_token = Dropout(self.config.classifier_dropout_rate)(first_token, deterministic)
        activation = ACTIVATIONS[self.config.family.pooler_activation]
        return activation(self.dense(self.config.hidden_size, "dense")(first_token))


class BertModel(BertModule):
    """The BERT encoder (Devlin et al., arXiv 1810.04805). `add_pooler` adds `pooled` to its outputs.

    `apply({"params": params}, input_ids, attention_mask=None, token_type_ids=None, score_layers=None, qkv_layers=(),
    qkv_parts=3, deterministic=True)` returns a `BertOutput`. It has the attention scores of `score_layers` (default:
    all layers), and the first `qkv_parts` of queries, keys and values of `qkv_layers` (default: no layer). Layers are
    static tuples, counted from 0, increasing. With `deterministic=False`, pass `rngs={"dropout": key}`.
    """

    add_pooler: bool = True

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "b q"],
        attention_mask: Int[Array, "b q"] | None = None,
        token_type_ids: Int[Array, "b q"] | None = None,
        *,
        score_layers: tuple[int, ...] | None = None,
        qkv_layers: tuple[int, ...] = (),
        qkv_parts: int = 3,
        deterministic: bool = True,
    ) -> BertOutput:
        config = self.config
        if input_ids.shape[-1] > config.max_tokens:
            raise ValueError(f"{input_ids.shape[-1]} tokens, but the model has {config.max_tokens} positions")
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        selected = tuple(range(config.num_hidden_layers)) if score_layers is None else score_layers
        x = Embeddings(config, self.compute, name="embeddings")(input_ids, types, deterministic)
        last, states, scores, qkv = Encoder(config, self.compute, name="encoder")(
            x, mask, selected, qkv_layers, qkv_parts, deterministic
        )
        pooled = Pooler(config, self.compute, name="pooler")(last, deterministic) if self.add_pooler else None
        return BertOutput(last, states, scores, qkv, pooled)
