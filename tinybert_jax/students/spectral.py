"""The spectral start of a student: its teacher, written on the principal directions of the teacher's own states.

One part of the student after the other is fitted to what the teacher computes on a sample of text, each on what the
parts before it really give: in closed form, by least squares and singular values. Nothing in it is random.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.layers import ACTIVATIONS, Attention, SelfAttention, position_ids
from tinybert_jax.settings.objectives import LayerMap, teacher_layers

SAMPLE_TOKENS = 16_384  # a sample ends here: ten times the rows that the largest fit needs
RIDGE = 1e-2  # of the mean variance of what is fitted from


@dataclass(frozen=True, eq=False)
class _Sample:
    """Batches of text, and the way between what is computed per batch and one row per real token."""

    batches: list[Batch]
    masks: list[np.ndarray]  # bool [b, q]

    @classmethod
    def take(cls, batches: Iterable[Batch]) -> _Sample:
        taken: list[Batch] = []
        masks: list[np.ndarray] = []
        for batch in batches:
            taken.append(batch)
            masks.append(np.asarray(batch.attention_mask) > 0)
            if sum(mask.sum() for mask in masks) >= SAMPLE_TOKENS:
                break
        return cls(taken, masks)

    def tokens(self, arrays: Iterable[Any]) -> np.ndarray:
        """Per batch [b, q, ...] -> float64 [n, ...]."""
        pairs = zip(arrays, self.masks, strict=True)
        return np.concatenate([np.asarray(array)[mask] for array, mask in pairs]).astype(np.float64)

    def batched(self, tokens: np.ndarray) -> list[np.ndarray]:
        """[n, d] -> float32 per batch [b, q, d], 0 on padding."""
        parts = np.split(tokens, np.cumsum([mask.sum() for mask in self.masks])[:-1])
        arrays = [np.zeros((*mask.shape, tokens.shape[1]), np.float32) for mask in self.masks]
        for array, mask, part in zip(arrays, self.masks, parts, strict=True):
            array[mask] = part
        return arrays


def spectral_start(
    student: BertConfig, teacher: BertConfig, teacher_params: Params, batches: Iterable[Batch], layer_map: LayerMap
) -> Params:
    """`{"encoder": {"embeddings", "encoder"}, "projections"}`, fitted to the teacher's states on a sample of text.

    The student's state m is to be H B, with H the teacher's state g(m) and B the basis of the d - 1 principal
    directions of all mapped states, turned so that the coordinates of a token add up to 0, as LayerNorm makes them.
    Attention scores are the best of the student's head width that the sample allows (a singular value decomposition,
    head by head); of the feed-forward neurons those stay that move the teacher's output most.

    Raises:
        InputError: the numbers of heads differ, the student is wider than the teacher, the layer map does not fit, or
            the sample holds too few tokens.
    """
    check_narrower(student, teacher)
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    sample = _Sample.take(batches)
    if sum(mask.sum() for mask in sample.masks) < needed_tokens(student):
        raise InputError("start 'spectral' needs more text: the sample has fewer tokens than twice the hidden_size")
    bert = jax.device_put({name: teacher_params["encoder"][name] for name in ("embeddings", "encoder")})
    states = _teacher_states(teacher, bert, sorted({0, *mapped, *(g - 1 for g in mapped)}), sample)
    targets = [sample.tokens(states[g]) for g in (0, *mapped)]
    basis = _basis(targets, student.hidden_size)
    attend = jax.jit(lambda params, x, mask: Attention(teacher).apply({"params": params}, x, mask, True)[0])
    embeddings, x = _fit_embeddings(teacher, bert["embeddings"], targets[0], basis, sample)
    found, layers = [x], []
    for g, target in zip(mapped, targets[1:], strict=True):
        params = jax.tree.map(lambda leaf, g=g: np.asarray(leaf[g - 1]), bert["encoder"]["layer"])
        inputs = zip(states[g - 1], sample.masks, strict=True)
        middle = sample.tokens(attend(params["attention"], h, mask) for h, mask in inputs)
        before = sample.tokens(states[g - 1])
        attention, x = _fit_attention(student, params["attention"], x, before, middle, basis, sample)
        feed_forward, x = _fit_feed_forward(student, params, x, middle, target, basis)
        layers.append({"attention": attention} | feed_forward)
        found.append(x)
    projections = {
        "embedding": {"kernel": _least_squares(found[0], targets[0])},
        "hidden": {"kernel": _least_squares(np.concatenate(found[1:]), np.concatenate(targets[1:]))},
    }
    encoder = {"layer": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    result = {"encoder": {"embeddings": embeddings, "encoder": encoder}, "projections": projections}
    return _float32(result)


def needed_tokens(student: BertConfig) -> int:
    """Tokens that a sample must have."""
    return 2 * student.hidden_size


def check_narrower(student: BertConfig, teacher: BertConfig) -> None:
    """Refuse a student that cannot be a teacher on few directions.

    Raises:
        InputError: the numbers of heads differ, or the student is wider than the teacher.
    """
    if student.num_attention_heads != teacher.num_attention_heads:
        raise InputError(
            f"start 'spectral' needs equal num_attention_heads: the student has {student.num_attention_heads}, the"
            f" teacher {teacher.num_attention_heads}"
        )
    for name in ("hidden_size", "attention_head_dim", "intermediate_size"):
        own, other = getattr(student, name), getattr(teacher, name)
        if own > other:
            raise InputError(f"start 'spectral' needs a narrower student: its {name} is {own}, the teacher's {other}")


def _teacher_states(
    teacher: BertConfig, bert: Params, layers: list[int], sample: _Sample
) -> dict[int, list[np.ndarray]]:
    """The teacher's hidden states after `layers`, 0 being the embeddings: per batch float32 [b, q, d]."""
    model = BertModel(teacher, add_pooler=False)

    @jax.jit
    def run(params: Params, *inputs: Array) -> Array:
        out: Any = model.apply({"params": params}, *inputs, score_layers=())
        return out.hidden_states

    states: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for batch in sample.batches:
        found = run(bert, *(jnp.asarray(array) for array in batch[:3]))
        for layer in layers:
            states[layer].append(np.asarray(found[layer]))
    return states


