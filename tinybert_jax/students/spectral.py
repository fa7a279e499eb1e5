"""The spectral start of a student: the teacher projected onto the principal components of its hidden states.

The parts of the student are fitted one after another to the teacher's states on a sample of text. The input of each
part is the output of the parts before it. The fits are closed-form (least squares, singular values), and nothing is
random.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from tinybert_jax.models.relative import position_bias
from tinybert_jax.models.sample import Sample
from tinybert_jax.settings.objectives import LayerMap, teacher_layers

PROJECTION = "embedding_hidden_mapping_in"
RIDGE = 1e-2  # relative to the mean variance of the regressors


def spectral_start(
    student: BertConfig, teacher: BertConfig, teacher_params: Params, batches: Iterable[Batch], layer_map: LayerMap
) -> Params:
    """`{"encoder": {"embeddings", "encoder"}, "projections"}`, fitted to the teacher's states on a sample of text.

    The target of the student's state m is H B. H is the teacher's state g(m). B is a basis of the d - 1 principal
    directions of all mapped states, rotated so that the coordinates of a token add up to 0, as after LayerNorm. The
    attention scores of each head are approximated with the student's head width by a singular value decomposition,
    which is optimal on the sample. The feed-forward neurons that change the teacher's output most are kept.

    Raises:
        InputError: the numbers of heads differ, the student is wider than the teacher, the layer map does not fit, or
            the sample has too few tokens.
    """
    check_narrower(student, teacher)
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    sample = Sample.take(batches)
    if sum(mask.sum() for mask in sample.masks) < needed_tokens(student):
        raise InputError("start 'spectral' needs more text: the sample has fewer tokens than twice the hidden_size")
    bert = jax.device_put({name: teacher_params["encoder"][name] for name in ("embeddings", "encoder")})
    states = _teacher_states(teacher, bert, sorted({0, *mapped, *(g - 1 for g in mapped)}), sample)
    targets = [sample.tokens(states[g]) for g in (0, *mapped)]
    basis = _basis(targets, student.hidden_size)
    attend = jax.jit(
        lambda params, x, mask: Attention(teacher).apply(
            {"params": params}, x, mask, position_bias(teacher, bert, x.shape[1]), True
        )[0]
    )
    embeddings, x = _fit_embeddings(teacher, bert["embeddings"], targets[0], basis, sample)
    student_states, layers = [x], []
    for g, target in zip(mapped, targets[1:], strict=True):
        params = jax.tree.map(lambda leaf, g=g: np.asarray(leaf[g - 1]), bert["encoder"]["layer"])
        inputs = zip(states[g - 1], sample.masks, strict=True)
        middle = sample.tokens(attend(params["attention"], h, mask) for h, mask in inputs)
        teacher_input = sample.tokens(states[g - 1])
        attention, x = _fit_attention(student, bert, params["attention"], x, teacher_input, middle, basis, sample)
        feed_forward, x = _fit_feed_forward(student, params, x, middle, target, basis)
        layers.append({"attention": attention} | feed_forward)
        student_states.append(x)
    projections = {
        "embedding": {"kernel": _least_squares(student_states[0], targets[0])},
        "hidden": {"kernel": _least_squares(np.concatenate(student_states[1:]), np.concatenate(targets[1:]))},
    }
    # the relative position bias is the teacher's
    encoder = bert["encoder"] | {"layer": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    result = {"encoder": {"embeddings": embeddings, "encoder": encoder}, "projections": projections}
    return _float32(result)


def needed_tokens(student: BertConfig) -> int:
    """The number of tokens that a sample must have."""
    return 2 * student.hidden_size


def check_narrower(student: BertConfig, teacher: BertConfig) -> None:
    """Refuse a student that is not a projection of the teacher.

    Raises:
        InputError: the numbers of heads differ, the student is wider than the teacher, or layers share parameters.
    """
    if student.family.shares_layers or teacher.family.shares_layers:
        raise InputError("start 'spectral' fits layers one by one, and those of an ALBERT share parameters")
    widths = [config.embedding_width for config in (student, teacher) if config.projects_embeddings]
    if widths and widths != [teacher.embedding_width] * 2:
        sizes = f"the student has {student.embedding_width} in {student.hidden_size}"
        sizes += f", the teacher {teacher.embedding_width} in {teacher.hidden_size}"
        raise InputError(f"start 'spectral' needs equal embedding_size, other than hidden_size in both: {sizes}")
    if (heads := teacher.num_attention_heads) != student.num_attention_heads:
        width = max(1, round(student.hidden_size / heads)) * heads
        advice = f"; a student {width} wide could take its start" if width != student.hidden_size else ""
        raise InputError(
            f"start 'spectral' needs equal num_attention_heads: the student has {student.num_attention_heads}, the"
            f" teacher {heads}{advice}"
        )
    for name in ("hidden_size", "attention_head_dim", "intermediate_size"):
        student_size, teacher_size = getattr(student, name), getattr(teacher, name)
        if student_size > teacher_size:
            sizes = f"its {name} is {student_size}, the teacher's {teacher_size}"
            raise InputError(f"start 'spectral' needs a narrower student: {sizes}")


def _teacher_states(
    teacher: BertConfig, bert: Params, layers: list[int], sample: Sample
) -> dict[int, list[np.ndarray]]:
    """The teacher's hidden states after `layers`, where 0 is the embeddings: float32 [b, q, d] per batch."""
    model = BertModel(teacher, add_pooler=False)

    @jax.jit
    def run(params: Params, *inputs: Array) -> Array:
        out: Any = model.apply({"params": params}, *inputs, score_layers=())
        return out.hidden_states

    from tqdm import tqdm

    states: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for batch in tqdm(sample.batches, desc="spectral start: teacher", unit="batch", delay=2):
        hidden_states = run(bert, *(jnp.asarray(array) for array in batch[:3]))
        for layer in layers:
            states[layer].append(np.asarray(hidden_states[layer]))
    return states


