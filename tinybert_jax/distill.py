"""What each stage minimises: layer maps, projections, and objectives as pairs of `targets` and `loss`.

Source: TinyBERT, arXiv 1909.10351, section 3; the preset `official` follows the arithmetic of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.config import Batch, BertConfig, Head, Hyper, InputError, LayerMap, Params, Preset
from tinybert_jax.model import HEADS, BertModel, BertOutput, MaskedLMHead

Metrics = dict[str, Float[Array, ""]]
PROJECTIONS = ("fit_dense", "fit_denses", "projections")  # beside a student's parameters, those of its hidden states
MASKED_SHARE = 4  # a quarter of a sequence's positions reach the masked-LM decoder


class Objective(NamedTuple):
    """What a stage minimises, as pure functions. `key` drives the student's dropout; None switches it off.

    targets(teacher_params, batch) -> pytree: only what `loss` reads, under no gradient.
    loss(trainable, targets, batch, hyper, key) -> (scalar, metrics): a mean over the batch's real examples.
    init(key, student_params) -> trainable: the parameters that `loss` reaches, and new projections where it has any.
    export(trainable, student_params) -> student_params with the trained leaves in their places, projections left out.
    """

    targets: Callable[[Params, Batch], Any]
    loss: Callable[[Params, Any, Batch, Hyper, PRNGKeyArray | None], tuple[Float[Array, ""], Metrics]]
    init: Callable[[PRNGKeyArray, Params], Params]
    export: Callable[[Params, Params], Params]


def teacher_layers(layer_map: LayerMap, student_depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The layer map g(1), ..., g(M): which teacher layer, counted from 1, each student layer learns from.

    Args:
        layer_map: "uniform": g(m) = m N / M, rounded to the nearest layer where M does not divide N; "top": the last M
            layers; "bottom": the first M; or g itself. Where M > N, layers repeat.
        student_depth: M.
        teacher_depth: N.

    Raises:
        InputError: an explicit map has another length than M, or names a layer outside 1..N.

    >>> teacher_layers("uniform", 4, 12), teacher_layers("uniform", 4, 6)
    ((3, 6, 9, 12), (2, 3, 5, 6))
    >>> teacher_layers("top", 2, 6), teacher_layers("bottom", 2, 6)
    ((5, 6), (1, 2))
    """
    m_layers = range(1, student_depth + 1)
    match layer_map:
        case "uniform":
            # in integers, halves go up: the same on every machine
            return tuple(max(1, (2 * m * teacher_depth + student_depth) // (2 * student_depth)) for m in m_layers)
        case "top":
            return tuple(max(1, teacher_depth - student_depth + m) for m in m_layers)
        case "bottom":
            return tuple(min(m, teacher_depth) for m in m_layers)
        case str():
            raise InputError(f"unknown layer map {layer_map!r}; use uniform, top, bottom or a list of teacher layers")
    if len(layer_map) != student_depth:
        raise InputError(f"the layer map {layer_map} names {len(layer_map)} layers; the student has {student_depth}")
    if not all(1 <= g <= teacher_depth for g in layer_map):
        raise InputError(f"the layer map {layer_map} must name teacher layers from 1 to {teacher_depth}")
    return tuple(layer_map)


def transformer_objective(
    student: BertConfig, teacher: BertConfig, layer_map: LayerMap = "uniform", preset: Preset = "default"
) -> Objective:
    """Embedding, attention and hidden losses (equations 7 to 9), summed over layers. Needs no labels and no head.

    The trainable tree is `{"bert": {"embeddings", "encoder"}, "projections"}`: pooler and head are not reached.
    Projections: one kernel each for embeddings and hidden states (`paper`, `default`), or one shared layer with bias,
    `fit_dense` (`official`). Padding is left out of the means only in `default`.

    Raises:
        InputError: the numbers of attention heads differ, or the layer map does not fit.
    """
    if student.num_attention_heads != teacher.num_attention_heads:
        raise InputError(
            f"the student has {student.num_attention_heads} attention heads and the teacher"
            f" {teacher.num_attention_heads}; attention distillation needs the same number"
        )
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    read = tuple(sorted({g - 1 for g in mapped}))
    student_model, teacher_model = BertModel(student, add_pooler=False), BertModel(teacher, add_pooler=False)

    def targets(teacher_params: Params, batch: Batch) -> Any:
        out = _apply(teacher_model, teacher_params["bert"], batch, None, score_layers=read)
        return {
            "embedding": out.hidden_states[0],
            "hidden": jnp.stack([out.hidden_states[g] for g in mapped]),
            "attention": jnp.stack([out.attention_scores[read.index(g - 1)] for g in mapped]),
        }

    def project(projections: Params, name: str, states: Array) -> Array:
        if preset == "official":
            bias = projections["fit_dense"]["bias"]
            return states @ projections["fit_dense"]["kernel"] + bias.reshape((1,) * (states.ndim - 1) + (-1,))
        return states @ projections[name]["kernel"]

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        out = _apply(student_model, trainable["bert"], batch, key)
        # without padding in the means, every position counts as real
        real = batch.attention_mask if preset == "default" else jnp.ones_like(batch.attention_mask)
        if preset == "official":
            attention = _per_example(lambda s, t, mask: losses.attention_mse(s, t, mask, "zero"), layers=True)(
                out.attention_scores, targets["attention"], batch.attention_mask
            )
        else:
            attention = _per_example(losses.attention_mse, layers=True)(
                out.attention_scores, targets["attention"], real
            )
        projections = trainable["projections"]
        hidden = _per_example(losses.hidden_mse, layers=True)(
            project(projections, "hidden", out.hidden_states[1:]), targets["hidden"], real
        )
        embedding = _per_example(losses.hidden_mse)(
            project(projections, "embedding", out.hidden_states[0]), targets["embedding"], real
        )
        attention, hidden = _mean(attention, batch), _mean(hidden, batch)
        embedding = _mean(embedding, batch)
        total = (
            hyper.embedding_weight * embedding
            + hyper.attention_weight * jnp.sum(attention)
            + hyper.hidden_weight * jnp.sum(hidden)
        )
        metrics = {"loss": total, "embedding": embedding}
        for m in range(student.num_hidden_layers):
            metrics |= {f"attention/{m + 1}": attention[m], f"hidden/{m + 1}": hidden[m]}
        return total, metrics

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        def kernel(key: PRNGKeyArray) -> Array:
            shape = (student.hidden_size, teacher.hidden_size)
            return student.initializer_range * jax.random.normal(key, shape)

        if preset == "official":
            projections = {"fit_dense": {"kernel": kernel(key), "bias": jnp.zeros(teacher.hidden_size)}}
        else:
            embedding_key, hidden_key = jax.random.split(key)
            projections = {"embedding": {"kernel": kernel(embedding_key)}, "hidden": {"kernel": kernel(hidden_key)}}
        reached = {name: student_params["bert"][name] for name in ("embeddings", "encoder")}
        return {"bert": reached, "projections": projections}

    def export(trainable: Params, student_params: Params) -> Params:
        return student_params | {"bert": student_params["bert"] | trainable["bert"]}

    return Objective(targets, loss, init, export)


def prediction_objective(
    student: BertConfig, teacher: BertConfig, preset: Preset = "default", head: Head = "sequence"
) -> Objective:
    """Soft cross-entropy against the teacher's logits (equation 10); in regression, squared error.

    Of a head that labels tokens, the mean over the tokens with a label; of answer spans, the mean of first and last
    token, over positions. `official` divides by the number of classes, as the original code's mean does, and in
    regression learns from the gold score instead of the teacher.

    Raises:
        InputError: teacher and student do not have the same number of outputs, or `official` is asked to distil what
            the original code cannot.
    """
    if head != "span" and student.num_labels != teacher.num_labels:
        raise InputError(f"the student has {student.num_labels} labels and the teacher {teacher.num_labels}")
    if head != "sequence" and preset == "official":
        raise InputError("the authors' code knows no tokens' labels and no answers; use --preset default or paper")
    student_model, teacher_model = HEADS[head](student), HEADS[head](teacher)
    regression = head == "sequence" and student.num_labels == 1
    from_labels = regression and preset == "official"

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if from_labels:
            return batch.labels
        if batch.teacher_inputs is not None:
            input_ids, attention_mask, token_type_ids = batch.teacher_inputs
            batch = batch._replace(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        logits = _apply(teacher_model, teacher_params, batch, None, score_layers=()).logits
        return logits[:, 0] if regression else logits

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = _apply(student_model, trainable, batch, key, score_layers=()).logits
        if regression:
            per_example = jax.vmap(losses.squared_error)(logits, targets)
        elif head == "sequence":
            per_example = jax.vmap(losses.soft_cross_entropy, (0, 0, None))(logits, targets, hyper.temperature)
            if preset == "official":
                per_example = per_example / student.num_labels
        else:
            loss = losses.soft_span_cross_entropy if head == "span" else losses.soft_token_cross_entropy
            counted = batch.attention_mask if head == "span" else jnp.asarray(batch.labels) >= 0
            per_example = jax.vmap(loss, (0, 0, 0, None))(logits, targets, counted, hyper.temperature)
        total = _mean(per_example, batch)
        return total, {"loss": total}

    return Objective(targets, loss, _whole, _replace)


def supervised_objective(config: BertConfig, head: Head = "sequence") -> Objective:
    """Cross-entropy against the labels; squared error where a sequence has one output. There is no teacher."""
    model = HEADS[head](config)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = _apply(model, trainable, batch, key, score_layers=()).logits
        if head == "sequence":
            per_example = losses.squared_error if config.num_labels == 1 else losses.cross_entropy
            total = _mean(jax.vmap(per_example)(logits, batch.labels), batch)
        elif head == "span":
            total = _mean(jax.vmap(losses.span_cross_entropy)(logits, batch.labels, batch.attention_mask), batch)
        else:
            total = _mean(jax.vmap(losses.token_cross_entropy)(logits, batch.labels), batch)
        return total, {"loss": total}

    return Objective(_no_targets, loss, _whole, _replace)


def masked_lm_objective(config: BertConfig) -> Objective:
    """Mean cross-entropy of a batch's masked tokens (Devlin et al., arXiv 1810.04805). There is no teacher.

    The decoder runs on a quarter of the positions, those that are masked first; more than that are not counted.
    """
    model, head = BertModel(config, add_pooler=False), MaskedLMHead(config)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        states = _apply(model, trainable["bert"], batch, key, score_layers=()).last_hidden_state
        labels = jnp.asarray(batch.labels)
        # a vocabulary of logits per position is most of the memory: only where something is masked
        masked = jnp.argsort(labels < 0, axis=1, stable=True)[:, : -(-labels.shape[1] // MASKED_SHARE)]
        states = jnp.take_along_axis(states, masked[:, :, None], axis=1)
        table = trainable["bert"]["embeddings"]["word_embeddings"]["embedding"]
        logits = jnp.asarray(head.apply({"params": trainable["cls"]}, states, table))
        labels = jnp.take_along_axis(labels, masked, axis=1)
        # not a mean of sequences' means: one in which nothing is masked would count as solved
        total = losses.token_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        return total, {"loss": total}

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        reached = {name: student_params["bert"][name] for name in ("embeddings", "encoder")}
        return {"bert": reached, "cls": {"predictions": student_params["cls"]["predictions"]}}

    def export(trainable: Params, student_params: Params) -> Params:
        heads = student_params["cls"] | trainable["cls"]
        return student_params | {"bert": student_params["bert"] | trainable["bert"], "cls": heads}

    return Objective(_no_targets, loss, init, export)


def _no_targets(teacher_params: Params, batch: Batch) -> Any:
    return ()


def _whole(key: PRNGKeyArray, student_params: Params) -> Params:
    """Every parameter of the student is reached; projections are no part of it."""
    return {name: value for name, value in student_params.items() if name not in PROJECTIONS}


def _replace(trainable: Params, student_params: Params) -> Params:
    return trainable


def _apply(model: Any, params: Params, batch: Batch, key: PRNGKeyArray | None, **kwargs: Any) -> BertOutput:
    rngs = None if key is None else {"dropout": key}
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return model.apply({"params": params}, *inputs, deterministic=key is None, rngs=rngs, **kwargs)


def _per_example(loss: Callable[..., Array], layers: bool = False) -> Callable[..., Array]:
    """`loss(student, teacher, mask)` over a batch -> [b], and with `layers` over stacked layers too -> [l, b]."""
    batched = jax.vmap(loss)
    return jax.vmap(batched, (0, 0, None)) if layers else batched


def _mean(per_example: Float[Array, "*l b"], batch: Batch) -> Float[Array, "*l"]:
    mask = jnp.asarray(batch.example_mask, jnp.float32)
    return jnp.sum(per_example * mask.reshape((1,) * (per_example.ndim - 1) + (-1,)), -1) / jnp.maximum(
        jnp.sum(mask), 1.0
    )
