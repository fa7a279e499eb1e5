"""Prediction-layer distillation (TinyBERT, arXiv 1909.10351, equation 10)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.objectives.objective import Metrics, Objective, mean_over_examples, replace_student, whole_student
from tinybert_jax.settings.choices import Head, Preset
from tinybert_jax.settings.stages import Hyper


def prediction_objective(
    student: BertConfig, teacher: BertConfig, preset: Preset = "default", head: Head = "sequence"
) -> Objective:
    """Soft cross-entropy against the teacher's logits (equation 10); in regression, squared error.

    Of a head that labels tokens, the mean over the tokens with a label; of answer spans, the mean of first and last
    token, over positions. `official` divides by the number of classes, as the original code's mean does, and in
    regression learns from the gold score instead of the teacher. The heads of both models are BERT's own also in
    `official`, `classifier(dropout(pooled))`; those of the original code are `classifier(relu(pooled))`, so that its
    prediction losses are others.

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
        logits = apply_model(teacher_model, teacher_params, batch, None, score_layers=()).logits
        return logits[:, 0] if regression else logits

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = apply_model(student_model, trainable, batch, key, score_layers=()).logits
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
        total = mean_over_examples(per_example, batch)
        return total, {"loss": total}

    return Objective(targets, loss, whole_student, replace_student)
