"""Pruning of single weights: a share of each dense matrix of the encoder, or all but N of each M consecutive inputs.

Sources: SparseGPT, arXiv 2301.00774; Wanda, arXiv 2306.11695. Embeddings, LayerNorm, biases, pooler and heads do not
change. Weights that are already zero stay zero, and do not count towards the share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import traverse_util

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.calibration import calibration_batches, check_dense, check_whole
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.walk import DENSE, Site, walk
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.parameters import parameter_shapes, resize_vocabulary, unshared
from tinybert_jax.models.sample import Sample
from tinybert_jax.objectives.objective import Objective, acting
from tinybert_jax.settings.compression import Sparse

BLOCK = 128  # number of inputs among which SparseGPT chooses at once
DAMPING = 0.01  # share of the mean diagonal of the inputs' second moments that is added to the diagonal
KERNELS = {name: (*path, "kernel") for name, path in DENSE.items()}  # paths below "layer"


def build(settings: Sparse) -> Method:
    """The method with these settings."""
    checks = functools.partial(check, settings)
    return Method(check=checks, apply=functools.partial(sparse, settings), wrap=keep_zeros, note=note_zeros)


def check(settings: Sparse, config: BertConfig) -> None:
    """Refuse a model whose weights cannot be pruned like this.

    Raises:
        InputError: M of the pattern N:M does not divide the inputs of a matrix, or the model is factorised or
            quantised; zeros are kept in a quantised model too.
    """
    check_dense("sparse", config)
    if settings.pattern is None and settings.share == 0:
        return
    check_whole("sparse", config)
    if settings.pattern is None:
        return
    shapes = kernels_of({"encoder": parameter_shapes(BertModel(config))})
    for name, path in KERNELS.items():
        if (inputs := shapes[path].shape[1]) % settings.group[1]:
            raise InputError(f"pattern {settings.pattern}: {settings.group[1]} does not divide the {inputs} of {name}")


def sparse(settings: Sparse, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """Set single weights of the encoder's dense layers to zero.

    Layers are pruned one after the other, so the inputs of each come from sparse layers. Layers that share parameters
    are measured in the whole model, all layers of a group together.

    Raises:
        InputError: as `check`.
    """
    check(settings, config)
    if settings.pattern is None and settings.share == 0:
        return config, params
    whole = kernels_of(params)
    model = jax.tree.map(np.asarray, resize_vocabulary(params, config.vocab_size))
    sample = Sample.take(calibration_batches(examples, settings.rows))
    repeats = config.num_hidden_layers // config.layer_groups
    moments: dict[tuple[int, str], Any] = {}

    def pruned(site: Site) -> Params:
        return site.dense | {"kernel": sparse_kernel(settings, site.dense["kernel"], _moment(site.inputs))}

    def measured(site: Site) -> Params:
        group = site.layer // repeats, site.name
        moments[group] = moments.get(group, 0.0) + _moment(site.inputs)
        return site.dense

    if repeats == 1:
        return config, with_kernels(params, kernels_of(walk(config, model, sample, pruned)[0]))
    walk(*unshared(config, model), sample, measured)
    kernels = {
        path: np.stack(
            [sparse_kernel(settings, one, moments[i, name]) for i, one in enumerate(np.asarray(whole[path]))]
        )
        for name, path in KERNELS.items()
    }
    return config, with_kernels(params, kernels)


def sparse_kernel(settings: Sparse, kernel: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """The kernel [i, o] after pruning of single weights.

    Args:
        settings: share or pattern, and criterion.
        kernel: the kernel before.
        moment: float64 [i, i]: the sum of x x' over inputs x. "magnitude" does not use it.

    >>> kernel = np.array([[3.0, 0.1], [1.0, 2.0], [0.0, 5.0], [2.0, 0.2]], np.float32)
    >>> sparse_kernel(Sparse(pattern="2:4", criterion="magnitude"), kernel, np.eye(4)).T.tolist()
    [[3.0, 0.0, 0.0, 2.0], [0.0, 2.0, 5.0, 0.0]]
    """
    return CRITERIA[settings.criterion](settings, kernel, moment)


def _wanda(settings: Sparse, kernel: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Remove the weights with the smallest product of weight and input norm, compared within each output."""
    return _without_lowest(settings, kernel, np.abs(kernel) * np.sqrt(np.diag(moment))[:, None], _lowest)


