"""What each stage minimises: layer maps, and objectives as pairs of `targets` and `loss`.

Source: TinyBERT, arXiv 1909.10351, section 3; the preset `official` follows the arithmetic of the authors' code.
Of a teacher with other attention heads: MiniLMv2, arXiv 2012.15828.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses, mlm
from tinybert_jax.config import MASKED_SHARE, Batch, BertConfig, Head, Hyper, InputError, LayerMap, Params, Preset
from tinybert_jax.heads import HEADS
from tinybert_jax.model import BertModel, BertOutput, attention_scores
from tinybert_jax.projections import init_projections, project, without_projections

Metrics = dict[str, Float[Array, ""]]
Attention = Literal["scores", "relations"]


def _examples(batch: Batch) -> Float[Array, ""]:
    return jnp.sum(jnp.asarray(batch.example_mask, jnp.float32))


class Objective(NamedTuple):
    """What a stage minimises, as pure functions. `key` drives the student's dropout; None switches it off.

    targets(teacher_params, batch) -> pytree: only what `loss` reads, under no gradient; the batch on axis 0.
    loss(trainable, targets, batch, hyper, key) -> (scalar, metrics): a mean over the batch.
    init(key, student_params) -> trainable: the parameters that `loss` reaches, and new projections where it has any.
    export(trainable, student_params) -> student_params with the trained leaves in their places, projections left out.
    weight(batch) -> scalar: how many examples, or masked tokens, that mean is over; accumulated parts weigh as much.
    """

    targets: Callable[[Params, Batch], Any]
    loss: Callable[[Params, Any, Batch, Hyper, PRNGKeyArray | None], tuple[Float[Array, ""], Metrics]]
    init: Callable[[PRNGKeyArray, Params], Params]
    export: Callable[[Params, Params], Params]
    weight: Callable[[Batch], Float[Array, ""]] = _examples


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
        raise InputError(f"the layer map {layer_map} must name a layer for each of the student's {student_depth}")
    if not all(1 <= g <= teacher_depth for g in layer_map):
        raise InputError(f"the layer map {layer_map} must name teacher layers from 1 to {teacher_depth}")
    return tuple(layer_map)


def transformer_objective(
    student: BertConfig,
    teacher: BertConfig,
    layer_map: LayerMap = "uniform",
    preset: Preset = "default",
    attention: Attention | None = None,
    relation_heads: int | None = None,
) -> Objective:
    """Embedding, attention and hidden losses (equations 7 to 9), summed over layers. Needs no labels and no head.

    The trainable tree is `{"bert": {"embeddings", "encoder"}, "projections"}`: pooler and head are not reached.
    Projections are as in `init_projections`, and not exported: another Transformer stage draws new ones, where the
    authors' code goes on with those of general distillation. Padding is left out of the means only in `default`.

    Args:
        student: any depth and width.
        teacher: any depth and width, with the student's vocabulary.
        layer_map: as in `teacher_layers`.
        preset: whose arithmetic.
        attention: what is learnt of it: "scores" (equation 7), or, for unlike heads, "relations" of queries, keys and
            values (MiniLMv2, arXiv 2012.15828; the metric is `relation/m`); default: scores where the heads agree.
        relation_heads: of "relations"; default: the teacher's heads, or the next fewer that divide both widths.

    Raises:
        InputError: scores are asked of unlike heads, relations in another preset than `default`, or of heads that do
            not divide both widths; the layer map does not fit.
    """
    heads = student.num_attention_heads, teacher.num_attention_heads
    attention = attention or ("scores" if heads[0] == heads[1] else "relations")
    if heads[0] != heads[1] and (attention == "scores" or preset != "default"):
        raise InputError(
            f"the student has {heads[0]} attention heads and the teacher {heads[1]}; only relations of preset default"
            " go without the same number"
        )
    if attention == "relations" and preset != "default":
        raise InputError(f"preset {preset} learns attention scores; relations are for preset default")
    relations = relation_split(student, teacher, relation_heads) if attention == "relations" else 0
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    read = tuple(sorted({g - 1 for g in mapped}))
    slots = [read.index(g - 1) for g in mapped]
    student_model, teacher_model = BertModel(student, add_pooler=False), BertModel(teacher, add_pooler=False)

    read_of = {"score_layers": (), "qkv_parts": 3 if relations else 2}  # relations are of the values too

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if batch.teacher_inputs is not None:
            raise ValueError("with another vocabulary, the tokens of student and teacher do not correspond")
        out = _apply(teacher_model, teacher_params["bert"], batch, None, qkv_layers=read, **read_of)
        qkv = jnp.moveaxis(out.qkv, 2, 1)
        return {
            "embedding": out.hidden_states[0],
            "hidden": jnp.stack([out.hidden_states[g] for g in mapped], axis=1),
            "attention": jnp.stack([qkv[slot] for slot in slots], axis=1),
        }

    @_with_gradient
    def transfer_of_example(
        own: Float[Array, "n q d"], teachers: Float[Array, "n q e"], mask: Array
    ) -> Float[Array, ""]:
        if relations:  # queries, keys and values are further layers; their divergences add up
            each = jax.vmap(losses.relation_kl, (0, 0, None, None))
            return jnp.sum(each(own, teachers, mask, relations))
        pairs = (own, teachers.astype(own.dtype))
        scores, wanted = (attention_scores(*_split_heads(x, student.num_attention_heads)) for x in pairs)
        return losses.attention_mse(scores, wanted, mask, "zero" if preset == "official" else "exclude")

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        layers = tuple(range(student.num_hidden_layers))
        out = _apply(student_model, trainable["bert"], batch, key, qkv_layers=layers, **read_of)
        mask = jnp.asarray(batch.attention_mask)
        every = jnp.ones_like(mask)
        real = mask if preset == "default" else every  # the positions that count in the means
        paired = every if preset == "paper" else mask  # of official, the loss counts every pair
        # one layer after the other: its scores are [b, h, q, k]
        transfer = jax.lax.map(
            lambda layer: jax.vmap(transfer_of_example, (1, 0, 0))(*layer, paired),
            (out.qkv, jnp.moveaxis(targets["attention"], 1, 0)),
        )
        embedding_states, hidden_states = project(trainable["projections"], out.hidden_states)
        hidden = _per_example(losses.hidden_mse, layers=True)(hidden_states, targets["hidden"], real)
        embedding = _per_example(losses.hidden_mse)(embedding_states, targets["embedding"], real)
        transfer, hidden, embedding = _mean(transfer, batch), _mean(hidden, batch), _mean(embedding, batch)
        total = (
            hyper.embedding_weight * embedding
            + hyper.attention_weight * jnp.sum(transfer)
            + hyper.hidden_weight * jnp.sum(hidden)
        )
        metrics = {"loss": total, "embedding": embedding}
        name = "relation" if relations else "attention"
        for m in range(student.num_hidden_layers):
            metrics |= {f"{name}/{m + 1}": transfer[m], f"hidden/{m + 1}": hidden[m]}
        return total, metrics

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        reached = {name: student_params["bert"][name] for name in ("embeddings", "encoder")}
        return {"bert": reached, "projections": init_projections(key, student, teacher, preset, student_params)}

    def export(trainable: Params, student_params: Params) -> Params:
        return without_projections(student_params) | {"bert": student_params["bert"] | trainable["bert"]}

    return Objective(targets, loss, init, export)


def relation_split(student: BertConfig, teacher: BertConfig, relation_heads: int | None = None) -> int:
    """The number of relation heads: as asked, or the teacher's, or the next fewer that divide both widths.

    Raises:
        InputError: the number that was asked for does not divide both.

    >>> relation_split(BertConfig(hidden_size=312), BertConfig(hidden_size=1024, num_attention_heads=16))
    8
    """
    widths = [config.all_head_size for config in (student, teacher)]
    if relation_heads is None:
        fitting = (r for r in range(teacher.num_attention_heads, 0, -1) if not any(width % r for width in widths))
        return next(fitting)
    if relation_heads < 1 or any(width % relation_heads for width in widths):
        raise InputError(f"relation_heads {relation_heads} does not divide both widths, {widths[0]} and {widths[1]}")
    return relation_heads


def _with_gradient(loss: Callable[..., Array]) -> Callable[..., Array]:
    """`loss(student, teacher, mask)`, whose gradient for the student is computed with its value: of what lies between,
    scores or relations, nothing is kept for the backward pass, or computed again in it. There are no other gradients.
    """

    def backward(gradient: Array, cotangent: Array) -> tuple[Array, None, None]:
        return (cotangent * gradient).astype(gradient.dtype), None, None

    with_gradient = jax.custom_vjp(loss)
    with_gradient.defvjp(jax.value_and_grad(loss), backward)
    return with_gradient


def _split_heads(x: Float[Array, "n q e"], heads: int) -> Float[Array, "n h q d"]:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


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
        raise InputError(f"labels: the student has {student.num_labels} and the teacher {teacher.num_labels}")
    if head != "sequence" and preset == "official":
        raise InputError("the authors' code knows no tokens' labels and no answers; use --preset default or paper")
    student_model, teacher_model = HEADS[head](student), HEADS[head](teacher)
    regression = head == "sequence" and student.num_labels == 1
    from_labels = regression and preset == "official"

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if from_labels:
            return batch.labels
        if batch.teacher_inputs is not None:
            names = ("input_ids", "attention_mask", "token_type_ids")
            batch = batch._replace(**dict(zip(names, batch.teacher_inputs, strict=True)))
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
    model = BertModel(config, add_pooler=False)

    def decoded(labels: Array) -> int:
        return -(-labels.shape[1] // MASKED_SHARE)

    def weight(batch: Batch) -> Float[Array, ""]:
        labels = jnp.asarray(batch.labels)
        return jnp.sum(jnp.minimum(jnp.sum(labels >= 0, axis=1), decoded(labels)), dtype=jnp.float32)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        states = _apply(model, trainable["bert"], batch, key, score_layers=()).last_hidden_state
        labels = jnp.asarray(batch.labels)
        masked = jnp.argsort(labels < 0, axis=1, stable=True)[:, : decoded(labels)]
        logits = mlm.logits_at(config, trainable, states, masked)
        labels = jnp.take_along_axis(labels, masked, axis=1)
        # not a mean of sequences' means: one in which nothing is masked would count as solved
        total = losses.token_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        return total, {"loss": total}

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        reached = {name: student_params["bert"][name] for name in ("embeddings", "encoder")}
        return {"bert": reached, "cls": {"predictions": student_params["cls"]["predictions"]}}

    def export(trainable: Params, student_params: Params) -> Params:
        heads = student_params["cls"] | trainable["cls"]
        return without_projections(student_params) | {"bert": student_params["bert"] | trainable["bert"], "cls": heads}

    return Objective(_no_targets, loss, init, export, weight)


def _no_targets(teacher_params: Params, batch: Batch) -> Any:
    return ()


def _whole(key: PRNGKeyArray, student_params: Params) -> Params:
    """Every parameter of the student is reached; projections are no part of it."""
    return without_projections(student_params)


def _replace(trainable: Params, student_params: Params) -> Params:
    return trainable


def _apply(model: Any, params: Params, batch: Batch, key: PRNGKeyArray | None, **kwargs: Any) -> BertOutput:
    rngs = None if key is None else {"dropout": key}
    inputs = map(jnp.asarray, (batch.input_ids, batch.attention_mask, batch.token_type_ids))
    return model.apply({"params": params}, *inputs, deterministic=key is None, rngs=rngs, **kwargs)


def _per_example(loss: Callable[..., Array], layers: bool = False) -> Callable[..., Array]:
    """`loss(student, teacher, mask)` over a batch -> [b]; with `layers`, which are on axis 0 of what the student
    computed and on axis 1 of the targets, -> [l, b].
    """
    batched = jax.vmap(loss)
    return jax.vmap(batched, (0, 1, None)) if layers else batched


def _mean(per_example: Float[Array, "*l b"], batch: Batch) -> Float[Array, "*l"]:
    mask = jnp.asarray(batch.example_mask, jnp.float32)
    return jnp.sum(per_example * mask.reshape((1,) * (per_example.ndim - 1) + (-1,)), -1) / jnp.maximum(
        jnp.sum(mask), 1.0
    )
