"""BERT in Flax Linen: layers stacked on axis 0, every hidden state and pre-softmax attention score returned."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tinybert_jax.config import BertConfig, Params
from tinybert_jax.precision import Dense, product
from tinybert_jax.sharding import constrain

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


class BertOutput(NamedTuple):
    """What a BERT computed. Whoever does not read a field does not pay for it under `jit`."""

    last_hidden_state: Float[Array, "b q d"]
    hidden_states: Float[Array, "l+1 b q d"]  # [0] is the embedding output
    attention_scores: Float[Array, "l b h q k"]  # q.k / sqrt(head_dim), before mask and softmax, of `score_layers`
    qkv: Float[Array, "l n b q e"]  # queries, keys and values of `qkv_layers`; e is heads * head_dim
    pooled: Any = None  # [b, d]; None without a pooler
    logits: Any = None  # [b, c], or [b, q, c] of heads that label tokens; None without a head


def dropout(x: Float[Array, "... n"], rate: float, key: PRNGKeyArray) -> Float[Array, "... n"]:
    """Inverted dropout from 8 random bits per element, since random numbers dominate a small student's step on CPU.

    `rate` is rounded to 1/256; kept values are scaled by what was really kept, rounded as `x` is, so in float32 the
    expectation is exact.
    """
    keep, n = max(1, round((1 - rate) * 256)), x.shape[-1]
    # four elements share a word: JAX computes a word for each byte that it is asked for
    words = jax.random.bits(key, (*x.shape[:-1], -(-n // 4)), jnp.uint32)
    random = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[..., :n]
    return jnp.where(random <= keep - 1, x * jnp.asarray(256 / keep, x.dtype), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`dropout` with the key of the module's `dropout` stream."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        if deterministic or self.rate == 0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


def dense(config: BertConfig, features: int, name: str) -> Dense:
    """A dense layer in the config's compute dtype and initial range."""
    return Dense(features, config.compute_dtype, nn.initializers.normal(config.initializer_range), name=name)


def layer_norm(config: BertConfig) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    # E[x^2] - E[x]^2 loses the digits that parity with Hugging Face needs
    return nn.LayerNorm(config.layer_norm_eps, config.compute_dtype, use_fast_variance=False, name="LayerNorm")


class Embeddings(nn.Module):
    """Words, positions and token types [b, q] -> [b, q, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, input_ids: Array, token_type_ids: Array, deterministic: bool) -> Array:
        config = self.config

        def table(rows: int, name: str) -> Array:
            init = nn.initializers.normal(config.initializer_range)
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name).embedding

        # from float32 tables: their gradients are sums over the tokens, which bfloat16 would not hold.
        # Looked up in parts of the width, and what was found changes hands instead of the table: that is less as long
        # as a device has fewer tokens than the table has rows
        words = table(config.padded_vocab_size, "word_embeddings")
        x = jnp.take(words, constrain(input_ids, "group", None), axis=0).astype(config.compute_dtype)
        x = constrain(constrain(x, "group", None, "embed"), "batch", None, None)
        # as torch's `padding_idx`: looking [PAD] up does not train it, which shows where a loss counts padding
        x = jnp.where((input_ids == config.pad_token_id)[..., None], jax.lax.stop_gradient(x), x)
        x = x + jnp.take(table(config.type_vocab_size, "token_type_embeddings"), token_type_ids, axis=0)
        x = x + table(config.max_position_embeddings, "position_embeddings")[None, : input_ids.shape[-1]]
        return Dropout(config.hidden_dropout_prob)(layer_norm(config)(x), deterministic)


def attention_scores(query: Float[Array, "*b h q d"], key: Float[Array, "*b h k d"]) -> Float[Array, "*b h q k"]:
    """q.k / sqrt(head_dim), before mask and softmax, in float32."""
    return product("...hqd,...hkd->...hqk", query, key) / math.sqrt(query.shape[-1])


class SelfAttention(nn.Module):
    """Multi-head attention -> context [b, q, h * head_dim], and queries, keys and values, each [b, h, q, head_dim]."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array, deterministic: bool
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        config = self.config
        heads, width = config.num_attention_heads, config.attention_head_dim

        def project(name: str) -> Array:
            projected = dense(config, heads * width, name)(x).reshape(*x.shape[:-1], heads, width).swapaxes(1, 2)
            return constrain(projected, "batch", "heads", None, None)

        query, key, value = project("query"), project("key"), project("value")
        rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        weigh = functools.partial(_weigh, rate=rate, dropout_key=self.make_rng("dropout") if rate else None)
        # its backward pass computes scores and weights again, so that no layer's [b, h, q, k] is kept
        once_more = jax.checkpoint(weigh, prevent_cse=False)
        weighed, total = once_more(query, key, value, attention_mask)
        # the softmax's division comes last, on [b, h, q, d] instead of [b, h, q, k]
        context = (weighed / total).astype(x.dtype).swapaxes(1, 2).reshape(*x.shape[:-1], heads * width)
        return context, (query, key, value)


