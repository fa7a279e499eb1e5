"""Functions on a model's parameters: initial values, sizes, vocabulary, factors; and the cost of a forward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import FULL_RANK, BertConfig
from tinybert_jax.models.encoder import BertOutput
from tinybert_jax.models.layers import word_table


def init_params(model: nn.Module, key: PRNGKeyArray) -> Params:
    """Random float32 parameters of a `BertModel` or of one of the models in `heads`."""
    return jax.jit(model.init)(key, jnp.zeros((1, 2), jnp.int32))["params"]


@functools.lru_cache(maxsize=64)  # to trace a model takes longer than to read its weights
def parameter_shapes(model: nn.Module) -> Params:
    """As `init_params`, but shapes alone: nothing is compiled or computed. Do not change the result, which is kept."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def count_parameters(params: Params) -> int:
    """The number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def resize_vocabulary(params: Params, rows: int) -> Params:
    """Parameters whose word table and masked-LM bias are padded with zeros, or cut, to `rows` rows."""

    def resized(leaf: Array | np.ndarray) -> Array | np.ndarray:
        if leaf.shape[0] == rows:
            return leaf
        padding = [(0, max(0, rows - leaf.shape[0])), *[(0, 0)] * (leaf.ndim - 1)]
        return np.pad(leaf, padding)[:rows] if isinstance(leaf, np.ndarray) else jnp.pad(leaf, padding)[:rows]

    return _map_pieces(resized, params)


def select_pieces(config: BertConfig, params: Params, ids: np.ndarray, padding: int) -> tuple[BertConfig, Params]:
    """The model with only the rows `ids` of its word table and masked-LM bias. `padding` is the new pad_token_id."""
    config = dataclasses.replace(config, vocab_size=len(ids), pad_token_id=padding)
    return config, _map_pieces(lambda leaf: np.asarray(leaf)[ids], params)


def _map_pieces(change: Callable[[Any], Any], params: Params) -> Params:
    """The parameters, with `change` applied to all leaves that have a row for each piece of the vocabulary."""

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        names = tuple(entry.key for entry in path)
        return change(leaf) if names[-2:] in (("word_embeddings", "embedding"), ("predictions", "bias")) else leaf

    return jax.tree.map_with_path(visit, params)


def apply_model(model: Any, params: Params, batch: Batch, key: PRNGKeyArray | None, **kwargs: Any) -> BertOutput:
    """The outputs of a model on a batch; `key` drives its dropout, None switches it off."""
    rngs = None if key is None else {"dropout": key}
    inputs = map(jnp.asarray, (batch.input_ids, batch.attention_mask, batch.token_type_ids))
    return model.apply({"params": params}, *inputs, deterministic=key is None, rngs=rngs, **kwargs)


BACKWARD = 2  # a backward pass computes two products for every one of the forward pass


def forward_flops(config: BertConfig, tokens: int) -> float:
    """Floating-point operations of an encoder's matrix products on one sequence. A multiply-add counts as two.

    >>> round(forward_flops(BertConfig(), 128) / 1e9, 1)  # BERT_BASE: the paper's 22.5B
    22.3
    """
    width = config.all_head_size
    inner, ranks = (config.hidden_size, config.intermediate_size), config.ranks
    sizes = dict.fromkeys(("query", "key", "value", "attention_output"), (config.hidden_size, width))
    total = 2 * tokens * width
    for name, (inputs, outputs) in (sizes | {"intermediate": inner, "output": inner}).items():
        rank = getattr(ranks, name)
        total += rank * (inputs + outputs) if rank else inputs * outputs
    return 2.0 * config.num_hidden_layers * tokens * total


def unshared(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The same model without shared layers: every layer has separate parameters."""
    repeats = config.num_hidden_layers // config.layer_groups
    if repeats == 1:
        return config, params
    layer = jax.tree.map(
        lambda leaf: np.repeat(np.asarray(leaf), repeats, axis=0), params["encoder"]["encoder"]["layer"]
    )
    encoder = params["encoder"] | {"encoder": {"layer": layer}}
    return dataclasses.replace(config, num_hidden_groups=config.num_hidden_layers), params | {"encoder": encoder}


