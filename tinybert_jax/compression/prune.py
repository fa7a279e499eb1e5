"""Structured pruning without training: heads and feed-forward units by Fisher importance, repaired by least squares.

Sources: Kwon et al., arXiv 2204.09656 (masks, Fisher information, search); K-prune, arXiv 2308.03449 (the remaining
weights are fitted to the whole model's outputs, layer by layer).

Layers are stacked, so all are as wide as the widest, and layers that keep less are padded with zeros. Zeros stay zeros
in training, because they get no gradient. The ONNX writer leaves them out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.compression.calibration import (
    calibration_batches,
    check_heads,
    check_outputs,
    check_whole,
    labelled_rows,
)
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.walk import Site, Sums, walk
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.heads import HEADS, HeadLosses, head_losses
from tinybert_jax.models.parameters import heads_and_units_read, resize_vocabulary, unshared
from tinybert_jax.models.sample import Sample
from tinybert_jax.settings.compression import Prune

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # relative to the mean variance of the inputs; the best on held-out tokens is used
FEW_TOKENS = 100  # with fewer tokens, nothing is fitted
HELD_OUT = 5  # every fifth part of the tokens is held out
UNITS = 8  # large layers keep a multiple of this number of units


class Kept(NamedTuple):
    """An array [l, h] for heads and one [l, f] for units: bool, which are kept; or float, such as their importance."""

    heads: np.ndarray
    units: np.ndarray


def build(settings: Prune) -> Method:
    """The method with these settings."""

    def check(config: BertConfig) -> None:
        check_heads(settings.name, config)
        check_whole("pruning", config)

    return Method(check=check, apply=functools.partial(prune, settings))


def prune(settings: Prune, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """Remove heads and units of a fine-tuned model, until the share of multiply-adds is left.

    Args:
        settings: the share, and how it is reached.
        config: the model's config.
        params: the model's parameters, with a head that is trained on the labels of `examples`.
        examples: training rows with labels.

    Returns:
        The smaller model. It has fewer heads of the same width (`head_dim`) and a smaller `intermediate_size`, as many
        as the largest layer keeps.

    Raises:
        InputError: the model has no head, no row has a label, or the model is factorised, quantised or shared.
    """
    head = head_of(params, config)
    check_whole("pruning", config)
    check_outputs(settings.name, head)
    config, params = unshared(config, params)
    model = jax.tree.map(np.asarray, resize_vocabulary(params, config.vocab_size))
    loss_of = head_losses(head, config)
    labelled = labelled_rows(examples, loss_of.labelled, settings.rows)
    if not len(labelled):
        raise InputError("pruning measures importance by the labels, and no row has one: give labelled rows")
    batches = calibration_batches(labelled, settings.rows)
    sample = Sample.take(calibration_batches(examples, settings.rows))  # the fit needs no labels
    targets = walk(config, model, sample, lambda site: site.dense)[1]
    tokens = float(np.mean(examples.lengths))
    kept, cost = Kept(*heads_and_units_read(config, model)), costs(config, tokens)
    sizes = [one * mask.size for one, mask in zip(cost, kept, strict=True)]
    # the share of heads and units that are not padding
    there = float(np.average([mask.mean() for mask in kept], weights=sizes))
    gradients = _mask_gradients(config, head, loss_of)
    for round_ in range(1, settings.rounds + 1):
        importance = _importance(gradients, model, batches)
        share = there * settings.macs ** (round_ / settings.rounds)
        kept = select(importance, kept, cost, share, settings.uniform)
        model = _repaired(config, model, sample, kept, targets)
    smaller = removed(config, model, kept)
    encoder = params["encoder"] | {"encoder": smaller[1]["encoder"]["encoder"]}
    return smaller[0], params | {"encoder": encoder}


def costs(config: BertConfig, tokens: float) -> tuple[float, float]:
    """Multiply-adds of a head and of a unit, on a row of `tokens` tokens."""
    projections = 4 * tokens * config.hidden_size * config.attention_head_dim
    return projections + 2 * tokens**2 * config.attention_head_dim, 2 * tokens * config.hidden_size


def select(importance: Kept, kept: Kept, cost: tuple[float, float], share: float, uniform: bool) -> Kept:
    """The heads and units with the largest total importance within a share of the multiply-adds.

    Args:
        importance: the importance of every head and unit.
        kept: which of them may be chosen.
        cost: multiply-adds of a head and of a unit.
        share: share of the cost of all heads and units, including removed ones.
        uniform: choose the same number in every layer.

    >>> both = Kept(np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[1.0, 5.0], [6.0, 7.0]]))
    >>> every = Kept(np.ones((2, 2), bool), np.ones((2, 2), bool))
    >>> chosen = select(both, every, (2.0, 1.0), 0.5, uniform=False)
    >>> chosen.heads.tolist(), chosen.units.tolist()
    ([[True, False], [False, False]], [[True, True], [True, True]])
    """
    scores = [np.where(mask, values, -1.0) for mask, values in zip(kept, importance, strict=True)]
    layers = len(scores[0])
    if not uniform:
        scores = [values.reshape(1, -1) for values in scores]
    budget = share * sum(one * values.size for one, values in zip(cost, scores, strict=True)) / len(scores[0])
    order = [np.argsort(-values, axis=1, kind="stable") for values in scores]
    totals = []
    for values, places in zip(scores, order, strict=True):
        of_layers = np.maximum(np.take_along_axis(values, places, axis=1), 0.0).sum(axis=0)
        totals.append(np.append(0.0, np.cumsum(of_layers)))
    least = 1 if uniform else 0  # a uniform model has a head and a unit in every layer
    best = (-1.0, least, least)
    for heads in range(least, len(totals[0])):
        units = int(np.clip((budget - heads * cost[0]) / cost[1], least, len(totals[1]) - 1))
        if heads * cost[0] <= budget or heads == least:
            best = max(best, (float(totals[0][heads] + totals[1][units]), heads, units), key=lambda each: each[0])
    chosen = []
    for values, places, count in zip(scores, order, best[1:], strict=True):
        mask = np.zeros(values.shape, bool)
        np.put_along_axis(mask, places[:, :count], True, axis=1)
        chosen.append((mask & (values >= 0)).reshape(layers, -1))
    return _rounded(Kept(*chosen), importance)


def _rounded(kept: Kept, importance: Kept) -> Kept:
    """Round the number of units of each layer to a multiple of UNITS: add the most important or drop the least."""
    width = kept.units.shape[1]
    if width < 32 * UNITS or width % UNITS:
        return kept
    units = np.zeros_like(kept.units)
    for layer, mask in enumerate(kept.units):
        ranked = np.lexsort((-importance.units[layer], ~mask))  # the kept ones first, each by importance
        units[layer, ranked[: round(mask.sum() / UNITS) * UNITS]] = True
    return kept._replace(units=units)


def _mask_gradients(config: BertConfig, head: str, loss_of: HeadLosses) -> Callable[[Params, Batch], Kept]:
    """The compiled `(params, batch) -> gradients of masks on all heads and units`, for batches of labelled rows."""
    model: Any = HEADS[head].model(config)
    shape = config.num_hidden_layers, config.num_attention_heads
    ones = Kept(jnp.ones(shape), jnp.ones((shape[0], config.intermediate_size)))  # type: ignore[arg-type]

    def loss(masks: Kept, params: Params, batch: Batch) -> Any:
        inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        logits = model.apply({"params": masked(params, masks)}, *inputs, score_layers=()).logits
        return jnp.sum(jnp.where(batch.example_mask > 0, loss_of.hard(logits, batch), 0.0))

    return jax.jit(lambda params, batch: jax.grad(loss)(ones, params, batch))


def _importance(gradients: Callable[[Params, Batch], Kept], params: Params, batches: list[Batch]) -> Kept:
    """The diagonal of the Fisher information of the masks: sums of squared gradients of batches."""
    placed = jax.device_put(params)
    total = [np.zeros(1), np.zeros(1)]
    for batch in batches:
        arrays = jax.tree.map(jnp.asarray, batch._replace(teacher_inputs=None, targets=None))
        squares = [np.square(np.asarray(leaf, np.float64)) for leaf in gradients(placed, arrays)]
        total = [sum_ + square for sum_, square in zip(total, squares, strict=True)]
    return Kept(*total)


def masked(params: Params, masks: Any) -> Params:
    """The parameters with masks on the rows of the output projections, that is, on the outputs of heads and units."""
    layer = params["encoder"]["encoder"]["layer"]
    attention, output = layer["attention"], layer["output"]
    kernels = [attention["output"]["dense"]["kernel"], output["dense"]["kernel"]]
    of_heads = masks.heads.repeat(kernels[0].shape[1] // masks.heads.shape[1], axis=1)
    kernels = [kernel * mask[:, :, None] for kernel, mask in zip(kernels, (of_heads, masks.units), strict=True)]
    return _with_kernels(params, *kernels)


def _with_kernels(params: Params, attention_kernel: Any, output_kernel: Any) -> Params:
    layer = params["encoder"]["encoder"]["layer"]
    halves = zip((layer["attention"]["output"], layer["output"]), (attention_kernel, output_kernel), strict=True)
    attention, output = (half | {"dense": half["dense"] | {"kernel": kernel}} for half, kernel in halves)
    layer = layer | {"attention": layer["attention"] | {"output": attention}, "output": output}
    return params | {"encoder": params["encoder"] | {"encoder": {"layer": layer}}}


def _repaired(config: BertConfig, params: Params, sample: Sample, kept: Kept, targets: list[Sums]) -> Params:
    """Parameters whose output projections read only kept heads and units, and are refitted to the target sums."""
    of_heads = np.repeat(kept.heads, config.attention_head_dim, axis=1)

    def fitted(site: Site) -> Params:
        if site.name == "attention_output":
            mask, target = of_heads[site.layer], targets[site.layer].attention
        elif site.name == "output":
            mask, target = kept.units[site.layer], targets[site.layer].feed_forward
        else:
            return site.dense
        kernel = np.where(mask[:, None], site.dense["kernel"], 0.0)
        change, bias = _fit(site.inputs[:, mask], target - site.residual, kernel[mask], site.dense["bias"])
        kernel[mask] = change
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    return walk(config, params, sample, fitted)[0]


def _fit(x: np.ndarray, y: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and bias that predict y [n, o] from x [n, i], by ridge regression towards the current ones.

    The strength of the ridge is the one of RIDGES, or infinity, that is best on held-out tokens.
    """
    if not x.shape[1]:
        return kernel, y.mean(axis=0)
    if len(x) < FEW_TOKENS:
        return kernel, bias
    parts = np.arange(len(x)) * 100 // len(x) % HELD_OUT == 0  # held-out tokens, in whole stretches of text
    rest = y - x @ kernel  # the residual of the current kernel

    def solver(x: np.ndarray, rest: np.ndarray) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
        mean, rest_mean = x.mean(axis=0), rest.mean(axis=0)
        centred = x - mean
        moment = (centred.T @ centred).astype(np.float64) / len(x)
        product = (centred.T @ (rest - rest_mean)).astype(np.float64) / len(x)

        def solve(ridge: float) -> tuple[np.ndarray, np.ndarray]:
            strength = ridge * np.trace(moment) / len(moment) + 1e-12
            change = scipy.linalg.solve(moment + strength * np.eye(len(moment)), product, assume_a="pos")
            return change, rest_mean - mean @ change

        return solve

    errors = {np.inf: float(np.square(rest[parts] - bias).mean())}
    fit = solver(x[~parts], rest[~parts])
    for ridge in RIDGES:
        change, shift = fit(ridge)
        errors[ridge] = float(np.square(rest[parts] - x[parts] @ change - shift).mean())
    best = min(errors, key=lambda ridge: errors[ridge])
    if best == np.inf:
        return kernel, bias
    change, shift = solver(x, rest)(best)
    return kernel + change, shift


