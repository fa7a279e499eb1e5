"""The layers of a BERT in Flax Linen, under the parameter names of Hugging Face."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tinybert_jax.batch import Params
from tinybert_jax.devices.sharding import constrain
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.precision import Dense, product, rounded

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
# dense layers that are never quantised: those of heads, and those that project embeddings
FLOAT = ("classifier", "qa_outputs", "embedding_dense", "embedding_hidden_mapping_in", "word_embeddings_projection")
TABLE_BITS = 8  # bits of the word table if dense layers are quantised


def dropout(x: Float[Array, "... n"], rate: float, key: PRNGKeyArray) -> Float[Array, "... n"]:
    """Inverted dropout with only 8 random bits per element, because random numbers dominate a small student's step on
    a CPU.

    `rate` is rounded to a multiple of 1/256, and kept values are divided by the exact probability of being kept. So
    the expectation is exact in float32.
    """
    keep, n = max(1, round((1 - rate) * 256)), x.shape[-1]
    # four elements share a word, because JAX computes a whole word for every requested byte
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


class BertModule(nn.Module):
    """The base of all modules of a BERT: it has the model's config, and how the model is computed."""

    config: BertConfig
    compute: Compute = DEFAULT

    def dense(self, features: int, name: str, rank: int = 0) -> Dense:
        """A dense layer in the compute dtype, with the config's `initializer_range`. Rank 0 is full rank."""
        init = nn.initializers.normal(self.config.initializer_range)
        bits = None if name in FLOAT else self.config.weight_bits
        return Dense(features, self.compute.dtype, init, rank, bits, name=name)

    def layer_norm(self, eps: float | None = None) -> nn.LayerNorm:
        """LayerNorm with float32 statistics. `eps` None is the config's."""
        eps = self.config.layer_norm_eps if eps is None else eps
        # the fast variance, E[x^2] - E[x]^2, is not exact enough for parity with Hugging Face
        return nn.LayerNorm(eps, self.compute.dtype, use_fast_variance=False, name="LayerNorm")


def position_ids(config: BertConfig, input_ids: Int[Array | np.ndarray, "b q"]) -> Int[Array, "b q"]:
    """The index of each token's position embedding.

    BERT counts all tokens from 0. RoBERTa counts only real tokens, from pad_token_id + 1.
    """
    if not config.family.positions_after_padding:
        return jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
    real = jnp.asarray(input_ids != config.pad_token_id, jnp.int32)
    return jnp.cumsum(real, axis=1) * real + config.pad_token_id


class Embeddings(BertModule):
    """Embeddings of words, positions and, if the family has them, token types [b, q] -> [b, q, d]."""

    @nn.compact
    def __call__(self, input_ids: Array, token_type_ids: Array, deterministic: bool) -> Array:
        config = self.config

        init = nn.initializers.normal(config.initializer_range)

        def table(rows: int, name: str, rank: int = 0) -> Any:
            width = rank or config.embedding_width
            return jnp.asarray(nn.Embed(rows, width, embedding_init=init, name=name).embedding)

        # Tables are float32: their gradients are sums over tokens, for which bfloat16 is not precise enough.
        # Each device looks up its slice of the width, and the looked-up rows are exchanged. That moves less data than
        # gathering the table if a device has fewer tokens than the table has rows.
        rank, count = config.ranks.word_embeddings, self.compute.vocab_rows(config)
        words, ids = table(count, "word_embeddings", rank), constrain(input_ids, "group", None)
        x = jnp.take(words, ids, axis=0)
        if words.dtype == jnp.int8:
            scale = self.param("word_embeddings_scale", nn.initializers.ones, (count,), jnp.float32)
            x = x * jnp.take(scale, ids)[..., None]
        elif config.weight_bits is not None:
            x = rounded(x, TABLE_BITS, -1)
        x = x.astype(self.compute.dtype)
        x = constrain(constrain(x, "group", None, "embed"), "batch", None, None)
        # As with torch's `padding_idx`, looking up [PAD] does not train it. It matters if a loss counts padding.
        x = jnp.where((input_ids == config.pad_token_id)[..., None], jax.lax.stop_gradient(x), x)
        if rank:
            width = config.embedding_width
            x = Dense(width, self.compute.dtype, init, name="word_embeddings_projection")(x)
        if config.type_vocab_size:
            x = x + jnp.take(table(config.type_vocab_size, "token_type_embeddings"), token_type_ids, axis=0)
        positions = table(config.max_position_embeddings, "position_embeddings")
        if config.family.positions_after_padding:
            at = jnp.take(positions, position_ids(config, input_ids), axis=0)
            # padding has a position embedding too, which torch does not train
            x = x + jnp.where((input_ids == config.pad_token_id)[..., None], jax.lax.stop_gradient(at), at)
        else:
            x = x + positions[None, : input_ids.shape[-1]]
        x = Dropout(config.hidden_dropout_prob)(self.layer_norm(config.embeddings_eps)(x), deterministic)
        return self.dense(config.hidden_size, "embedding_hidden_mapping_in")(x) if config.projects_embeddings else x