def unfactored(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The same model without low-rank factors: each pair of factors is multiplied.

    The bias of a factorised word table is added to the position embeddings.
    """
    if config.ranks == FULL_RANK:
        return config, params

    def visit(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "up" in tree:
            kernel = np.asarray(tree["down"]["kernel"]) @ np.asarray(tree["up"]["kernel"])
            return tree["up"] | {"kernel": kernel}
        return {name: visit(branch) for name, branch in tree.items()}

    encoder = visit(params["encoder"])
    if config.ranks.word_embeddings:
        embeddings = dict(encoder["embeddings"])
        words = dataclasses.replace(config, weight_bits=None)
        embeddings["word_embeddings"] = {"embedding": np.asarray(word_table(words, embeddings))}
        bias = np.asarray(embeddings.pop("word_embeddings_projection")["bias"])
        positions = np.asarray(embeddings["position_embeddings"]["embedding"])
        embeddings["position_embeddings"] = {"embedding": positions + bias}
        encoder = encoder | {"embeddings": embeddings}
    model_type = config.family.whole or config.model_type
    return dataclasses.replace(config, ranks=FULL_RANK, model_type=model_type), params | {"encoder": encoder}


def encoder_macs(config: BertConfig, params: Params, tokens: float) -> float:
    """Multiply-adds of an encoder's layers on a row of `tokens` tokens, without heads and units that are pruned (that
    no output projection reads).

    >>> from tinybert_jax.models.encoder import BertModel
    >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = BertConfig(vocab_size=9, **sizes)
    >>> encoder_macs(config, {"encoder": init_params(BertModel(config), jax.random.key(0))}, 10.0)
    6720.0
    """
    layer, width = params["encoder"]["encoder"]["layer"], config.attention_head_dim
    attention, repeats = layer["attention"], config.num_hidden_layers // config.layer_groups
    heads, units = (np.asarray(read).sum(axis=1) for read in heads_and_units_read(config, params))
    heads = heads * width
    total = 2 * tokens**2 * heads
    for dense in attention["self"].values():
        total = total + tokens * _multiplied(dense, config.hidden_size, heads)
    total = total + tokens * _multiplied(attention["output"]["dense"], heads, config.hidden_size)
    total = total + tokens * _multiplied(layer["intermediate"]["dense"], config.hidden_size, units)
    total = total + tokens * _multiplied(layer["output"]["dense"], units, config.hidden_size)
    return float(repeats * total.sum())


def heads_and_units_read(config: BertConfig, params: Params) -> tuple[Any, Any]:
    """Which heads [l, h] and feed-forward units [l, f] the output projections read: bool arrays, of numpy or JAX as
    the parameters are.
    """
    layer = params["encoder"]["encoder"]["layer"]
    of_heads, of_units = (rows_read(half["dense"]) for half in (layer["attention"]["output"], layer["output"]))
    return of_heads.reshape(len(of_heads), -1, config.attention_head_dim).any(axis=2), of_units


def rows_read(dense: Params) -> Any:
    """Which inputs a dense layer reads: bool [..., i], False where the input's row of the kernel is 0."""
    return (dense.get("down", dense)["kernel"] != 0).any(axis=-1)


def ranks_used(dense: Params) -> np.ndarray:
    """Which ranks of a factorised dense layer are used, so that they are not zeros: bool [..., r]."""
    return np.asarray(np.any(np.asarray(dense["up"]["kernel"]) != 0, axis=-1))


def _multiplied(dense: Params, inputs: np.ndarray | int, outputs: np.ndarray | int) -> np.ndarray:
    """Multiply-adds of a dense layer on a token [l], from its numbers of used inputs and outputs."""
    return np.asarray(ranks_used(dense).sum(axis=-1) * (inputs + outputs) if "up" in dense else inputs * outputs)