def removed(config: BertConfig, params: Params, kept: Kept) -> tuple[BertConfig, Params]:
    """The model with only the kept heads and units. Layers that keep fewer than the largest are padded with zeros."""
    width = config.attention_head_dim
    heads = max(1, int(kept.heads.sum(axis=1).max()))
    units = max(1, int(kept.units.sum(axis=1).max()))
    masks = [np.repeat(kept.heads, width, axis=1), kept.units]
    layer = params["encoder"]["encoder"]["layer"]
    attention = layer["attention"]

    def gathered(leaf: np.ndarray, axis: int, mask: np.ndarray, size: int) -> np.ndarray:
        """The kept entries of each layer on the axis, padded with zeros to `size`.

        If the axis stays as long, the removed entries become zero in their place. So a head that is kept has the
        number that it has in the teacher, and is compared with the teacher's.
        """
        if size == mask.shape[1]:
            shape = [len(mask), *(size if i == axis else 1 for i in range(leaf.ndim - 1))]
            return np.where(mask.reshape(shape), leaf, np.zeros_like(leaf))
        result = []
        for of_layer, mask_of_layer in zip(leaf, mask, strict=True):
            part = np.compress(mask_of_layer, of_layer, axis=axis)
            padding = [(0, size - part.shape[axis]) if i == axis else (0, 0) for i in range(part.ndim)]
            result.append(np.pad(part, padding))
        return np.stack(result)

    projections = {
        name: {
            "kernel": gathered(dense["kernel"], 1, masks[0], heads * width),
            "bias": gathered(dense["bias"], 0, masks[0], heads * width),
        }
        for name, dense in attention["self"].items()
    }
    inner = layer["intermediate"]["dense"]
    inner = {
        "kernel": gathered(inner["kernel"], 1, masks[1], units),
        "bias": gathered(inner["bias"], 0, masks[1], units),
    }
    kernels = (
        gathered(attention["output"]["dense"]["kernel"], 0, masks[0], heads * width),
        gathered(layer["output"]["dense"]["kernel"], 0, masks[1], units),
    )
    layer = layer | {"attention": attention | {"self": projections}, "intermediate": {"dense": inner}}
    params = params | {"encoder": params["encoder"] | {"encoder": {"layer": layer}}}
    head_dim = config.head_dim if heads == config.num_attention_heads else width
    smaller = dataclasses.replace(config, num_attention_heads=heads, head_dim=head_dim, intermediate_size=units)
    return smaller, _with_kernels(params, *kernels)
