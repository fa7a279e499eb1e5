"""Parameter sharing: in groups of consecutive layers, all take the parameters, or a part, of the first layer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.method import Method
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import unshared
from tinybert_jax.objectives.objective import Objective, acting
from tinybert_jax.settings.compression import Share, SharePart

# part -> its names below "layer"
PARTS: dict[str, tuple[str, ...]] = {"attention": ("attention",), "feed_forward": ("intermediate", "output")}


def build(settings: Share) -> Method:
    """The method with these settings."""
    return Method(check=functools.partial(check, settings), apply=functools.partial(share, settings))


def build_part(settings: SharePart) -> Method:
    """The method with these settings."""
    checks = functools.partial(check_part, settings)
    return Method(check=checks, apply=functools.partial(share_part, settings), wrap=keep_shared, note=note_shared)


def check(settings: Share, config: BertConfig) -> None:
    """Refuse a model that cannot share its layers.

    Raises:
        InputError: the number of groups does not divide the number of layers, or the family has no form with sharing.
    """
    _check_groups(settings.groups, config)
    if not config.family.shares_layers and config.family.shared is None:
        raise InputError(f"{config.family.title} has no form with shared layers: take a BERT or an ALBERT")


def check_part(settings: SharePart, config: BertConfig) -> None:
    """Refuse a model that cannot share a part of its layers.

    Raises:
        InputError: the number of groups does not divide the number of layers, or the model shares whole layers.
    """
    _check_groups(settings.groups, config)
    if config.family.shares_layers:
        raise InputError(f"{config.family.title} shares whole layers: leave out the part")


def _check_groups(groups: int, config: BertConfig) -> None:
    if (layers := config.num_hidden_layers) % groups:
        raise InputError(f"{groups} groups do not divide {layers} layers: give a number that does")


def share_part(
    settings: SharePart, config: BertConfig, params: Params, examples: Examples
) -> tuple[BertConfig, Params]:
    """The model with the attention, or the feed-forward network, of the first layer in all layers of each group.

    Raises:
        InputError: as `check_part`.
    """
    check_part(settings, config)
    step = config.num_hidden_layers // settings.groups
    first = np.arange(config.num_hidden_layers) // step * step
    layer = _layer(params)
    shared = {name: jax.tree.map(lambda leaf: np.asarray(leaf)[first], layer[name]) for name in PARTS[settings.part]}
    return config, _with_layer(params, layer | shared)


def keep_shared(objective: Objective, config: BertConfig, examples: Examples) -> Objective:
    """The objective with parameters trained as one that are equal in several layers at the start of a stage."""

    def first(trainable: Params) -> Any:
        return jax.tree.map(_first_equal, _layer(trainable))

    def shared(params: Params, first: Any) -> Params:
        return _with_layer(params, jax.tree.map(lambda leaf, i: leaf[i], _layer(params), first))

    return acting(objective, SharePart.name, first, shared)


def note_shared(config: BertConfig, params: Params) -> str:
    """A note about the number of shared parameters, and its use."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(_layer(params))]
    repeated = sum(int((_first_equal(leaf) != np.arange(len(leaf))).sum()) * leaf[0].size for leaf in leaves)
    return f"{repeated / 1e6:.1f} M of the parameters are another layer's; smaller in ONNX, which stores them once"


def _first_equal(leaf: Any) -> Any:
    """For each layer, the index of the first layer with the same values, int32 [l]."""
    flat = leaf.reshape(len(leaf), -1)
    equal = (flat[:, None] == flat[None]).all(axis=2)
    return equal.argmax(axis=1).astype(np.int32)


def _layer(params: Params) -> Params:
    return params["encoder"]["encoder"]["layer"]


def _with_layer(params: Params, layer: Params) -> Params:
    encoder = params["encoder"]
    return params | {"encoder": encoder | {"encoder": encoder["encoder"] | {"layer": layer}}}


def share(settings: Share, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """An ALBERT in which all layers of a group have the parameters of the group's first layer.

    With as many groups as layers, it computes the same function as the BERT.

    Raises:
        InputError: as `check`.
    """
    check(settings, config)
    config, params = unshared(config, params)
    encoder = params["encoder"]
    if not config.family.shares_layers:
        identity = {
            "kernel": np.eye(config.hidden_size, dtype=np.float32),
            "bias": np.zeros(config.hidden_size, np.float32),
        }
        encoder = encoder | {"embeddings": encoder["embeddings"] | {"embedding_hidden_mapping_in": identity}}
    step = config.num_hidden_layers // settings.groups
    layer = jax.tree.map(lambda leaf: np.asarray(leaf)[::step], encoder["encoder"]["layer"])
    config = dataclasses.replace(
        config,
        model_type=config.family.shared or config.model_type,
        num_hidden_groups=settings.groups,
        classifier_dropout=config.classifier_dropout_rate,  # ALBERT has another default
    )
    return config, params | {"encoder": encoder | {"encoder": {"layer": layer}}}
