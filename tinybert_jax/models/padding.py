"""Padding of attention heads with zeros, to a shape that `transformers` can load."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import FULL_RANK, BertConfig


def pad_heads(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The same model with attention heads as wide as `hidden_size / num_attention_heads`, as `transformers` needs.

    Heads are padded with zeros, and heads of zeros are added if their number does not divide the width. So the result
    is not smaller or faster than with full heads. Queries are scaled, because scores are divided by the root of the
    head's width.

    Args:
        config: the config; if it has no `head_dim`, nothing changes.
        params: the parameters as `load_hf` returns them.

    Returns:
        The config without `head_dim`, and the parameters as numpy arrays.

    Raises:
        InputError: the heads are too wide, or the model has low-rank factors.

    >>> pad_heads(BertConfig(hidden_size=8, num_attention_heads=2), {})[0].attention_head_dim
    4
    """
    heads, width = config.num_attention_heads, config.attention_head_dim
    if config.loads_in_transformers:
        return config, params
    if config.ranks != FULL_RANK:
        raise InputError("padding heads cannot help: the model has factors of low rank too; export it as ONNX")
    numbers = (n for n in range(heads, config.hidden_size + 1) if config.hidden_size % n == 0)
    count = next((n for n in numbers if config.hidden_size // n >= width), None)
    if count is None:
        raise InputError(
            f"{heads} heads of {width} cannot be padded to hidden_size {config.hidden_size}: they are wider than heads"
            " that divide it"
        )
    padded = config.hidden_size // count
    layers = params["encoder"]["encoder"]["layer"]
    attention = layers["attention"]

    def widened(array: Any, axis: int, scale: float = 1.0) -> np.ndarray:
        """The array with each head on the axis padded to the new width, and with the new number of heads."""
        array = np.moveaxis(np.asarray(jax.device_get(array)) * np.float32(scale), axis, -1)
        split = array.reshape(*array.shape[:-1], heads, width)
        wide = np.pad(split, [(0, 0)] * (split.ndim - 2) + [(0, count - heads), (0, padded - width)])
        return np.moveaxis(wide.reshape(*array.shape[:-1], count * padded), -1, axis)

    scales = {"query": math.sqrt(padded / width), "key": 1.0, "value": 1.0}
    projections = {
        name: {part: widened(leaf, -1, scale) for part, leaf in attention["self"][name].items()}
        for name, scale in scales.items()
    }
    output = attention["output"]
    dense = output["dense"] | {"kernel": widened(output["dense"]["kernel"], 1)}
    attention = {"self": projections, "output": output | {"dense": dense}}
    encoder = params["encoder"] | {"encoder": {"layer": layers | {"attention": attention}}}
    return dataclasses.replace(config, num_attention_heads=count, head_dim=None), params | {"encoder": encoder}
