"""The table of compression methods: from the settings of a method to its functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinybert_jax.compression import gradual, low_rank, movement, prune, quantize, share, sparse, vocabulary
from tinybert_jax.compression.calibration import check_outputs
from tinybert_jax.compression.method import Method
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.settings.compression import (
    CompressionSettings,
    GradualPrune,
    LowRank,
    Movement,
    Prune,
    Quantize,
    Share,
    SharePart,
    Sparse,
    Vocabulary,
)

METHODS: dict[type[CompressionSettings], Callable[[Any], Method]] = {
    Prune: prune.build,
    GradualPrune: gradual.build,
    LowRank: low_rank.build,
    Share: share.build,
    SharePart: share.build_part,
    Sparse: sparse.build,
    Movement: movement.build,
    Quantize: quantize.build,
    Vocabulary: vocabulary.build,
}


def build_method(settings: CompressionSettings) -> Method:
    """The method that the settings describe.

    Raises:
        InputError: the settings have no row in `METHODS`.
    """
    if type(settings) not in METHODS:
        known = ", ".join(row.__name__ for row in METHODS) or "none"
        raise InputError(f"compression {settings.name!r} has no row in the table of methods; known are {known}")
    return METHODS[type(settings)](settings)


def check_methods(methods: Sequence[CompressionSettings], config: BertConfig, head: str) -> None:
    """Refuse methods that are not possible on a model, or not after another method.

    Args:
        methods: settings, in the order in which they are applied.
        config: the model's config.
        head: the model's head, a row of `models.heads.HEADS`.

    Raises:
        InputError: as `Method.check` and `check_outputs`; or a method cannot follow another one.
    """
    for method in methods:
        build_method(method).check(config)
        if method.reads_head:
            check_outputs(method.name, head)
    for i, method in enumerate(methods):
        for before in methods[:i]:
            if before.name in method.not_after:
                other = "" if method.name in before.not_after else "put it before, or "
                raise InputError(f"{method.name} cannot follow {before.name}: {other}leave one out")