def _basis(states: list[np.ndarray], width: int) -> np.ndarray:
    """A basis [d, width] of the principal directions of states [n, d].

    Its columns span width - 1 directions and add up to 0. States are not centred, because projections have no bias.
    """
    moment = sum(x.T @ x / len(x) for x in states)
    _, vectors = np.linalg.eigh(moment)
    principal = vectors[:, ::-1][:, : width - 1]
    principal = principal * _signs(principal)
    # the cosine transform without its first row, the constant, spreads the energy over all coordinates
    return principal @ scipy.fft.dct(np.eye(width), axis=0, norm="ortho")[1:]


def _fit_embeddings(
    teacher: BertConfig, params: Params, target: np.ndarray, basis: np.ndarray, sample: Sample
) -> tuple[Params, np.ndarray]:
    """The embedding tables in the basis, with words scaled as by the teacher's LayerNorm, and their output [n, d].

    If a dense layer projects the teacher's embeddings, only this layer is multiplied by the basis.
    """
    if teacher.projects_embeddings:
        dense = {name: np.asarray(leaf, np.float64) @ basis for name, leaf in params[PROJECTION].items()}
        return params | {PROJECTION: dense}, target @ basis
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    if names[2] not in params:  # a teacher without token types: both are 0
        params = params | {names[2]: {"embedding": np.zeros((2, teacher.hidden_size))}}
    words, positions, types = (np.asarray(params[name]["embedding"], np.float64) for name in names)
    norm = {name: np.asarray(leaf, np.float64) for name, leaf in params["LayerNorm"].items()}
    ids = sample.tokens(batch.input_ids for batch in sample.batches).astype(int)
    segments = sample.tokens(batch.token_type_ids for batch in sample.batches).astype(int)
    at = sample.tokens(position_ids(teacher, batch.input_ids) for batch in sample.batches).astype(int)
    # LayerNorm divides by the standard deviation of the sum, which is mostly that of the word embedding. So the word
    # table is divided by each word's deviation, and the other tables by the mean deviation.
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
    bert: Params,
    params: Params,
    x: np.ndarray,
    teacher_input: np.ndarray,
    middle: np.ndarray,
    basis: np.ndarray,
    sample: Sample,
) -> tuple[Params, np.ndarray]:
    """The attention half of a layer, fitted on the student's states `x` [n, d], and its output.

    `teacher_input` and `middle` are the teacher's states before and after its attention half, whose parameters are
    `params`.
    """
    heads, width = student.num_attention_heads, student.attention_head_dim
    read = _affine(x, teacher_input)
    ones = np.append(x, np.ones((len(x), 1)), axis=1)
    moment = ones.T @ ones / len(x)
    values, vectors = np.linalg.eigh(moment + 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment)))
    # the squared error of root @ weights is the squared error of the outputs on the sample
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))

    def project(name: str) -> np.ndarray:
        kernel, bias = params["self"][name]["kernel"], params["self"][name]["bias"]
        return _then(read, kernel, bias).reshape(len(ones[0]), heads, -1)

    query, key, value = project("query"), project("key"), project("value")
    out = np.asarray(params["output"]["dense"]["kernel"], np.float64).reshape(heads, -1, len(basis)) @ basis
    scale = np.sqrt(width / query.shape[-1])  # student and teacher divide scores by the root of their head widths
    weights: dict[str, list[np.ndarray]] = {"query": [], "key": [], "value": []}
    for h in range(heads):
        left, right = _factors(root @ query[:, h] @ key[:, h].T @ root * scale, width)
        weights["query"].append(inverse @ left)
        weights["key"].append(inverse @ right)
        weights["value"].append(inverse @ _factors(root @ value[:, h] @ out[h], width)[0])
    attention = {name: _linear(np.concatenate(parts, axis=1)) for name, parts in weights.items()}
    attend = jax.jit(
        lambda params, x, mask: SelfAttention(student).apply(
            {"params": params}, x, mask, position_bias(student, bert, x.shape[1]), True
        )[0]
    )
    attention_params = _float32(attention)
    inputs = zip(sample.batched(x), sample.masks, strict=True)
    context = sample.tokens(attend(attention_params, states, mask) for states, mask in inputs)
    target = middle @ basis
    dense = _affine(context, target - x)
    layer_norm, x = _fit_layer_norm(x + _apply(dense, context), target)
    return {"self": attention, "output": {"dense": _linear(dense)} | layer_norm}, x


