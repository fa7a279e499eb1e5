"""Low-rank factorisation of dense layers, whitened by their inputs, and of the word table, weighted by frequency.

Sources: DRONE (Chen et al., NeurIPS 2021) and SVD-LLM (arXiv 2403.07378) for the whitening; Acharya et al., arXiv
1811.00641, for tables.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import scipy.fft

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.calibration import calibration_batches, check_whole, id_counts
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.walk import DENSE, Site, at, replaced, walk
from tinybert_jax.models.config import BertConfig, Ranks
from tinybert_jax.models.families import FAMILIES
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import resize_vocabulary, unshared
from tinybert_jax.models.sample import Sample
from tinybert_jax.settings.compression import LowRank

RIDGE = 1e-6  # added to the inputs' second moments, relative to their mean
MULTIPLE = 8  # large ranks are rounded down to a multiple of this


def build(settings: LowRank) -> Method:
    """The method with these settings."""
    return Method(check=functools.partial(check_whole, "low rank"), apply=functools.partial(factorise, settings))


def factorise(settings: LowRank, config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """Replace dense layers and the word table by low-rank factors.

    Every matrix of the layers keeps the same share. Ranks chosen by marginal gain over all matrices were worse on
    SST-2.

    Args:
        settings: the shares of the parameters that are left.
        config: the model's config.
        params: the model's parameters.
        examples: training rows, on which the inputs of the layers are measured.

    Returns:
        The model, with `ranks` in its config.

    Raises:
        InputError: the model is factorised already, or quantised.
    """
    check_whole("low rank", config)
    model = jax.tree.map(np.asarray, params)
    ranks: dict[str, int] = {}
    if settings.words is not None:
        table = model["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        counts = id_counts(examples, len(table))  # the table may be padded beyond the vocabulary
        ranks["word_embeddings"], model = _factorise_words(settings.words, model, counts)
    if settings.dense is not None:
        of_dense, layer = _factorise_dense(settings, config, params, examples)
        ranks |= of_dense
        model = model | {"encoder": model["encoder"] | {"encoder": model["encoder"]["encoder"] | {"layer": layer}}}
    model_type = _with_low_rank_words(config, params) if settings.dense is None else config.model_type
    return dataclasses.replace(config, ranks=Ranks(**ranks), model_type=model_type), model


def _with_low_rank_words(config: BertConfig, params: Params) -> str:
    """The `model_type` whose class in `transformers` has a word table of low rank; the same if there is none."""
    model_type = config.family.low_rank_words
    if model_type is None or not config.loads_in_transformers:
        return config.model_type
    has_other_head = any(HEADS[head].key in params for head in FAMILIES[model_type].other_heads)
    return config.model_type if has_other_head else model_type


def _factorise_words(share: float, params: Params, counts: np.ndarray) -> tuple[int, Params]:
    """The rank, and the parameters with a factorised word table. Frequent words get a higher weight."""
    embeddings = params["encoder"]["embeddings"]
    table = np.asarray(embeddings["word_embeddings"]["embedding"], np.float64)
    rank = max(1, int(share * table.size / sum(table.shape)))
    weights = np.sqrt(counts + 1.0)[:, None]
    moment = (weights * table).T @ (weights * table)
    basis = np.linalg.eigh(moment)[1][:, ::-1][:, :rank]  # [d, r]
    embeddings = embeddings | {
        "word_embeddings": {"embedding": (table @ basis).astype(np.float32)},
        "word_embeddings_projection": {
            "kernel": np.ascontiguousarray(basis.T, np.float32),
            "bias": np.zeros(len(basis), np.float32),
        },
    }
    return rank, params | {"encoder": params["encoder"] | {"embeddings": embeddings}}


def _factorise_dense(
    settings: LowRank, config: BertConfig, params: Params, examples: Examples
) -> tuple[dict[str, int], Params]:
    """The rank of each dense layer, by name, and the stacked layers with factors."""
    share = settings.dense
    assert share is not None
    moments = _moments(settings, config, params, examples)
    layers, ranks = params["encoder"]["encoder"]["layer"], {}
    for name, path in DENSE.items():
        dense = at(layers, path)
        kernels = np.asarray(dense["kernel"])
        ranks[name] = _rank(share, kernels.shape[1:])
        pairs = [
            _decompose(kernel, of_layer, ranks[name]) for kernel, of_layer in zip(kernels, moments[name], strict=True)
        ]
        down, up = (np.stack(matrices).astype(np.float32) for matrices in zip(*pairs, strict=True))
        new = {"down": {"kernel": down}, "up": {"kernel": up, "bias": np.asarray(dense["bias"])}}
        layers = replaced(layers, path, new)
    return ranks, layers


def _rank(share: float, shape: tuple[int, ...]) -> int:
    """The rank at which factors have that share of a matrix's parameters. Large ranks are multiples of MULTIPLE."""
    rank = share * np.prod(shape) / sum(shape)
    return max(1, int(rank) if rank < 4 * MULTIPLE else int(rank // MULTIPLE) * MULTIPLE)


def _moments(settings: LowRank, config: BertConfig, params: Params, examples: Examples) -> dict[str, list[np.ndarray]]:
    """The second moments [i, i] of the inputs of every dense layer, by name, summed over layers that are shared."""
    alone, model = unshared(config, jax.tree.map(np.asarray, resize_vocabulary(params, config.vocab_size)))
    sample = Sample.take(calibration_batches(examples, settings.rows))
    repeats = config.num_hidden_layers // config.layer_groups
    moments: dict[str, list[Any]] = {name: [0.0] * config.layer_groups for name in DENSE}

    def measure(site: Site) -> Params:
        group, read = site.layer // repeats, site.inputs
        moments[site.name][group] = moments[site.name][group] + (read.T @ read).astype(np.float64)
        return site.dense

    walk(alone, model, sample, measure)
    return moments


def _decompose(kernel: np.ndarray, moment: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors [i, rank] and [rank, o] that change the outputs least, for inputs with this second moment.

    Rows and columns of zeros, which pad a pruned layer, stay zeros.
    """
    rows, columns = np.any(kernel != 0, axis=1), np.any(kernel != 0, axis=0)
    down, up = np.zeros((len(rows), rank)), np.zeros((rank, len(columns)))
    if rows.any():
        read = moment[np.ix_(rows, rows)]
        eigenvalues, vectors = np.linalg.eigh(read)
        root = np.sqrt(np.maximum(eigenvalues, 0.0) + RIDGE * np.trace(read) / len(read) + 1e-12)
        # E^1/2 V' whitens; its inverse is V E^-1/2
        u, s, v = np.linalg.svd(root[:, None] * (vectors.T @ kernel[np.ix_(rows, columns)]), full_matrices=False)
        count = min(rank, len(s))
        # the rotation spreads the singular values over all ranks, so that int8 does not mix large and small values
        scale = np.sqrt(s[:count])[:, None] * scipy.fft.dct(np.eye(count), norm="ortho")
        down[rows, :count] = (vectors / root) @ u[:, :count] @ scale
        up[:count, columns] = scale.T @ v[:count]
    return down, up
