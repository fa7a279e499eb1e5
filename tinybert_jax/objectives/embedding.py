"""Distillation of text vectors (Reimers and Gurevych, arXiv 2004.09813, use the squared error)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.objectives.objective import (
    Context,
    Metrics,
    Objective,
    mean_over_examples,
    replace_student,
    whole_student,
)
from tinybert_jax.settings.objectives import Embedding
from tinybert_jax.settings.stages import Hyper

DEFAULTS = Embedding()
PER_EXAMPLE = {"mse": losses.vector_mse, "cosine": losses.vector_cosine}  # the other loss compares texts of a batch


def embedding_objective(
    student: BertConfig,
    teacher: BertConfig,
    head: str = "embedding",
    settings: Embedding = DEFAULTS,
    compute: Compute = DEFAULT,
) -> Objective:
    """The error of the student's vectors against the teacher's, averaged over texts.

    With "similarity", it is the error of the cosines between texts, averaged over the pairs of texts in a batch, or in
    each part of an accumulated batch.

    Args:
        student: its vectors are as wide as the teacher's, except with "similarity".
        teacher: any size; any vocabulary, if batches bring `teacher_inputs`.
        head: a row of `models.heads.HEADS` that gives vectors.
        settings: which error, and `matryoshka_dims`.
        compute: how both models are computed.

    Raises:
        InputError: the widths of the vectors differ, or one of `matryoshka_dims` is not less than the student's width.
    """
    if long := [dim for dim in settings.matryoshka_dims if dim >= student.vector_width]:
        raise InputError(
            f"matryoshka_dims: the student's vectors have {student.vector_width} numbers: give fewer than these, not"
            f" {long[0]}"
        )
    per_example = PER_EXAMPLE.get(settings.embedding_loss)
    if per_example is not None and student.vector_width != teacher.vector_width:
        raise InputError(
            f"the student's vectors are {student.vector_width} wide and the teacher's {teacher.vector_width}: take the"
            " loss of similarities (--embedding-loss similarity), or a student without modules.json, which gets a"
            " dense layer"
        )
    student_model, teacher_model = (HEADS[head].model(config, compute) for config in (student, teacher))

    def targets(teacher_params: Params, batch: Batch) -> Any:
        return apply_model(teacher_model, teacher_params, batch.for_teacher(), None, score_layers=()).logits

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        vectors = apply_model(student_model, trainable, batch, key, score_layers=()).logits
        if per_example is None:
            mask, widths = jnp.asarray(batch.example_mask), (student.vector_width, *settings.matryoshka_dims)
            parts = [losses.similarity_mse(vectors[:, :width], targets, mask) for width in widths]
            total = sum(parts, start=jnp.zeros(())) / len(parts)
        else:
            total = mean_over_examples(jax.vmap(per_example)(vectors, targets), batch)
        return total, {"loss": total}

    return Objective(
        targets,
        loss,
        whole_student,
        replace_student,
        identity=(head,),
        student_flops=lambda tokens: (1 + BACKWARD) * forward_flops(student, tokens),
        teacher_flops=lambda tokens: forward_flops(teacher, tokens),
    )


def build(settings: Embedding, context: Context) -> Objective:
    """The objective of a stage."""
    if context.teacher is None:
        raise InputError(f"stage {settings.name!r} learns from a model: give its directory as --teacher")
    return embedding_objective(context.student, context.teacher, context.head, settings, context.compute)