def _fit_feed_forward(
    student: BertConfig, params: Params, x: np.ndarray, middle: np.ndarray, target: np.ndarray, basis: np.ndarray
) -> tuple[Params, np.ndarray]:
    """The feed-forward half of a layer, fitted on the student's states `x` [n, d], and its output.

    `middle` and `target` are the teacher's states before and after its feed-forward half. `params` are the parameters
    of the teacher's layer.
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
    """The scale and bias with which normalised x [n, d] is nearest to the target, and the output with them."""
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    centred = x - x.mean(axis=0)
    scale = (centred * target).mean(axis=0) / np.square(centred).mean(axis=0)
    bias = target.mean(axis=0) - scale * x.mean(axis=0)
    return {"LayerNorm": {"scale": scale, "bias": bias}}, x * scale + bias


def _least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel [d, e] that predicts y [n, e] from x [n, d]. Ridge regression, because dropout perturbs x."""
    moment = x.T @ x / len(x)
    ridge = RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    return scipy.linalg.solve(moment + ridge, x.T @ y / len(x), assume_a="pos")


def _affine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel and, in the last row, bias [d + 1, e] that predict y [n, e] from x [n, d], by ridge regression."""
    mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    kernel = _least_squares(x - mean, y - y_mean)
    return np.append(kernel, (y_mean - mean @ kernel)[None], axis=0)


def _apply(affine: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ affine[:-1] + affine[-1]


def _then(affine: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The affine map that applies `affine`, then `kernel` and `bias`."""
    result = affine @ np.asarray(kernel, np.float64)
    result[-1] += bias
    return result


def _linear(affine: np.ndarray) -> Params:
    return {"kernel": affine[:-1], "bias": affine[-1]}


def _factors(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of equal norm whose product left @ right.T is the best approximation of the matrix with that rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    signs = _signs(left[:, :rank])
    return left[:, :rank] * signs * root, right[:rank].T * signs * root


def _signs(vectors: np.ndarray) -> np.ndarray:
    """The sign of each column's largest entry. It makes decompositions unique, whose signs are arbitrary."""
    return np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