def _weigh(
    query: Array, key: Array, value: Array, attention_mask: Array, rate: float, dropout_key: PRNGKeyArray | None
) -> tuple[Array, Array]:
    """The values [b, h, q, d], weighed by the exponential of the scores, with dropout, and the weights' sum without it
    [b, h, q, 1]: in float32.
    """
    scores = constrain(attention_scores(query, key), "batch", "heads", None, None)
    # finite: an example that is all padding attends everywhere instead of dividing 0 by 0
    masked = scores + jnp.where(attention_mask > 0, 0.0, -1e9)[:, None, None, :]
    weights = jnp.exp(masked - jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)[..., None]
    weights = weights.astype(value.dtype)
    if dropout_key is not None:
        weights = dropout(weights, rate, dropout_key)
    return product("bhqk,bhkd->bhqd", weights, value), total


class Residual(nn.Module):
    """`LayerNorm(dropout(dense(x)) + residual)`, the `output` of both halves of a layer."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array, residual: Array, deterministic: bool) -> Array:
        config = self.config
        x = Dropout(config.hidden_dropout_prob)(dense(config, config.hidden_size, "dense")(x), deterministic)
        # whole states on every device of a row: a layer's kernels are gathered, not its activations cut
        return constrain(layer_norm(config)(x + residual), "batch", None, None)


class Attention(nn.Module):
    """Self-attention with its output projection, residual and LayerNorm, and its queries, keys and values."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array, deterministic: bool
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        context, qkv = SelfAttention(self.config, name="self")(x, attention_mask, deterministic)
        return Residual(self.config, name="output")(context, x, deterministic), qkv


