"""The form of a compression method, and the table of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tinybert_jax.batch import Examples, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.settings.compression import CompressionSettings


def _unchanged(config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    return config, params


class Method(NamedTuple):
    """A compression method.

    apply(config, params, examples) -> config, params: what happens at once, before the first stage. Parameters are
    numpy arrays.
    wrap(objective) -> objective: what is trained. Masks, fake quantization and factors act in its `init`, `loss` and
    `export`; what is carried and not trained is the entry "carried" of its trainable tree.
    """

    apply: Callable[[BertConfig, Params, Examples], tuple[BertConfig, Params]] = _unchanged
    wrap: Callable[[Objective], Objective] = lambda objective: objective


METHODS: dict[type[CompressionSettings], Callable[[Any], Method]] = {}


def build_method(settings: CompressionSettings) -> Method:
    """The method that the settings describe.

    Raises:
        InputError: the settings have no row in `METHODS`.
    """
    if type(settings) not in METHODS:
        known = ", ".join(row.__name__ for row in METHODS) or "none"
        raise InputError(f"compression {settings.name!r} has no row in the table of methods; known are {known}")
    return METHODS[type(settings)](settings)
