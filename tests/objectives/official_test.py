"""`official` does the original code's arithmetic on BERT's own head: torch's stored numbers always; where torch is
installed, TinyBERT4 and BERT_BASE (small vocabulary) against torch itself.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import tinybert_jax as tb
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.models.files.tensors import from_hf_tensors, to_hf_tensors
from tinybert_jax.training.optim import make_optimizer, make_schedule
from tinybert_jax.training.step import create_state, make_train_step

STORED = Path(__file__).parent.parent / "fixtures" / "expected-official.safetensors"
TOLERANCE = 1e-5  # of a loss; of the norm of a gradient or parameter, tensor by tensor
TEACHER = tb.BertConfig(
    vocab_size=1000,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    id2label=("a", "b", "c"),
)
STUDENT = tb.student_config("tinybert-4l-312d", TEACHER)
# Large weights: some scores of real tokens fall below -100, which the original takes for padding.
WIDE_TEACHER = dataclasses.replace(
    TEACHER, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, initializer_range=1.5
)
WIDE_STUDENT = dataclasses.replace(WIDE_TEACHER, hidden_size=32, num_hidden_layers=2)
# The rate is high enough for a step without weight decay, clipping or warm-up to show.
TRAINING = {"steps": 10, "total_steps": 12, "warmup": 0.25, "learning_rate": 1e-3}

Tensors = dict[str, np.ndarray]  # under the names of torch's parameters


class Ours(NamedTuple):
    """A teacher, a student with its projection, and one batch for them."""

    teacher: tb.BertConfig
    student: tb.BertConfig
    teacher_params: Any
    student_params: Any
    fit_dense: Any
    batch: tb.Batch


def with_projection(trainable: Any, fit_dense: Any) -> Any:
    assert list(trainable["projections"]) == ["fit_dense"]
    return trainable | {"projections": {"fit_dense": fit_dense}}


def transformer_stage(ours: Ours) -> tuple[tb.Objective, Any]:
    objective = tb.distill.transformer_objective(ours.student, ours.teacher, preset="official")
    return objective, with_projection(objective.init(jax.random.key(0), ours.student_params), ours.fit_dense)


def transformer_loss(ours: Ours) -> tuple[dict[str, float], Tensors]:
    """Losses, in the two groups of the original, and gradients."""
    objective, trainable = transformer_stage(ours)
    targets = jax.jit(objective.targets)(ours.teacher_params, ours.batch)
    gradient = jax.jit(jax.grad(objective.loss, has_aux=True))
    grads, metrics = gradient(trainable, targets, ours.batch, tb.Hyper(), None)
    attention = sum(float(value) for name, value in metrics.items() if name.startswith("attention/"))
    hidden = sum(float(value) for name, value in metrics.items() if name.startswith(("embedding", "hidden/")))
    assert float(metrics["loss"]) == pytest.approx(attention + hidden, rel=TOLERANCE)
    return {"attention": attention, "hidden": hidden}, named_tensors(grads)


def prediction_loss(ours: Ours, temperature: float) -> tuple[float, Tensors]:
    objective = tb.distill.prediction_objective(ours.student, ours.teacher, preset="official")
    targets = jax.jit(objective.targets)(ours.teacher_params, ours.batch)
    loss = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (total, _), grads = loss(ours.student_params, targets, ours.batch, tb.Hyper(temperature=temperature), None)
    return float(total), named_tensors(grads)


def after_steps(ours: Ours, steps: int, total_steps: int, warmup: float, learning_rate: float) -> Tensors:
    """The parameters of the Transformer stage after some steps on the same batch."""
    objective, trainable = transformer_stage(ours)
    optimizer, schedule = make_optimizer("bert_adam", weight_decay=0.01), make_schedule("linear", warmup)
    mesh = make_mesh()
    state = create_state(trainable, optimizer, jax.random.key(0), mesh)
    step = make_train_step(objective, optimizer, schedule, mesh, state, ours.teacher_params)
    for done in range(steps):
        hyper = tb.Hyper(learning_rate, progress=done / total_steps)
        state, _ = step(state, ours.teacher_params, ours.batch, hyper)
    return named_tensors(state.params)


def named_tensors(trainable: Any) -> Tensors:
    """A tree of parameters or gradients; projections are `fit_dense`."""
    tree = dict(trainable)
    projections = tree.pop("projections", {})
    prefix = "bert." if set(tree) == {"encoder"} else ""
    tensors = {prefix + name: tensor for name, tensor in to_hf_tensors(tree, STUDENT).items()}
    for name, layer in projections.items():
        tensors |= {f"{name}.weight": np.asarray(layer["kernel"]).T, f"{name}.bias": np.asarray(layer["bias"])}
    return tensors


def assert_close(computed: Tensors, expected: Tensors, what: str) -> None:
    assert computed.keys() == expected.keys()
    errors = {
        name: np.linalg.norm(computed[name] - expected[name]) / np.linalg.norm(expected[name]) for name in expected
    }
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"{what} of {len(wrong)} of {len(errors)} tensors differ from torch: {wrong}"


def assert_close_gradients(computed: Tensors, expected: Tensors) -> None:
    """A bias of all keys shifts all scores of a query alike: before a softmax its gradient is 0, and ours rounding."""
    computed, expected = dict(computed), dict(expected)
    for name in [name for name in expected if name.endswith("key.bias")]:
        scale = np.linalg.norm(expected[name.replace("key", "query")])
        assert np.linalg.norm(computed.pop(name)) < TOLERANCE * scale
        assert np.linalg.norm(expected.pop(name)) < TOLERANCE * scale
    assert_close(computed, expected, "gradients")


class Stored(NamedTuple):
    """What `fixtures/make_fixtures.py` had torch compute."""

    ours: Any
    training: dict[str, Any]
    tensors: Tensors

    def part(self, name: str) -> Tensors:
        return {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }


@pytest.fixture(scope="module")
def stored() -> Stored:
    with safe_open(STORED, "np") as file:
        described = json.loads(file.metadata()["official"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    contents = Stored(None, described["training"], tensors)
    teacher, student = (tb.BertConfig.from_hf(described[role]) for role in ("teacher", "student"))
    inputs, projection = contents.part("inputs"), contents.part("fit_dense")
    rows = len(inputs["input_ids"])
    batch = tb.Batch(**inputs, labels=np.zeros(rows, np.int32), example_mask=np.ones(rows, np.float32))
    ours = Ours(
        teacher,
        student,
        from_hf_tensors(teacher, contents.part("teacher"), "stored"),
        from_hf_tensors(student, contents.part("student"), "stored"),
        {"kernel": projection["weight"].T, "bias": projection["bias"]},
        jax.tree.map(jnp.asarray, batch),
    )
    return contents._replace(ours=ours)


def test_the_stored_transformer_loss_and_gradients(stored: Stored) -> None:
    losses, grads = transformer_loss(stored.ours)
    expected = stored.part("loss")
    assert losses == pytest.approx({name: float(expected[name]) for name in losses}, rel=TOLERANCE)
    assert_close(grads, stored.part("transformer"), "gradients")


@pytest.mark.long
def test_the_stored_prediction_loss_and_gradients(stored: Stored) -> None:
    loss, grads = prediction_loss(stored.ours, stored.training["temperature"])
    assert loss == pytest.approx(float(stored.part("loss")["prediction"]), rel=TOLERANCE)
    assert_close_gradients(grads, stored.part("prediction"))


@pytest.mark.long
def test_the_stored_parameters_after_steps_of_bert_adam(stored: Stored) -> None:
    training = {name: value for name, value in stored.training.items() if name != "temperature"}
    assert_close(after_steps(stored.ours, **training), stored.part("after"), "parameters")


class Pair(NamedTuple):
    """The same models and batch twice."""

    reference: ModuleType
    teacher: Any
    student: Any
    fit_dense: Any
    ours: Ours

    def transformer_loss(self, student: Any, fit_dense: Any) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            teacher = self.outputs(self.teacher)
        mask = torch.as_tensor(np.array(self.ours.batch.attention_mask))
        return self.reference.official_transformer_loss(self.outputs(student), teacher, mask, fit_dense)

    def outputs(self, model: Any) -> Any:
        return self.reference.run(model, *(np.array(leaf) for leaf in self.ours.batch[:3]))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("torch")
    import torch_reference

    return torch_reference


def make_pair(reference: ModuleType, teacher_config: tb.BertConfig, student_config: tb.BertConfig) -> Pair:
    import torch
    import transformers

    def model(config: tb.BertConfig, seed: int) -> Any:
        torch.manual_seed(seed)
        hf = transformers.BertConfig(**config.to_hf(), attn_implementation="eager")
        model = transformers.BertForSequenceClassification(hf).eval()
        reference.perturb(model, seed)
        return model

    def params(config: tb.BertConfig, model: Any) -> Any:
        return from_hf_tensors(config, tensors_of(model.named_parameters()), "torch")

    teacher, student = model(teacher_config, 0), model(student_config, 1)
    fit_dense = torch.nn.Linear(student_config.hidden_size, teacher_config.hidden_size)
    rng = np.random.default_rng(0)
    lengths = np.array([32, 19, 7])
    positions = np.arange(32)
    mask = (positions < lengths[:, None]).astype(np.int32)
    batch = tb.Batch(
        input_ids=(rng.integers(5, 1000, mask.shape) * mask).astype(np.int32),
        attention_mask=mask,
        token_type_ids=((positions >= lengths[:, None] // 2) * mask).astype(np.int32),
        labels=np.zeros(3, np.int32),
        example_mask=np.ones(3, np.float32),
    )
    projection = tensors_of(fit_dense.named_parameters())
    ours = Ours(
        teacher_config,
        student_config,
        params(teacher_config, teacher),
        params(student_config, student),
        {"kernel": projection["weight"].T, "bias": projection["bias"]},
        jax.tree.map(jnp.asarray, batch),
    )
    return Pair(reference, teacher, student, fit_dense, ours)


@pytest.fixture(scope="module")
def pair(reference: ModuleType) -> Pair:
    return make_pair(reference, TEACHER, STUDENT)


def tensors_of(named: Any) -> Tensors:
    return {name: parameter.detach().numpy().copy() for name, parameter in named}


def test_transformer_loss_and_gradients(pair: Pair) -> None:
    ours, grads = transformer_loss(pair.ours)
    torch_losses = pair.transformer_loss(pair.student, pair.fit_dense)
    assert ours == pytest.approx({name: loss.item() for name, loss in torch_losses.items()}, rel=TOLERANCE)
    named = pair.reference.trained(pair.student, pair.fit_dense)
    expected = pair.reference.gradients(torch_losses["attention"] + torch_losses["hidden"], named)
    assert_close(grads, tensors_of(expected.items()), "gradients")


def test_scores_below_minus_100_count_as_padding(reference: ModuleType) -> None:
    """Losses alone: torch's own gradients in float32 are 2e-5 away from float64 with weights so large."""
    pair = make_pair(reference, WIDE_TEACHER, WIDE_STUDENT)
    assert min(scores.min() for scores in pair.outputs(pair.student).scores) < -100
    ours, _ = transformer_loss(pair.ours)
    torch_losses = pair.transformer_loss(pair.student, pair.fit_dense)
    assert ours == pytest.approx({name: loss.item() for name, loss in torch_losses.items()}, rel=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_prediction_loss_and_gradients(pair: Pair, temperature: float) -> None:
    ours, grads = prediction_loss(pair.ours, temperature)
    logits = [pair.outputs(model).logits for model in (pair.student, pair.teacher)]
    torch_loss = pair.reference.official_prediction_loss(logits[0], logits[1].detach(), temperature)
    assert ours == pytest.approx(torch_loss.item(), rel=TOLERANCE)
    expected = pair.reference.gradients(torch_loss, list(pair.student.named_parameters()))
    assert_close_gradients(grads, tensors_of(expected.items()))


def test_parameters_after_steps_of_bert_adam(pair: Pair) -> None:
    student, fit_dense = copy.deepcopy(pair.student), copy.deepcopy(pair.fit_dense)
    named = pair.reference.trained(student, fit_dense)
    pair.reference.train(lambda: sum(pair.transformer_loss(student, fit_dense).values()), named, **TRAINING)
    assert_close(after_steps(pair.ours, **TRAINING), tensors_of(named), "parameters")