class Intermediate(nn.Module):
    """The widening half of the feed-forward network [b, q, d] -> [b, q, intermediate_size]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # its backward pass recomputes what it needs: cheaper than a trip of four such tensors through memory
        activation = jax.checkpoint(ACTIVATIONS[self.config.hidden_act], prevent_cse=False)
        wide = dense(self.config, self.config.intermediate_size, "dense")(x)
        return activation(constrain(wide, "batch", None, "mlp"))


class Layer(nn.Module):
    """One Transformer layer, as the body of the scan over layers: writes its scores, and its queries, keys and values,
    into their slots of the carry.
    """

    config: BertConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array, Array], slots: tuple[Array, Array], attention_mask: Array
    ) -> tuple[Any, Array]:
        x, scores, qkv = carry
        x, parts = Attention(self.config, name="attention")(x, attention_mask, self.deterministic)
        if scores.shape[0]:
            own = constrain(attention_scores(*parts[:2]), "batch", "heads", None, None)
            scores = jax.lax.dynamic_update_index_in_dim(scores, own, slots[0], axis=0)
        if qkv.shape[0]:
            stacked = jnp.stack(parts[: qkv.shape[1]]).swapaxes(2, 3).reshape(qkv.shape[1:])
            qkv = jax.lax.dynamic_update_index_in_dim(qkv, stacked, slots[1], axis=0)
        inner = Intermediate(self.config, name="intermediate")(x)
        x = Residual(self.config, name="output")(inner, x, self.deterministic)
        return (x, scores, qkv), x


class Encoder(nn.Module):
    """All layers -> the last state, all states [l+1, b, q, d], the scores of `score_layers` [l, b, h, q, k], and the
    first `qkv_parts` of queries, keys and values of `qkv_layers` [l, qkv_parts, b, q, h * head_dim].
    """

    config: BertConfig

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
            nn.remat(Layer, prevent_cse=False) if config.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=depth,
        )
        (last, scores, qkv), states = layers(config, deterministic, name="layer")(
            (x, scores, qkv), (score_slots, qkv_slots), attention_mask
        )
        # the last state leaves with the carry, so that whoever needs it alone does not keep the others
        states = jnp.concatenate([x[None], states])
        return last, states, scores[: len(score_layers)], qkv[: len(qkv_layers)]


def _slots(wanted: tuple[int, ...], depth: int) -> tuple[Array, int]:
    """Each layer's slot [l] in the buffer of what is wanted, and the number of slots, 0 where nothing is.

    A layer that nobody asked for writes into the slot of the next wanted one, which then overwrites it; past the last
    wanted layer a spare slot takes what comes. So the buffer needs no branch in the scan.

    Raises:
        ValueError: what is wanted is no increasing selection of 0, ..., depth - 1.
    """
    if list(wanted) != [layer for layer in range(depth) if layer in wanted]:
        raise ValueError(f"layers {wanted}: they must increase, from 0 up to {depth - 1}")
    slots = np.searchsorted(wanted, np.arange(depth))
    return jnp.asarray(slots), int(slots[-1]) + 1 if wanted else 0


class Pooler(nn.Module):
    """The first token's state through a dense layer and tanh [b, q, d] -> [b, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.tanh(dense(self.config, self.config.hidden_size, "dense")(x[:, 0]))


class BertModel(nn.Module):
    """The BERT encoder (Devlin et al., arXiv 1810.04805), with `pooled` where `add_pooler`.

    `apply({"params": params}, input_ids, attention_mask=None, token_type_ids=None, score_layers=None,
    qkv_layers=(), qkv_parts=3, deterministic=True)`: `score_layers` are the layers (0-based, increasing, static) whose
    attention scores are returned, all by default; `qkv_layers` those whose queries, keys and values are, or the first
    `qkv_parts` of the three, none by default; with `deterministic=False` pass `rngs={"dropout": key}`.
    """

    config: BertConfig
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
        if input_ids.shape[-1] > config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[-1]} tokens, but the model has {config.max_position_embeddings} positions"
            )
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        wanted = tuple(range(config.num_hidden_layers)) if score_layers is None else score_layers
        x = Embeddings(config, name="embeddings")(input_ids, types, deterministic)
        last, states, scores, qkv = Encoder(config, name="encoder")(
            x, mask, wanted, qkv_layers, qkv_parts, deterministic
        )
        pooled = Pooler(config, name="pooler")(last) if self.add_pooler else None
        return BertOutput(last, states, scores, qkv, pooled)


def init_params(model: nn.Module, key: PRNGKeyArray) -> Params:
    """Random parameters, in float32, of a `BertModel` or of one of the models of `heads`."""
    return jax.jit(model.init)(key, jnp.zeros((1, 2), jnp.int32))["params"]


def count_parameters(params: Params) -> int:
    """The number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def resize_vocabulary(params: Params, rows: int) -> Params:
    """Parameters whose word embedding table, and masked-LM bias, have `rows` rows: padded with zeros, or cut."""

    def resized(leaf: Array | np.ndarray) -> Array:
        padding = [(0, max(0, rows - leaf.shape[0])), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, padding)[:rows]

    def visit(path: tuple[Any, ...], leaf: Array | np.ndarray) -> Array | np.ndarray:
        names = tuple(entry.key for entry in path)
        of_vocabulary = names[-2:] in (("word_embeddings", "embedding"), ("predictions", "bias"))
        return resized(leaf) if of_vocabulary and leaf.shape[0] != rows else leaf

    return jax.tree.map_with_path(visit, params)
