"""Parameter sharing: groups of consecutive layers with the parameters of the first, as an ALBERT."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.method import Method
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import unshared
from tinybert_jax.settings.compression import Share


def build(settings: Share) -> Method:
    """The method of the settings."""
    return Method(check=functools.partial(check, settings), apply=functools.partial(share, settings))


def check(settings: Share, config: BertConfig) -> None:
    """Refuse a model that cannot share its layers.

    Raises:
        InputError: the number of groups does not divide that of layers, or the family has no shared form.
    """
    layers = config.num_hidden_layers
    if layers % settings.groups:
        raise InputError(f"{settings.groups} groups do not divide {layers} layers: give a number that does")
    if not config.family.shares_layers and config.family.shared is None:
        raise InputError(f"{config.family.title} has no form with shared layers: take a BERT or an ALBERT")


def share(settings: Share, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """An ALBERT whose groups of layers have the parameters of their first layer.

    With as many groups as layers, it is the same function as the BERT.

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
        classifier_dropout=config.classifier_dropout_rate,  # ALBERT's default is another
    )
    return config, params | {"encoder": encoder | {"encoder": {"layer": layer}}}
