"""Prediction-layer distillation (TinyBERT, arXiv 1909.10351, equation 10)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS, HeadLosses, head_losses
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
    """Soft cross-entropy against the teacher's logits (equation 10) plus cross-entropy against the labels, weighted.

    In regression both terms are squared errors. A row without a label has only the soft term. Token heads average over
    the tokens with a label. Answer heads average the losses of first and last token, each a softmax over positions.
    Multi-label heads average over classes.

    `official` divides the loss of exclusive classes by their number, because the authors' code takes a mean over
    classes, and in regression it learns the gold score instead of the teacher's. Both models have BERT's head,
    `classifier(dropout(pooled))`, also in `official`. The authors' code has `classifier(relu(pooled))`, so its
    prediction losses have other values.

    Args:
        student: has as many outputs as the teacher.
        teacher: any size; any vocabulary, if batches bring `teacher_inputs`. None: all batches bring their `targets`.
        preset: a preset's name, or its facts.
        head: a row of `models.heads.HEADS`.
        settings: temperature and weights, used unless `hyper` has them; and whether the soft term is multiplied by
            temperature**2.
        compute: how both models are computed.

    Raises:
        InputError: teacher and student have different numbers of outputs, or the preset is `official` and the head is
            one that the authors' code lacks.
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
    divisor = student.num_labels if facts.class_mean and loss_of.class_axis == -1 else None
    squared = facts.temperature_squared if settings.temperature_squared is None else settings.temperature_squared

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if from_labels:
            return batch.labels
        if teacher_model is None:
            raise ValueError("without a teacher that runs, every batch must bring its targets")
        return loss_of.target(
            apply_model(teacher_model, teacher_params, batch.for_teacher(), None, score_layers=()).logits
        )

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = apply_model(student_model, trainable, batch, key, score_layers=()).logits
        numbers = {name: hyper.number(name, settings) for name in settings.swept}
        return distillation_loss(loss_of, logits, targets, batch, **numbers, squared=squared, divisor=divisor)

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


def distillation_loss(
    head: HeadLosses,
    logits: Array,
    targets: Any,
    batch: Batch,
    temperature: Any = 1.0,
    soft_weight: Any = 1.0,
    hard_weight: Any = 0.0,
    squared: bool = False,
    divisor: int | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean over rows of `soft_weight * soft + hard_weight * hard` (Hinton et al., arXiv 1503.02531).

    Args:
        head: the losses of the head that computed the logits.
        logits: the student's logits, [b, ...].
        targets: the teacher's logits, as `head.target` returns them.
        batch: its labels are for the hard term, which is 0 in a row without a label.
        temperature: divides the logits of both sides in the soft term, if they are classes.
        soft_weight: weight of the soft term.
        hard_weight: weight of the hard term.
        squared: multiply the soft term of classes by temperature**2, so that its gradient keeps its size at every
            temperature.
        divisor: divides the soft term; None: 1.

    Returns:
        The loss, and the metrics `loss`, `soft` and `hard`; the last two are the terms before their weights.
    """
    per_example = head.soft(logits, targets, batch, temperature)
    soft = mean_over_examples(per_example if divisor is None else per_example / divisor, batch)
    if squared and head.has_classes:
        soft = soft * jnp.square(temperature)
    labelled, labels = head.labelled(batch), jnp.asarray(batch.labels)
    # a missing number is NaN, which would reach the gradient through `where`
    known = batch._replace(labels=jnp.where(jnp.isnan(labels), 0, labels))
    hard = mean_over_examples(jnp.where(labelled, head.hard(logits, known), 0.0), batch)
    total = soft_weight * soft + hard_weight * hard
    return total, {"loss": total, "soft": soft, "hard": hard}


def check_temperature(settings: Prediction, context: Context) -> None:
    """Refuse a temperature other than the default if the outputs are not classes.

    Raises:
        InputError: there is one.
    """
    if (
        settings.temperature != type(settings).temperature
        and not head_losses(context.head, context.student).has_classes
    ):
        raise InputError(f"temperature is {settings.temperature}; it is for classes, and a number has none")


def build(settings: Prediction, context: Context) -> Objective:
    """The objective of a stage.

    Raises:
        InputError: as `prediction_objective`; or as `check_temperature`.
    """
    check_temperature(settings, context)
    return prediction_objective(
        context.student, context.teacher, context.arithmetic, context.head, settings, context.compute
    )