def _basis(states: list[np.ndarray], width: int) -> np.ndarray:
    """The principal directions of states [n, d], not centred, as projections have no bias -> [d, width].

    Its columns span width - 1 directions and add up to 0.
    """
    moment = sum(x.T @ x / len(x) for x in states)
    _, vectors = np.linalg.eigh(moment)
    principal = vectors[:, ::-1][:, : width - 1]
    principal = principal * _signs(principal)
    # rows of the cosine transform but the first, the constant, share the energy out among all coordinates
    return principal @ scipy.fft.dct(np.eye(width), axis=0, norm="ortho")[1:]


def _fit_embeddings(
    teacher: BertConfig, params: Params, target: np.ndarray, basis: np.ndarray, sample: _Sample
) -> tuple[Params, np.ndarray]:
    """The tables in the basis, each word as the teacher's LayerNorm scales it; and what they give [n, d]."""
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    words, positions, types = (np.asarray(params[name]["embedding"], np.float64) for name in names)
    norm = {name: np.asarray(leaf, np.float64) for name, leaf in params["LayerNorm"].items()}
    ids = sample.tokens(batch.input_ids for batch in sample.batches).astype(int)
    segments = sample.tokens(batch.token_type_ids for batch in sample.batches).astype(int)
    at = sample.tokens(position_ids(teacher, batch.input_ids) for batch in sample.batches).astype(int)
    # the deviation of a sum is mostly its word's; the word's own table can be divided by it, the others by its mean
    deviation = (words + positions[at].mean(0) + types[segments].mean(0)).std(axis=1, keepdims=True)
    shared = deviation[ids].mean()
    tables = [
        (words / deviation * norm["scale"]) @ basis,
        (positions / shared * norm["scale"]) @ basis,
        (types / shared * norm["scale"] + norm["bias"]) @ basis,
    ]
    x = tables[0][ids] + tables[1][at] + tables[2][segments]
    layer_norm, x = _fit_layer_norm(x, target @ basis)
    return {name: {"embedding": table} for name, table in zip(names, tables, strict=True)} | layer_norm, x


