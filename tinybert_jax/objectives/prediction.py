"""Prediction-layer distillation (TinyBERT, arXiv 1909.10351, equation 10)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS, head_losses
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.objectives.objective import (
    Context,
    Metrics,
    Objective,
    mean_over_examples,
    no_flops,
    replace_student,
    whole_student,
)
from tinybert_jax.settings.arithmetic import Arithmetic, arithmetic
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.objectives import Prediction
from tinybert_jax.settings.stages import Hyper

DEFAULTS = Prediction()


def prediction_objective(
    student: BertConfig,
    teacher: BertConfig | None,
    preset: Preset | Arithmetic = "default",
    head: str = "sequence",
    settings: Prediction = DEFAULTS,
    compute: Compute = DEFAULT,
) -> Objective:
    """Soft cross-entropy against the teacher's logits (equation 10); in regression, squared error.

    A head that labels tokens takes the mean over the tokens with a label; one of answer spans takes the mean of first
    and last token, over positions. `official` divides by the number of classes, as the mean of the authors' code does,
    and in regression learns from the gold score instead of the teacher. The heads of both models are BERT's,
    `classifier(dropout(pooled))`, also in `official`. Those of the authors' code are `classifier(relu(pooled))`, so
    its prediction losses are others.

    Args:
        student: its outputs are as many as the teacher's.
        teacher: of any size, and of any vocabulary where batches bring `teacher_inputs`. None: all batches bring
            their `targets`.
        preset: whose arithmetic.
        head: a row of `models.heads.HEADS`.
        settings: the temperature, where `hyper` names none.
        compute: how both models are computed.

    Raises:
        InputError: teacher and student do not have the same number of outputs, or the arithmetic of the authors' code
            is asked to distil what that code cannot.
    """
    facts, row = arithmetic(preset), HEADS[head]
    if row.labelled and teacher is not None and student.num_labels != teacher.num_labels:
        raise InputError(f"labels: the student has {student.num_labels} and the teacher {teacher.num_labels}")
    if row.per_token and facts.class_mean:
        raise InputError("the authors' code knows no tokens' labels and no answers; use --preset default or paper")
    student_model = row.model(student, compute)
    teacher_model = None if teacher is None else row.model(teacher, compute)
    loss_of = head_losses(head, student)
    from_labels = facts.regression_from_labels and not loss_of.has_classes
    divisor = student.num_labels if facts.class_mean and loss_of.has_classes else None

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if from_labels:
            return batch.labels
        if teacher_model is None:
            raise ValueError("without a teacher that runs, every batch must bring its targets")
        if batch.teacher_inputs is not None:
            names = ("input_ids", "attention_mask", "token_type_ids")
            batch = batch._replace(**dict(zip(names, batch.teacher_inputs, strict=True)))
        return loss_of.target(apply_model(teacher_model, teacher_params, batch, None, score_layers=()).logits)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = apply_model(student_model, trainable, batch, key, score_layers=()).logits
        per_example = loss_of.soft(logits, targets, batch, hyper.number("temperature", settings))
        total = mean_over_examples(per_example if divisor is None else per_example / divisor, batch)
        return total, {"loss": total}

    return Objective(
        targets,
        loss,
        whole_student,
        replace_student,
        reads_teacher=teacher is not None and not from_labels,
        reads_padding=facts.padding != "exclude",
        identity=(head,),
        student_flops=lambda tokens: (1 + BACKWARD) * forward_flops(student, tokens),
        teacher_flops=no_flops if from_labels or teacher is None else lambda tokens: forward_flops(teacher, tokens),
    )


def build(settings: Prediction, context: Context) -> Objective:
    """The objective of a stage.

    Raises:
        InputError: as `prediction_objective`; or a temperature is given, and the outputs are no classes.
    """
    if settings.temperature != 1 and not head_losses(context.head, context.student).has_classes:
        raise InputError(f"temperature is {settings.temperature}; it is for classes, and a number has none")
    return prediction_objective(
        context.student, context.teacher, context.arithmetic, context.head, settings, context.compute
    )
