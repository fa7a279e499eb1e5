"""Quantisation of a model's parameters to int8, and whether the processor is faster with int8."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.layers import FLOAT, TABLE_BITS
from tinybert_jax.precision import int8_product, quantise

QUANTISED = ("encoder", "cls")  # entries of a parameter tree whose dense layers are quantised
TIMED = (128, 384, 1536)  # rows, inputs and outputs of the product that is timed
RUNS, LEAST_GAIN = 20, 1.1


def quantized(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The model with int8 kernels and an int8 word table, and their scales: a quarter of the bytes.

    Kernels have one scale for each output, the word table has one for each row. The inputs of dense layers are
    quantised per token when the model runs. The classifier stays in float32. If the config has `weight_bits`, outputs
    change only by rounding of sums; else 8 bits are used.

    Args:
        config: the model's config.
        params: the parameters as `load_hf` returns them.

    Returns:
        The config with `weight_bits`, and the parameters as numpy arrays.
    """
    bits = config.weight_bits or 8

    def visit(name: str, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return np.asarray(jax.device_get(tree))
        branch = {key: visit(key, value) for key, value in tree.items()}
        if "kernel" in branch and name not in FLOAT:
            branch["kernel"], scale = to_int8(branch["kernel"], bits, axis=-2)
            branch["kernel_scale"] = scale.squeeze(-2)
        if "word_embeddings" in branch:
            table, scale = to_int8(branch["word_embeddings"]["embedding"], TABLE_BITS, axis=-1)
            branch |= {"word_embeddings": {"embedding": table}, "word_embeddings_scale": scale.squeeze(-1)}
        return branch

    quantised = {key: visit(key, value) if key in QUANTISED else value for key, value in params.items()}
    return dataclasses.replace(config, weight_bits=bits), quantised


def int8_bytes(params: Params) -> int:
    """The number of bytes of `quantized` parameters, from the float32 parameters or from their shapes alone."""

    def visit(name: str, tree: Any, quantises: bool) -> int:
        if not isinstance(tree, dict):
            return 4 * tree.size
        total = 0
        for key, value in tree.items():
            if quantises and key == "kernel" and name not in FLOAT:
                total += value.size + 4 * value.size // value.shape[-2]
            elif quantises and key == "word_embeddings":
                total += value["embedding"].size + 4 * value["embedding"].shape[0]
            else:
                total += visit(key, value, quantises)
        return total

    return sum(visit(key, value, key in QUANTISED) for key, value in params.items())


def to_int8(weights: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric quantisation: integers of `bits` bits, as int8, and scales with 1 on `axis`.

    >>> to_int8(np.array([[127.0, 1.0], [-63.5, 2.0]], np.float32), 8, axis=0)[0].tolist()
    [[127, 64], [-64, 127]]
    """
    integers, scale = quantise(jnp.asarray(weights), bits, axis)
    return np.asarray(integers).astype(np.int8), np.asarray(scale)


@functools.cache
def int8_is_faster() -> bool:
    """Whether a product in int8 is clearly faster than one in float32 on the default device. It is measured once."""
    rows, inputs, outputs = TIMED
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((rows, inputs), (inputs, outputs)))
    integers, scale = to_int8(np.asarray(kernel), 8, axis=0)
    runs = (
        (jax.jit(jnp.matmul), (x, kernel)),
        (jax.jit(int8_product), (x, jnp.asarray(integers), jnp.asarray(scale[0]))),
    )
    seconds = [np.inf, np.inf]
    for _ in range(1 + RUNS):  # in turn; the first run compiles, so it is never the minimum
        for i, (function, arguments) in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return bool(seconds[0] > LEAST_GAIN * seconds[1])
