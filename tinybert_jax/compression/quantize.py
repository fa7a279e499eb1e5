"""Quantization: the model's dense layers multiply in int8, also in training."""

from __future__ import annotations

import dataclasses
import functools

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.method import Method
from tinybert_jax.models.config import BertConfig
from tinybert_jax.settings.compression import Quantize


def build(settings: Quantize) -> Method:
    """The method with these settings."""
    return Method(apply=functools.partial(quantize, settings))


def quantize(settings: Quantize, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """The model with `weight_bits`. Its parameters stay float32, so that they can be trained."""
    return dataclasses.replace(config, weight_bits=settings.weight_bits), params