def _fit_attention(
    student: BertConfig,
    params: Params,
    x: np.ndarray,
    before: np.ndarray,
    middle: np.ndarray,
    basis: np.ndarray,
    sample: _Sample,
) -> tuple[Params, np.ndarray]:
    """The attention half of a layer on the student's states `x` [n, d]; and what it gives.

    `before` and `middle` are the teacher's states before and after its own half, `params` that half's.
    """
    heads, width = student.num_attention_heads, student.attention_head_dim
    read = _affine(x, before)
    ones = np.append(x, np.ones((len(x), 1)), axis=1)
    moment = ones.T @ ones / len(x)
    values, vectors = np.linalg.eigh(moment + 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment)))
    # in the coordinates root @ weights, a squared error of weights is one of what they give on the sample
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))

    def project(name: str) -> np.ndarray:
        kernel, bias = params["self"][name]["kernel"], params["self"][name]["bias"]
        return _then(read, kernel, bias).reshape(len(ones[0]), heads, -1)

    query, key, value = project("query"), project("key"), project("value")
    out = np.asarray(params["output"]["dense"]["kernel"], np.float64).reshape(heads, -1, len(basis)) @ basis
    scale = np.sqrt(width / query.shape[-1])  # either side divides its scores by the root of its own width
    weights: dict[str, list[np.ndarray]] = {"query": [], "key": [], "value": []}
    for h in range(heads):
        left, right = _factors(root @ query[:, h] @ key[:, h].T @ root * scale, width)
        weights["query"].append(inverse @ left)
        weights["key"].append(inverse @ right)
        weights["value"].append(inverse @ _factors(root @ value[:, h] @ out[h], width)[0])
    attention = {name: _linear(np.concatenate(parts, axis=1)) for name, parts in weights.items()}
    attend = jax.jit(lambda params, x, mask: SelfAttention(student).apply({"params": params}, x, mask, True)[0])
    own = _float32(attention)
    inputs = zip(sample.batched(x), sample.masks, strict=True)
    context = sample.tokens(attend(own, states, mask) for states, mask in inputs)
    target = middle @ basis
    dense = _affine(context, target - x)
    layer_norm, x = _fit_layer_norm(x + _apply(dense, context), target)
    return {"self": attention, "output": {"dense": _linear(dense)} | layer_norm}, x


def _fit_feed_forward(
    student: BertConfig, params: Params, x: np.ndarray, middle: np.ndarray, target: np.ndarray, basis: np.ndarray
) -> tuple[Params, np.ndarray]:
    """The feed-forward half of a layer on the student's states `x` [n, d]; and what it gives.

    `middle` and `target` are the teacher's states before and after its own half, `params` its layer's.
    """
    inner, outer = params["intermediate"]["dense"], params["output"]["dense"]
    widen = _then(_affine(x, middle), inner["kernel"], inner["bias"])
    activation = ACTIVATIONS[student.hidden_act]
    neurons = np.asarray(activation(jnp.asarray(_apply(widen, x), jnp.float32)), np.float64)
    effect = neurons.var(axis=0) * np.square(outer["kernel"] @ basis).sum(axis=1)
    kept = np.sort(np.argsort(-effect, kind="stable")[: student.intermediate_size])
    dense = _affine(neurons[:, kept], target @ basis - x)
    layer_norm, x = _fit_layer_norm(x + _apply(dense, neurons[:, kept]), target @ basis)
    return {"intermediate": {"dense": _linear(widen[:, kept])}, "output": {"dense": _linear(dense)} | layer_norm}, x


def _fit_layer_norm(x: np.ndarray, target: np.ndarray) -> tuple[Params, np.ndarray]:
    """Scale and bias that bring normalised x [n, d] nearest to the target; and what they give."""
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    centred = x - x.mean(axis=0)
    scale = (centred * target).mean(axis=0) / np.square(centred).mean(axis=0)
    bias = target.mean(axis=0) - scale * x.mean(axis=0)
    return {"LayerNorm": {"scale": scale, "bias": bias}}, x * scale + bias


def _least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel [d, e] of y [n, e] from x [n, d], by ridge regression, as dropout shakes all of x."""
    moment = x.T @ x / len(x)
    ridge = RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    return scipy.linalg.solve(moment + ridge, x.T @ y / len(x), assume_a="pos")


def _affine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel and, as the last row, bias [d + 1, e] of y [n, e] from x [n, d], by ridge regression."""
    mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    moment = (x - mean).T @ (x - mean) / len(x)
    ridge = RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    kernel = scipy.linalg.solve(moment + ridge, (x - mean).T @ (y - y_mean) / len(x), assume_a="pos")
    return np.append(kernel, (y_mean - mean @ kernel)[None], axis=0)


def _apply(affine: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ affine[:-1] + affine[-1]


def _then(affine: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One affine map after another."""
    result = affine @ np.asarray(kernel, np.float64)
    result[-1] += bias
    return result


def _linear(affine: np.ndarray) -> Params:
    return {"kernel": affine[:-1], "bias": affine[-1]}


def _factors(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """left @ right.T, the best approximation of a matrix in that rank, of equal norms."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    signs = _signs(left[:, :rank])
    return left[:, :rank] * signs * root, right[:rank].T * signs * root


def _signs(vectors: np.ndarray) -> np.ndarray:
    """The sign of each column's largest entry: what is arbitrary in a decomposition, decided."""
    return np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
