"""Patient knowledge distillation (PKD; Sun et al., arXiv 1908.09355): outputs, labels and the states of [CLS]."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS, head_losses
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.objectives.objective import Context, Metrics, Objective, mean_over_examples
from tinybert_jax.objectives.prediction import check_temperature, distillation_loss, prediction_objective
from tinybert_jax.settings.arithmetic import Arithmetic, arithmetic
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.objectives import LayerMap, Patient, teacher_layers
from tinybert_jax.settings.stages import Hyper

DEFAULTS = Patient()


def patient_objective(
    student: BertConfig,
    teacher: BertConfig,
    layer_map: LayerMap = "uniform",
    preset: Preset | Arithmetic = "default",
    head: str = "sequence",
    settings: Patient = DEFAULTS,
    compute: Compute = DEFAULT,
) -> Objective:
    """The loss of `prediction_objective`, plus `patience_weight` times the squared error of states of [CLS].

    States of [CLS] are taken after all student layers except the last, and divided by their norms. Their squared error
    is averaged over layers and width, as in the authors' code; the paper's weights are for this mean. The layer maps
    of the paper are "uniform" (PKD-Skip) and "top" (PKD-Last).

    Args:
        student: as wide as the teacher, with at least two layers.
        teacher: any depth.
        layer_map: as in `teacher_layers`.
        preset: a preset's name, or its facts.
        head: a row of `models.heads.HEADS`.
        settings: temperature and weights, used unless `hyper` has them.
        compute: how both models are computed.

    Raises:
        InputError: the widths differ, the student has one layer, or as in `prediction_objective`.
    """
    if student.hidden_size != teacher.hidden_size or student.num_hidden_layers < 2:
        raise InputError(
            "stage 'patient' compares states of equal width below the student's last layer: the student is"
            f" {student.hidden_size} wide with {student.num_hidden_layers} layers, the teacher {teacher.hidden_size}"
            " wide; the stages 'transformer' and 'prediction' allow any size"
        )
    plain = prediction_objective(student, teacher, preset, head, settings, compute)
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)[:-1]
    student_model, teacher_model = (HEADS[head].model(config, compute) for config in (student, teacher))
    loss_of, facts = head_losses(head, student), arithmetic(preset)
    if facts.class_mean or facts.regression_from_labels:
        raise InputError("stage 'patient' is not in the authors' code; use --preset default or paper")
    squared = facts.temperature_squared if settings.temperature_squared is None else settings.temperature_squared

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if batch.teacher_inputs is not None:
            raise ValueError("with another vocabulary, the teacher's states are not those of the student's tokens")
        out = apply_model(teacher_model, teacher_params, batch, None, score_layers=())
        return {"outputs": loss_of.target(out.logits), "cls": _cls(out.hidden_states, mapped)}

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        out = apply_model(student_model, trainable, batch, key, score_layers=())
        numbers = {name: hyper.number(name, settings) for name in settings.swept}
        weight = numbers.pop("patience_weight")
        total, metrics = distillation_loss(loss_of, out.logits, targets["outputs"], batch, **numbers, squared=squared)
        states = _cls(out.hidden_states, tuple(range(1, student.num_hidden_layers)))
        error = jnp.mean(jnp.square(_normalised(states) - _normalised(targets["cls"])), axis=(1, 2))
        patience = mean_over_examples(error, batch)
        total = total + weight * patience
        return total, metrics | {"loss": total, "patience": patience}

    return plain._replace(targets=targets, loss=loss, identity=(head, mapped))


def _cls(hidden_states: Float[Array, "l b q d"], layers: tuple[int, ...]) -> Float[Array, "b m d"]:
    return jnp.stack([hidden_states[layer][:, 0] for layer in layers], axis=1)


def _normalised(states: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
    states = states.astype(jnp.float32)
    return states / jnp.linalg.norm(states, axis=-1, keepdims=True)


def build(settings: Patient, context: Context) -> Objective:
    """The objective of a stage."""
    if context.teacher is None:
        raise InputError(
            "stage 'patient' compares layers, and the teacher has none: take stage 'prediction' (--stage prediction)"
        )
    check_temperature(settings, context)
    facts = context.arithmetic
    return patient_objective(
        context.student, context.teacher, context.layer_map, facts, context.head, settings, context.compute
    )
