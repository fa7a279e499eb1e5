"""The Transformer distillation of TinyBERT (arXiv 1909.10351, section 3).

The preset `official` follows the arithmetic of the authors' code. If the teacher has another number of attention
heads, relations are learnt as in MiniLMv2 (arXiv 2012.15828).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, EMBEDDING_DENSE, BertConfig, Compute
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.layers import attention_scores
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.models.relative import bias_table, spread
from tinybert_jax.objectives.objective import Context, Metrics, Objective, mean_over_examples
from tinybert_jax.objectives.projections import init_projections, last_projection, project, without_projections
from tinybert_jax.settings.arithmetic import Arithmetic, arithmetic
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.objectives import LayerMap, Transformer, teacher_layers
from tinybert_jax.settings.stages import Hyper

Attention = Literal["scores", "relations"]
DEFAULTS = Transformer()


def transformer_objective(
    student: BertConfig,
    teacher: BertConfig,
    layer_map: LayerMap = "uniform",
    preset: Preset | Arithmetic = "default",
    attention: Attention | None = None,
    relation_heads: int | None = None,
    settings: Transformer = DEFAULTS,
    compute: Compute = DEFAULT,
) -> Objective:
    """Embedding, attention and hidden losses (equations 7 to 9), summed over layers. Needs no labels and no head.

    The trainable tree is `{"encoder": {"embeddings", "encoder"}, "projections"}`, without pooler and head.
    Projections start as in `init_projections` and are not exported. So another Transformer stage starts with new ones,
    while the authors' code continues with those of general distillation. There is one exception: if an embedding model
    has a dense layer to the teacher's width behind its pooling, the projection of the last state becomes this layer.
    Means exclude padding only with preset `default`.

    Args:
        student: any depth and width.
        teacher: any depth and width, with the student's vocabulary.
        layer_map: as in `teacher_layers`.
        preset: a preset's name, or its facts.
        attention: what attention teaches: "scores" (equation 7), or "relations" of queries, keys and values (MiniLMv2,
            arXiv 2012.15828; the metric is `relation/m`), which allow another number of heads. Default: scores if the
            numbers of heads are equal, else relations.
        relation_heads: number of relation heads; default: the largest number that divides both widths and is not
            greater than the teacher's number of heads.
        settings: weights of the terms, used unless `hyper` has them.
        compute: how both models are computed.

    Raises:
        InputError: "scores" with unequal numbers of heads; "relations" with a preset whose means include padding;
            relation heads that do not divide both widths; or a layer map that does not fit.
    """
    padding, heads = arithmetic(preset).padding, (student.num_attention_heads, teacher.num_attention_heads)
    attention = attention or ("scores" if heads[0] == heads[1] else "relations")
    if heads[0] != heads[1] and (attention == "scores" or padding != "exclude"):
        raise InputError(
            f"the student has {heads[0]} attention heads and the teacher {heads[1]}; only relations of preset default"
            " go without the same number"
        )
    if attention == "relations" and padding != "exclude":
        raise InputError("relations leave padding out of the means: take preset default, or attention scores")
    relations = relation_split(student, teacher, relation_heads) if attention == "relations" else 0
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    read = tuple(sorted({g - 1 for g in mapped}))
    slots = [read.index(g - 1) for g in mapped]
    student_model, teacher_model = (BertModel(config, compute, add_pooler=False) for config in (student, teacher))

    read_of = {"score_layers": (), "qkv_parts": 3 if relations else 2}  # relations also need the values

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if batch.teacher_inputs is not None:
            raise ValueError("with another vocabulary, the tokens of student and teacher do not correspond")
        out = apply_model(teacher_model, teacher_params["encoder"], batch, None, qkv_layers=read, **read_of)
        qkv = jnp.moveaxis(out.qkv, 2, 1)
        biases = None if relations else bias_table(teacher, teacher_params["encoder"])
        return {
            "biases": None if biases is None else jnp.broadcast_to(biases, (len(batch.input_ids), *biases.shape)),
            "embedding": out.hidden_states[0],
            "hidden": jnp.stack([out.hidden_states[g] for g in mapped], axis=1),
            "attention": jnp.stack([qkv[slot] for slot in slots], axis=1),
        }

    @_with_gradient
    def transfer_of_example(
        student_side: tuple[Float[Array, "n q d"], Array | None],
        teacher_side: tuple[Float[Array, "n q e"], Array | None],
        mask: Array,
    ) -> Float[Array, ""]:
        (student_qkv, student_biases), (teacher_qkv, teacher_biases) = student_side, teacher_side
        if relations:  # the divergences of queries, keys and values are summed
            each = jax.vmap(losses.relation_kl, (0, 0, None, None))
            return jnp.sum(each(student_qkv, teacher_qkv, mask, relations))
        sides = ((student_qkv, student_biases), (teacher_qkv.astype(student_qkv.dtype), teacher_biases))
        scores, targets = (_scores(x, student.num_attention_heads, biases) for x, biases in sides)
        return losses.attention_mse(scores, targets, mask, "zero" if padding == "zero" else "exclude")

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        layers = tuple(range(student.num_hidden_layers))
        out = apply_model(student_model, trainable["encoder"], batch, key, qkv_layers=layers, **read_of)
        mask = jnp.asarray(batch.attention_mask)
        every = jnp.ones_like(mask)
        real = mask if padding == "exclude" else every  # positions that the means of states include
        paired = every if padding == "include" else mask  # with "zero", `attention_mse` averages over all pairs
        biases = bias_table(student, trainable["encoder"]), targets["biases"]
        each = jax.vmap(transfer_of_example, ((1, None), (0, 0), 0))
        # one layer after the other, to save memory: the scores of a layer are [b, h, q, k]
        transfer = jax.lax.map(
            lambda layer: each((layer[0], biases[0]), (layer[1], biases[1]), paired),
            (out.qkv, jnp.moveaxis(targets["attention"], 1, 0)),
        )
        embedding_states, hidden_states = project(trainable["projections"], out.hidden_states)
        hidden = _per_example(losses.hidden_mse, layers=True)(hidden_states, targets["hidden"], real)
        embedding = _per_example(losses.hidden_mse)(embedding_states, targets["embedding"], real)
        transfer, hidden, embedding = (
            mean_over_examples(transfer, batch),
            mean_over_examples(hidden, batch),
            mean_over_examples(embedding, batch),
        )
        total = (
            hyper.number("embedding_weight", settings) * embedding
            + hyper.number("attention_weight", settings) * jnp.sum(transfer)
            + hyper.number("hidden_weight", settings) * jnp.sum(hidden)
        )
        metrics = {"loss": total, "embedding": embedding}
        name = "relation" if relations else "attention"
        for m in range(student.num_hidden_layers):
            metrics |= {f"{name}/{m + 1}": transfer[m], f"hidden/{m + 1}": hidden[m]}
        return total, metrics

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        reached = {name: student_params["encoder"][name] for name in ("embeddings", "encoder")}
        return {
            "encoder": reached,
            "projections": init_projections(key, student, teacher, arithmetic(preset), student_params),
        }

    # If the teacher's vectors are pooled from its last states, and the student has a dense layer to their width behind
    # its pooling, this layer starts as the projection of the last state.
    keeps_projection = (
        student.embedding is not None
        and teacher.embedding is not None
        and (student.embedding.width, teacher.embedding.width) == (teacher.hidden_size, None)
        and student.embedding.activation == "Identity"
        and mapped[-1] == teacher.num_hidden_layers
    )

    def export(trainable: Params, student_params: Params) -> Params:
        params = without_projections(student_params) | {"encoder": student_params["encoder"] | trainable["encoder"]}
        if keeps_projection and EMBEDDING_DENSE in params:
            params[EMBEDDING_DENSE] = last_projection(trainable["projections"])
        return params

    def flops(tokens: int) -> float:
        states = (1 + BACKWARD) * (forward_flops(student, tokens))
        states += (1 + BACKWARD) * 2.0 * (len(mapped) + 1) * student.hidden_size * teacher.hidden_size * tokens
        # the loss computes the scores of both sides, or three relations, and the gradient for the student
        width = (1 + BACKWARD) * student.all_head_size + teacher.all_head_size
        return states + 2.0 * (3 if relations else 1) * len(mapped) * tokens**2 * width

    return Objective(
        targets,
        loss,
        init,
        export,
        reads_padding=padding != "exclude",
        target_dtype=arithmetic(preset).target_dtype,
        identity=(mapped, read_of["qkv_parts"]),
        student_flops=flops,
        teacher_flops=lambda tokens: forward_flops(teacher, tokens),
    )


def build(settings: Transformer, context: Context) -> Objective:
    """The objective of a stage."""
    teacher = context.teacher
    if teacher is None:
        raise InputError(
            "stage 'transformer' compares layers, and the teacher has none: take stage 'prediction' alone"
            " (--stage prediction)"
        )
    return transformer_objective(
        context.student, teacher, context.layer_map, context.arithmetic, settings=settings, compute=context.compute
    )


def relation_split(student: BertConfig, teacher: BertConfig, relation_heads: int | None = None) -> int:
    """The number of relation heads: `relation_heads`, or the largest divisor of both widths up to the teacher's heads.

    Raises:
        InputError: `relation_heads` does not divide both widths.

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
    """`loss(student, teacher, mask)`, with the student's gradient computed in the forward pass, beside the value.

    So scores or relations are neither kept for the backward pass nor computed again in it. The teacher and the mask
    get no gradient.
    """

    def backward(gradient: Any, cotangent: Array) -> tuple[Any, None, None]:
        return jax.tree.map(lambda leaf: (cotangent * leaf).astype(leaf.dtype), gradient), None, None

    with_gradient = jax.custom_vjp(loss)
    with_gradient.defvjp(jax.value_and_grad(loss), backward)
    return with_gradient


def _scores(x: Float[Array, "n q e"], heads: int, biases: Array | None) -> Float[Array, "h q k"]:
    """The attention scores of queries and keys, with the relative position bias if the family has one."""
    query, key = x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
    return attention_scores(query, key, None if biases is None else spread(biases, x.shape[1]))


def _per_example(loss: Callable[..., Array], layers: bool = False) -> Callable[..., Array]:
    """`loss(student, teacher, mask)` over a batch -> [b]. With `layers` -> [l, b]: layers are on axis 0 of the
    student's arrays and on axis 1 of the targets.
    """
    batched = jax.vmap(loss)
    return jax.vmap(batched, (0, 1, None)) if layers else batched