def word_table(config: BertConfig, params: Params) -> Float[Array, "v e"]:
    """The word table in float32, from the parameters of `Embeddings`: rounded if quantised, with factors multiplied.

    The bias of a factorised table's projection is left out: like positions, it is added to every word.
    """
    table = jnp.asarray(params["word_embeddings"]["embedding"])
    if table.dtype == jnp.int8:
        table = table * params["word_embeddings_scale"][:, None]
    elif config.weight_bits is not None:
        table = rounded(table, TABLE_BITS, -1)
    if config.ranks.word_embeddings:
        table = product("vr,re->ve", table, jnp.asarray(params["word_embeddings_projection"]["kernel"]))
    return table


def attention_scores(
    query: Float[Array, "*b h q d"], key: Float[Array, "*b h k d"], bias: Float[Array, "h q k"] | None = None
) -> Float[Array, "*b h q k"]:
    """q.k / sqrt(head_dim) plus the relative position bias, before mask and softmax, in float32."""
    scores = product("...hqd,...hkd->...hqk", query, key) / math.sqrt(query.shape[-1])
    return scores if bias is None else scores + jnp.expand_dims(bias, range(scores.ndim - 3))


class SelfAttention(BertModule):
    """Multi-head attention -> context [b, q, h * head_dim], and queries, keys and values, each [b, h, q, head_dim].

    `bias` [h, q, k] is the relative position bias, None in a family without one.
    """

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array, bias: Array | None, deterministic: bool
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        config = self.config
        heads, width = config.num_attention_heads, config.attention_head_dim

        def project(name: str) -> Array:
            rank = getattr(config.ranks, name)
            projected = self.dense(heads * width, name, rank)(x).reshape(*x.shape[:-1], heads, width).swapaxes(1, 2)
            return constrain(projected, "batch", "heads", None, None)

        query, key, value = project("query"), project("key"), project("value")
        rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        weigh = functools.partial(_weigh, rate=rate, dropout_key=self.make_rng("dropout") if rate else None)
        # the backward pass recomputes scores and weights, so no array [b, h, q, k] is kept
        recomputed = jax.checkpoint(weigh, prevent_cse=False)
        weighed, total = recomputed(query, key, value, attention_mask, bias)
        # the softmax divides last, on [b, h, q, d] instead of [b, h, q, k]
        context = (weighed / total).astype(x.dtype).swapaxes(1, 2).reshape(*x.shape[:-1], heads * width)
        return context, (query, key, value)


def _weigh(
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array,
    bias: Array | None,
    rate: float,
    dropout_key: PRNGKeyArray | None,
) -> tuple[Array, Array]:
    """The sum [b, h, q, d] of values, weighted by the exponentials of the scores; and the sum of weights [b, h, q, 1].

    Both are float32. Dropout applies to the first sum only.
    """
    scores = constrain(attention_scores(query, key, bias), "batch", "heads", None, None)
    # a finite mask: an example that is all padding attends everywhere, instead of dividing 0 by 0
    masked = scores + jnp.where(attention_mask > 0, 0.0, -1e9)[:, None, None, :]
    weights = jnp.exp(masked - jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)[..., None]
    weights = weights.astype(value.dtype)
    if dropout_key is not None:
        weights = dropout(weights, rate, dropout_key)
    return product("bhqk,bhkd->bhqd", weights, value), total


class Residual(BertModule):
    """`LayerNorm(dropout(dense(x)) + residual)`, the `output` of both halves of a layer."""

    rank: int = 0
    eps: float | None = None  # None: the config's

    @nn.compact
    def __call__(self, x: Array, residual: Array, deterministic: bool) -> Array:
        config = self.config
        x = Dropout(config.hidden_dropout_prob)(self.dense(config.hidden_size, "dense", self.rank)(x), deterministic)
        # states are sharded along the batch alone: kernels are gathered for each layer instead
        return constrain(self.layer_norm(self.eps)(x + residual), "batch", None, None)


class Attention(BertModule):
    """Self-attention with output projection, residual and LayerNorm -> the state, and queries, keys and values."""

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array, bias: Array | None, deterministic: bool
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        context, qkv = SelfAttention(self.config, self.compute, name="self")(x, attention_mask, bias, deterministic)
        rank = self.config.ranks.attention_output
        return Residual(self.config, self.compute, rank, name="output")(context, x, deterministic), qkv


class Intermediate(BertModule):
    """The first half of the feed-forward network [b, q, d] -> [b, q, intermediate_size]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # recomputing in the backward pass is cheaper than moving four such tensors through memory
        activation = jax.checkpoint(ACTIVATIONS[self.config.hidden_act], prevent_cse=False)
        wide = self.dense(self.config.intermediate_size, "dense", self.config.ranks.intermediate)(x)
        return activation(constrain(wide, "batch", None, "mlp"))
