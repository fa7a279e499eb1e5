"""The size, cost and time of students: the table of `tinybert students`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax.devices.sharding import make_mesh, tree_shardings
from tinybert_jax.inference.step import make_predict_step
from tinybert_jax.inference.timing import call_seconds, random_batch
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import count_parameters, forward_flops, parameter_shapes
from tinybert_jax.models.quantized import int8_bytes
from tinybert_jax.reports.tables import Table

TOGETHER = 32  # batch size of the second timing
SECONDS, LEAST_CALLS = 0.5, 3  # for each timing
DEVIATION = 0.02  # standard deviation of the random parameters


class Size(NamedTuple):
    """A model with the shapes of its parameters, and its cost."""

    name: str
    config: BertConfig
    params: Any
    parameters: int
    bytes: int
    int8_bytes: int
    macs: float  # of a text


def size(name: str, config: BertConfig, tokens: int) -> Size:
    """The size of a classifier with this config, for texts of a length in tokens. No model is run."""
    params = parameter_shapes(HEADS["sequence"].model(config))
    count = count_parameters(params)
    return Size(name, config, params, count, 4 * count, int8_bytes(params), forward_flops(config, tokens) / 2)


def milliseconds(model: Size, tokens: int, texts: int) -> float:
    """The median time per text in a batch on this machine, without compilation.

    The parameters are random, which does not change the time.
    """
    random = np.random.default_rng(0)
    mesh = make_mesh()
    params = jax.tree.map(
        lambda leaf: (DEVIATION * random.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype), model.params
    )
    params = jax.device_put(params, tree_shardings(mesh, params))
    step = make_predict_step(HEADS["sequence"].model(model.config), mesh, params)
    batch = random_batch(texts, tokens, model.config.vocab_size)
    times = call_seconds(lambda: jax.block_until_ready(step(params, batch)), turn=SECONDS, least=LEAST_CALLS)
    return 1000 * statistics.median(times) / texts


def table(students: Sequence[Size], teacher: Size, tokens: int, measure: bool) -> Table:
    """A row for each student and one for the teacher. Shares are relative to the teacher."""
    header = ["student", "layers", "width", "parameters", "MB", "MB in int8", "multiply-adds", "size", "compute"]
    header += ["ms a text", f"of {TOGETHER} together"] if measure else []
    rows = []
    for model in (*students, teacher):
        row = [
            model.name,
            str(model.config.num_hidden_layers),
            str(model.config.hidden_size),
            f"{model.parameters / 1e6:.1f} M",
            f"{model.bytes / 1e6:.1f}",
            f"{model.int8_bytes / 1e6:.1f}",
            f"{model.macs / 1e9:.2f} G",
            f"{model.parameters / teacher.parameters:.1%}",
            f"{model.macs / teacher.macs:.1%}",
        ]
        if measure:
            row += [f"{milliseconds(model, tokens, texts):.3g}" for texts in (1, TOGETHER)]
        rows.append(row)
    return header, rows
