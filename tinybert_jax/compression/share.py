"""Parameter sharing: in groups of consecutive layers, all take the parameters, or a part, of the first layer."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.method import Method
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.families import FAMILIES, Family
from tinybert_jax.models.parameters import unshared
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.settings.compression import Share, SharePart

# part -> its names below "layer"
PARTS: dict[str, tuple[str, ...]] = {"attention": ("attention",), "feed_forward": ("intermediate", "output")}


def build(settings: Share) -> Method:
    """The method with these settings."""
    return Method(check=functools.partial(check, settings), apply=functools.partial(share, settings))


def build_part(settings: SharePart) -> Method:
    """The method with these settings."""
    return Method(
        check=functools.partial(check_part, settings),
        apply=functools.partial(share_part, settings),
        wrap=functools.partial(keep_shared, settings),
        note=functools.partial(note_shared, settings),
    )


def check(settings: Share, config: BertConfig) -> None:
    """Refuse a model that cannot share its layers.

    Raises:
        InputError: the number of groups does not divide the number of layers, or the family has no form with sharing.
    """
    _check_groups(settings.groups, config)
    family = _whole(config)
    if not family.shares_layers and family.shared is None:
        raise InputError(f"{family.title} has no form with shared layers: take a BERT or an ALBERT")


def check_part(settings: SharePart, config: BertConfig) -> None:
    """Refuse a model that cannot share a part of its layers.

    Raises:
        InputError: the number of groups does not divide the number of layers, or the model shares whole layers.
    """
    _check_groups(settings.groups, config)
    if config.family.shares_layers:
        raise InputError(f"{config.family.title} shares whole layers: leave out the part")


def _whole(config: BertConfig) -> Family:
    """The model's family; for MobileBERT, the class of a BERT whose word table became factors, this is BERT."""
    return FAMILIES[config.family.whole or config.model_type]


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
    return config, _shared_part(settings, config, params)


def keep_shared(settings: SharePart, objective: Objective, config: BertConfig, examples: Examples) -> Objective:
    """The objective with the shared part trained as one: every layer of a group reads that of the first layer."""
    shared = functools.partial(_shared_part, settings, config)
    return objective._replace(
        loss=lambda trainable, *more: objective.loss(shared(trainable), *more),
        export=lambda trainable, student_params: objective.export(shared(trainable), student_params),
    )


def note_shared(settings: SharePart, config: BertConfig, params: Params) -> str:
    """A note about the number of shared parameters, and its use."""
    layer = params["encoder"]["encoder"]["layer"]
    stacked = sum(leaf.size for name in PARTS[settings.part] for leaf in jax.tree.leaves(layer[name]))
    repeated = stacked * (1 - settings.groups / config.num_hidden_layers)
    return f"{repeated / 1e6:.1f} M of the parameters are another layer's; smaller in ONNX, which stores them once"


def _shared_part(settings: SharePart, config: BertConfig, params: Params) -> Params:
    """The parameters with the part of the first layer in all layers of each group."""
    step = config.num_hidden_layers // settings.groups
    first = np.arange(config.num_hidden_layers) // step * step
    encoder = params["encoder"]
    layer = encoder["encoder"]["layer"]
    shared = {name: jax.tree.map(lambda leaf: leaf[first], layer[name]) for name in PARTS[settings.part]}
    return params | {"encoder": encoder | {"encoder": encoder["encoder"] | {"layer": layer | shared}}}


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
        model_type=_whole(config).shared or config.model_type,
        num_hidden_groups=settings.groups,
        classifier_dropout=config.classifier_dropout_rate,  # ALBERT has another default
    )
    return config, params | {"encoder": encoder | {"encoder": {"layer": layer}}}
