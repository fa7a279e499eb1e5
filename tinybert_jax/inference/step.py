"""The compiled predict step, and its outputs on many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.data.batches import PROGRESS_FROM, eval_batches
from tinybert_jax.devices.sharding import batch_sharding, on_mesh, place, replicated, tree_shardings


def outputs(
    step: Callable[..., Any],
    params: Params,
    examples: Examples,
    batch_size: int,
    buckets: tuple[int, ...],
    named: str,
    first: int = 0,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield the row numbers and the outputs of a compiled step `(params, batch)`, batch by batch as in `eval_batches`.

    `first` is the number of the first batch. For many rows, a progress bar with the title `named` is shown.
    """
    from tqdm import tqdm

    running = None  # a batch is fetched after the next is dispatched: the device never waits, and no queue grows
    before = min(first * batch_size, len(examples))
    few = len(examples) < PROGRESS_FROM
    with tqdm(total=len(examples), initial=before, desc=named, unit="row", disable=few) as bar:
        for rows, batch in eval_batches(examples, batch_size, buckets, first):
            dispatched = rows, step(params, batch)
            if running is not None:
                yield running
            running = dispatched
            bar.update(int((rows >= 0).sum()))
        if running is not None:
            yield running


def predict_logits(
    step: Callable[..., Any],
    params: Params,
    examples: Examples,
    batch_size: int,
    buckets: tuple[int, ...],
) -> np.ndarray:
    """Logits float32 [n, c] in the order of the rows, from a step of `make_predict_step`.

    For token heads: [n, q, c], where q is the longest bucket. Positions past a row's bucket are 0. For many rows, a
    progress bar is shown.
    """
    result = np.zeros(0, np.float32)
    for rows, output in outputs(step, params, examples, batch_size, buckets, "predict"):
        logits, real = np.asarray(output), rows >= 0
        per_token = logits.ndim == 3
        if not result.size:
            middle = (buckets[-1],) if per_token else ()
            result = np.zeros((len(examples), *middle, logits.shape[-1]), np.float32)
        at = (rows[real], slice(logits.shape[1])) if per_token else rows[real]
        result[at] = logits[real]
    return result


def make_predict_step(model: Any, mesh: Mesh, params: Params) -> Callable[[Params, Batch], Array]:
    """The compiled `(params, batch) -> logits` of a model, without dropout. Every process passes the whole batch and
    gets all logits.
    """

    def predict(params: Params, inputs: tuple[Array, Array, Array]) -> Array:
        return model.apply({"params": params}, *inputs, score_layers=()).logits

    rows = batch_sharding(mesh)
    compiled = jax.jit(
        on_mesh(mesh, predict), in_shardings=(tree_shardings(mesh, params), rows), out_shardings=replicated(mesh)
    )

    def step(params: Params, batch: Batch) -> Array:
        inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return compiled(params, place(inputs, (rows,) * 3))

    return step
