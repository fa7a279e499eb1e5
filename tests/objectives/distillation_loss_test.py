"""Soft and hard labels together: torch's stored numbers, rows without labels, numbers that move, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distillation, logged, rest_long
from safetensors import safe_open

import tinybert_jax as tb
from tinybert_jax.models.heads import CLASSES, NUMBERS, SPANS, TAGS
from tinybert_jax.objectives.prediction import distillation_loss, prediction_objective
from tinybert_jax.settings.numbers import parse_number

STORED = Path(__file__).parent.parent / "fixtures" / "expected-distillation.safetensors"
KINDS = {"classes": CLASSES, "numbers": NUMBERS, "tags": TAGS, "spans": SPANS}


def stored(kind: str) -> tuple[tb.Batch, dict[str, np.ndarray], dict[str, float]]:
    with safe_open(STORED, "np") as file:
        numbers = json.loads(file.metadata()["numbers"])
        tensors = {name: file.get_tensor(f"{kind}.{name}") for name in "student teacher labels loss gradient".split()}
        mask = file.get_tensor("mask")
    labels = tensors["labels"].astype(np.float32 if kind == "numbers" else np.int32)
    return tb.Batch(mask, mask, mask, labels, np.ones(3, np.float32)), tensors, numbers


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_torchs(kind: str) -> None:
    batch, tensors, numbers = stored(kind)
    targets = KINDS[kind].target(tensors["teacher"])
    if kind == "numbers":
        numbers["temperature"] = 1.0

    def loss(logits: jax.Array) -> Any:
        return distillation_loss(KINDS[kind], logits, targets, batch, **numbers, squared=True)

    (total, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(tensors["student"])
    np.testing.assert_allclose(total, tensors["loss"], rtol=1e-5)
    scale = np.abs(tensors["gradient"]).max()
    np.testing.assert_allclose(gradient, tensors["gradient"], rtol=1e-5, atol=1e-5 * scale)
    weighted = numbers["soft_weight"] * metrics["soft"] + numbers["hard_weight"] * metrics["hard"]
    np.testing.assert_allclose(weighted, total, rtol=1e-6)


def test_a_number_has_no_temperature() -> None:
    batch, tensors, _ = stored("numbers")
    student, targets = jnp.asarray(tensors["student"]), NUMBERS.target(tensors["teacher"])
    terms = [
        distillation_loss(NUMBERS, student, targets, batch, temperature, squared=True)[0]
        for temperature in (1.0, 10.0)
    ]
    assert terms[0] == terms[1]


@pytest.mark.parametrize("kind", rest_long(KINDS, ["numbers", "tags"]))
def test_a_row_without_a_label_has_the_soft_term_alone(kind: str) -> None:
    """Its hard term is 0, in value and gradient, and the mean is still over all rows, as accumulated parts need it."""
    batch, tensors, _ = stored(kind)
    labels = np.full_like(batch.labels, np.nan if kind == "numbers" else -1)
    unlabelled = batch._replace(labels=labels)

    def loss(logits: jax.Array, batch: tb.Batch) -> Any:
        targets = KINDS[kind].target(tensors["teacher"])
        return distillation_loss(KINDS[kind], jnp.asarray(logits), targets, batch, 1.0, 0.0, 1.0)

    (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(tensors["student"]), unlabelled)
    assert float(total) == float(metrics["hard"]) == 0
    assert not np.any(gradient)
    one = unlabelled._replace(labels=np.concatenate([batch.labels[:1], labels[1:]]))
    alone = jax.tree.map(lambda leaf: leaf[:1], batch._replace(labels=batch.labels))
    first = float(KINDS[kind].hard(tensors["student"][:1], alone)[0])
    assert float(loss(tensors["student"], one)[0]) == pytest.approx(first / 3, rel=1e-6)


CONFIG = tb.BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, id2label=("a", "b")
)


def value(preset: str, settings: tb.Prediction, **hyper: Any) -> tuple[float, dict[str, float]]:
    params = tb.init_params(tb.BertForSequenceClassification(CONFIG), jax.random.key(0))
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    batch = tb.Batch(ids, np.ones_like(ids), np.zeros_like(ids), np.array([0, 1], np.int32), np.ones(2, np.float32))
    objective = prediction_objective(CONFIG, CONFIG, preset, settings=settings)
    total, metrics = objective.loss(params, jnp.array([[3.0, 0.0], [0.0, 1.0]]), batch, tb.Hyper(**hyper), None)
    return float(total), {name: float(metric) for name, metric in metrics.items()}


@pytest.mark.parametrize(
    ("preset", "factor"), [("default", 16.0), pytest.param("paper", 1.0, marks=pytest.mark.long), ("official", 1.0)]
)
def test_the_factor_of_the_temperature_is_the_presets_or_chosen(preset: str, factor: float) -> None:
    without, _ = value(preset, tb.Prediction(temperature=4.0, temperature_squared=False))
    with_factor, _ = value(preset, tb.Prediction(temperature=4.0, temperature_squared=True))
    usual, _ = value(preset, tb.Prediction(temperature=4.0))
    assert with_factor == pytest.approx(16 * without, rel=1e-6)
    assert usual == pytest.approx(factor * without, rel=1e-6)


@pytest.mark.parametrize(
    ("ramp", "numbers"),
    [
        (tb.Ramp(4.0, 1.0), [4.0, 3.25, 2.5, 1.0]),
        (tb.Ramp(4.0, 1.0, "cosine"), [4.0, 4 - 3 * (1 - math.cos(math.pi / 4)) / 2, 2.5, 1.0]),
    ],
)
def test_a_ramp_is_its_number_at_each_point_of_the_stage(ramp: tb.Ramp, numbers: list[float]) -> None:
    stage = tb.Stage(tb.Prediction(temperature=ramp, hard_weight=0.5))
    for progress, number in zip((0.0, 0.25, 0.5, 1.0), numbers, strict=True):
        assert stage.hyper_at(progress).numbers == pytest.approx(
            {"temperature": number, "soft_weight": 1.0, "hard_weight": 0.5}
        )
    with pytest.raises(ValueError, match="temperature moves over the stage"):
        value("default", tb.Prediction(temperature=ramp))


@pytest.mark.long
def test_a_run_follows_a_ramp_and_resumes_in_it(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    """The weight of the labels falls to nothing: the logged loss is that of the number at each step."""
    ramp = tb.Prediction(temperature=2.0, hard_weight=tb.Ramp(1.0, 0.0, "cosine"))
    stages = (tb.Stage(ramp, max_steps=20, batch_size=8),)
    experiment = distillation(teacher, Path("2x16"), reviews, stages=stages)
    result = tb.run(experiment, tmp_path / "run")
    steps = [line for line in logged(tmp_path / "run") if "soft" in line]
    assert [line["step"] for line in steps] == [10, 20]
    for line in steps:
        weight = (1 + math.cos(math.pi * (line["step"] - 1) / 20)) / 2
        assert line["loss"] == pytest.approx(line["soft"] + weight * line["hard"], rel=1e-5)
    described = json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]["stages"][0]["objective"]
    assert described["hard_weight"] == {"start": 1.0, "end": 0.0, "shape": "cosine"}
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert again.scores == result.scores


def test_numbers_on_the_command_line() -> None:
    assert parse_number("--temperature", "4") == 4.0
    assert parse_number("--temperature", "4:1") == tb.Ramp(4.0, 1.0)
    assert parse_number("--temperature", "4:1:cosine") == tb.Ramp(4.0, 1.0, "cosine")
    for text in ("", "warm", "4:", "4:1:square", "4:1:cosine:2"):
        with pytest.raises(tb.InputError, match=r"--temperature .*: give a number \(4\), or one that moves"):
            parse_number("--temperature", text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": tb.Ramp(4.0, 0.0)}, "temperature is Ramp.*; it must be finite and greater than 0"),
        ({"hard_weight": -0.1}, "hard_weight is -0.1; it must be finite and not negative"),
        ({"soft_weight": float("nan")}, "soft_weight is nan; it must be finite and not negative"),
        ({"soft_weight": 0.0}, "soft_weight and hard_weight are both 0, so there is nothing to learn"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Prediction(**settings)
