"""The table of compression methods: from the settings of a method to what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinybert_jax.compression import prune, share, sparse, vocabulary
from tinybert_jax.compression.method import Method
from tinybert_jax.errors import InputError
from tinybert_jax.settings.compression import CompressionSettings, Prune, Share, Sparse, Vocabulary

METHODS: dict[type[CompressionSettings], Callable[[Any], Method]] = {
    Prune: prune.build,
    Share: share.build,
    Sparse: sparse.build,
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