def _magnitude(settings: Sparse, kernel: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Remove the smallest weights, compared within the whole matrix."""
    return _without_lowest(settings, kernel, np.abs(kernel), _lowest_of_all)


def _without_lowest(
    settings: Sparse, kernel: np.ndarray, scores: np.ndarray, lowest: Callable[..., np.ndarray]
) -> np.ndarray:
    free = kernel != 0
    if settings.pattern is not None:
        removed = _outside_pattern(scores, free, *settings.group)
    else:
        removed = lowest(scores, free, settings.share)
    return np.where(removed | ~free, np.float32(0), kernel)


def _moment(inputs: np.ndarray) -> np.ndarray:
    x = inputs.astype(np.float64)
    return x.T @ x


def _sparsegpt(settings: Sparse, kernel: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Remove weights input by input. The weights of later inputs are adjusted to compensate for each removal."""
    free, weights = kernel != 0, kernel.astype(np.float64)
    hessian, size = 2.0 * moment, len(kernel)
    dead = np.diag(hessian) == 0  # inputs that are always 0
    weights[dead] = 0.0
    hessian[dead, dead] = 1.0
    hessian[np.diag_indices(size)] += DAMPING * np.diag(hessian).mean()
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(hessian), np.eye(size))
    upper = scipy.linalg.cholesky((inverse + inverse.T) / 2)
    kept, group = settings.group
    block = max(1, BLOCK // group) * group if group else BLOCK  # a group must not cross blocks
    for first in range(0, size, block):
        last = min(first + block, size)
        of_block, factor = weights[first:last], upper[first:last, first:last]
        diagonal, errors = np.diag(factor)[:, None], np.zeros_like(of_block)
        removed = ~free[first:last]
        if not group:
            removed |= _lowest_of_all(np.square(of_block / diagonal), free[first:last], settings.share)
        for i in range(last - first):
            if group and i % group == 0:
                here = slice(i, i + group)
                scores = np.square(of_block[here] / diagonal[here])
                removed[here] |= _outside_pattern(scores, free[first:last][here], kept, group)
            errors[i] = np.where(removed[i], of_block[i], 0.0) / factor[i, i]
            of_block[i:] -= factor[i, i:, None] * errors[i]
            of_block[i, removed[i]] = 0.0  # removes the rounding error
        weights[last:] -= upper[first:last, last:].T @ errors
    return weights.astype(np.float32)


CRITERIA: dict[str, Callable[[Sparse, np.ndarray, np.ndarray], np.ndarray]] = {
    "sparsegpt": _sparsegpt,
    "wanda": _wanda,
    "magnitude": _magnitude,
}


def _lowest(scores: np.ndarray, free: np.ndarray, share: float) -> np.ndarray:
    """A mask of the entries with the lowest scores: that share of the free entries of each column."""
    order = np.argsort(np.where(free, scores, np.inf), axis=0, kind="stable")
    removed = np.zeros(scores.shape, bool)
    counts = np.round(share * free.sum(axis=0))
    np.put_along_axis(removed, order, np.arange(len(scores))[:, None] < counts, axis=0)
    return removed


def _lowest_of_all(scores: np.ndarray, free: np.ndarray, share: float) -> np.ndarray:
    """As `_lowest`, but over all columns together."""
    return _lowest(scores.reshape(-1, 1), free.reshape(-1, 1), share).reshape(scores.shape)


def _outside_pattern(scores: np.ndarray, free: np.ndarray, kept: int, group: int) -> np.ndarray:
    """A mask of all entries except the `kept` highest of each `group` consecutive entries of a column."""
    grouped = np.where(free, scores, -1.0).reshape(-1, group, scores.shape[1])
    removed = np.zeros(grouped.shape, bool)
    np.put_along_axis(removed, np.argsort(grouped, axis=1, kind="stable")[:, : group - kept], True, axis=1)
    return removed.reshape(scores.shape)


def kernels_of(params: Params) -> dict[tuple[str, ...], Any]:
    """The stacked kernels of the dense layers, by their paths below "layer"."""
    layer = traverse_util.flatten_dict(params["encoder"]["encoder"]["layer"])
    return {path: layer[path] for path in KERNELS.values()}


def with_kernels(params: Params, kernels: Mapping[tuple[str, ...], Any]) -> Params:
    """The parameters with these kernels in place of those of `kernels_of`."""
    encoder = params["encoder"]
    layer = traverse_util.unflatten_dict(traverse_util.flatten_dict(encoder["encoder"]["layer"]) | kernels)
    return params | {"encoder": encoder | {"encoder": encoder["encoder"] | {"layer": layer}}}


def keep_zeros(objective: Objective, config: BertConfig, examples: Examples) -> Objective:
    """The objective with zeros fixed: weights that are zero at the start of a stage stay zero."""

    def masks(trainable: Params) -> Any:
        flat = {path: (kernel != 0).astype(np.float32) for path, kernel in kernels_of(trainable).items()}
        return traverse_util.unflatten_dict(flat)

    def masked(params: Params, state: Any) -> Params:
        kernels, masks = kernels_of(params), traverse_util.flatten_dict(state)
        # numpy arrays stay numpy arrays
        where = np.where if isinstance(next(iter(kernels.values())), np.ndarray) else jnp.where
        kept = {path: where(masks[path] > 0, kernel, np.float32(0)) for path, kernel in kernels.items()}
        return with_kernels(params, kept)

    return acting(objective, Sparse.name, masks, masked)


def note_zeros(config: BertConfig, params: Params) -> str:
    """A note about the share of zero weights, and its use."""
    kernels = [np.asarray(kernel) for kernel in kernels_of(params).values()]
    zeros = 1 - sum(np.count_nonzero(kernel) for kernel in kernels) / sum(kernel.size for kernel in kernels)
    return f"{zeros:.1%} of the weights of the encoder's dense layers are zero; smaller when packed, not faster"
