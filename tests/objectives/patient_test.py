"""PKD's objective: its term by hand beside the loss of soft and hard labels; and who may teach and learn by it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distillation, logged
from random_params import random_params
from small_pair import STUDENT, TEACHER, TEACHER_PARAMS, make_batch

import tinybert_jax as tb
from tinybert_jax.objectives import patient_objective, prediction_objective
from tinybert_jax.objectives.objective import Context
from tinybert_jax.objectives.patient import build
from tinybert_jax.settings.arithmetic import PRESETS

SMALL = dataclasses.replace(STUDENT, hidden_size=24, num_hidden_layers=3)
SMALL_PARAMS = random_params(tb.BertForSequenceClassification(SMALL), 1)
SETTINGS = tb.Patient(temperature=2.0, soft_weight=0.7, hard_weight=0.4, patience_weight=30.0)


@pytest.mark.long
def test_the_term_is_the_mean_error_of_normalised_states_below_the_last_layer() -> None:
    batch = make_batch()
    batch = batch._replace(example_mask=jnp.array([1.0, 1.0, 0.0, 1.0]))
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    model = tb.BertForSequenceClassification

    def by_hand(trainable: tb.Params) -> jax.Array:
        student = model(SMALL).apply({"params": trainable}, *inputs).hidden_states
        teacher = model(TEACHER).apply({"params": TEACHER_PARAMS}, *inputs).hidden_states
        errors = []
        for row in (0, 1, 3):
            for m, g in ((1, 1), (2, 3)):  # of 3 layers and 4, the map is 1, 3, 4
                a, b = student[m, row, 0], teacher[g, row, 0]
                errors.append(jnp.mean((a / jnp.linalg.norm(a) - b / jnp.linalg.norm(b)) ** 2))
        plain = prediction_objective(SMALL, TEACHER, settings=tb.Prediction(2.0, 0.7, 0.4))
        return (
            plain.loss(trainable, plain.targets(TEACHER_PARAMS, batch), batch, tb.Hyper(), None)[0]
            + 30.0 * sum(errors) / 6
        )

    objective = patient_objective(SMALL, TEACHER, settings=SETTINGS)
    targets = jax.jit(objective.targets)(TEACHER_PARAMS, batch)

    def loss(trainable: tb.Params) -> jax.Array:
        return objective.loss(trainable, targets, batch, tb.Hyper(), None)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(SMALL_PARAMS)
    expected, expected_gradient = jax.jit(jax.value_and_grad(by_hand))(SMALL_PARAMS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


def test_a_temperature_for_numbers_is_refused() -> None:
    config = dataclasses.replace(TEACHER, id2label=("score",))
    context = Context(config, config, "sequence", "uniform", PRESETS["default"])
    build(tb.Patient(), context)
    with pytest.raises(tb.InputError, match=r"temperature is 4\.0; it is for classes, and a number has none"):
        build(tb.Patient(temperature=4.0), context)


def test_another_width_and_a_single_layer_are_refused() -> None:
    for student in (STUDENT, dataclasses.replace(SMALL, num_hidden_layers=1)):
        with pytest.raises(tb.InputError, match="equal width below the student's last layer: the student is"):
            patient_objective(student, TEACHER)


@pytest.mark.long
def test_a_run_learns_from_kept_outputs_and_states_as_from_a_teacher_that_runs(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    stages = (tb.Stage(tb.Patient(temperature=2.0), epochs=3, learning_rate=5e-3),)
    for name, gigabytes in (("kept", 20.0), ("running", 0.0)):
        experiment = distillation(teacher, Path("2x32"), reviews, stages=stages, teacher_cache_gb=gigabytes)
        assert tb.run(experiment, tmp_path / name).scores["accuracy"] > 0.8
    kept, running = ([line for line in logged(tmp_path / name) if "patience" in line] for name in ("kept", "running"))
    assert kept[-1]["patience"] < kept[0]["patience"]
    np.testing.assert_allclose([line["loss"] for line in kept], [line["loss"] for line in running], rtol=1e-4)


def test_several_teachers_are_refused(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "copy")
    experiment = distillation(
        tb.Ensemble((str(teacher), str(tmp_path / "copy"))), Path("2x32"), reviews, stages=(tb.Stage("patient"),)
    )
    with pytest.raises(tb.InputError, match="stage 'patient' learns outputs and layers from one model"):
        tb.run(experiment, tmp_path / "run")
