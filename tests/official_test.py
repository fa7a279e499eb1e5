"""`official` does the original code's arithmetic: TinyBERT4 and BERT_BASE (small vocabulary) against torch."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax.hf import from_hf_tensors, to_hf_tensors
from tinybert_jax.optim import make_optimizer, make_schedule
from tinybert_jax.sharding import make_mesh
from tinybert_jax.train_step import create_state, make_train_step

torch = pytest.importorskip("torch")

import torch_reference as reference  # noqa: E402
import transformers  # noqa: E402

TOLERANCE = 1e-5  # of a loss; of the norm of a gradient or parameter, tensor by tensor
TEACHER = tb.BertConfig(
    vocab_size=1000,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    id2label=("a", "b", "c"),
)
STUDENT = tb.student_config("tinybert-4l-312d", TEACHER)
STEPS, TOTAL_STEPS, WARMUP, LEARNING_RATE = 10, 12, 0.25, 1e-3


class Pair(NamedTuple):
    """The same teacher and student twice, and one batch for them."""

    teacher: Any
    student: Any
    fit_dense: Any
    teacher_params: Any
    student_params: Any
    batch: tb.Batch


# Large weights: some scores of real tokens fall below -100, which the original takes for padding.
WIDE_TEACHER = dataclasses.replace(
    TEACHER, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, initializer_range=1.5
)
WIDE_STUDENT = dataclasses.replace(WIDE_TEACHER, hidden_size=32, num_hidden_layers=2)


def torch_model(config: tb.BertConfig, seed: int) -> Any:
    torch.manual_seed(seed)
    hf = transformers.BertConfig(**config.to_hf(), attn_implementation="eager")
    model = transformers.BertForSequenceClassification(hf).eval()
    reference.perturb(model, seed)
    return model


def our_params(config: tb.BertConfig, model: Any) -> Any:
    return from_hf_tensors(config, {name: p.detach().numpy().copy() for name, p in model.named_parameters()}, "torch")


def make_pair(teacher_config: tb.BertConfig, student_config: tb.BertConfig) -> Pair:
    teacher, student = torch_model(teacher_config, 0), torch_model(student_config, 1)
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
    batch = jax.tree.map(jnp.asarray, batch)
    return Pair(
        teacher,
        student,
        torch.nn.Linear(student_config.hidden_size, teacher_config.hidden_size),
        our_params(teacher_config, teacher),
        our_params(student_config, student),
        batch,
    )


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(TEACHER, STUDENT)


def outputs(model: Any, batch: tb.Batch) -> reference.Outputs:
    return reference.run(model, *(np.array(x) for x in (batch.input_ids, batch.attention_mask, batch.token_type_ids)))


def transformer_loss(pair: Pair, student: Any, fit_dense: Any) -> dict[str, Any]:
    with torch.no_grad():
        teacher = outputs(pair.teacher, pair.batch)
    mask = torch.as_tensor(np.array(pair.batch.attention_mask))
    return reference.official_transformer_loss(outputs(student, pair.batch), teacher, mask, fit_dense)


def prediction_loss(pair: Pair, student: Any, temperature: float) -> Any:
    with torch.no_grad():
        teacher = outputs(pair.teacher, pair.batch)
    return reference.official_prediction_loss(outputs(student, pair.batch).logits, teacher.logits, temperature)


def named_parameters(student: Any, fit_dense: Any) -> list[tuple[str, Any]]:
    """All that the stage trains: with `fit_dense`, neither pooler nor head; without it, the whole student."""
    if fit_dense is None:
        return list(student.named_parameters())
    encoder = [(n, p) for n, p in student.named_parameters() if not n.startswith(("bert.pooler", "classifier"))]
    return [*encoder, *fit_dense.named_parameters(prefix="fit_dense")]


def our_tensors(trainable: Any) -> dict[str, np.ndarray]:
    """A tree of parameters or gradients under the names of `named_parameters`."""
    tree = dict(trainable)
    projections = tree.pop("projections", {})
    prefix = "bert." if set(tree) == {"bert"} else ""
    tensors = {prefix + name: tensor for name, tensor in to_hf_tensors(tree).items()}
    for name, layer in projections.items():
        tensors |= {f"{name}.weight": np.asarray(layer["kernel"]).T, f"{name}.bias": np.asarray(layer["bias"])}
    return tensors


def with_torch_projection(trainable: Any, fit_dense: Any) -> Any:
    assert list(trainable["projections"]) == ["fit_dense"]
    weight, bias = (p.detach().numpy().copy() for p in (fit_dense.weight, fit_dense.bias))
    return trainable | {"projections": {"fit_dense": {"kernel": weight.T, "bias": bias}}}


def gradients(loss: Any, named: list[tuple[str, Any]]) -> dict[str, np.ndarray]:
    grads = torch.autograd.grad(loss, [parameter for _, parameter in named])
    return {name: grad.numpy() for (name, _), grad in zip(named, grads, strict=True)}


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], what: str) -> None:
    assert ours.keys() == theirs.keys()
    errors = {name: np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in theirs}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"{what} of {len(wrong)} of {len(errors)} tensors differ from torch: {wrong}"


def our_transformer_loss(
    pair: Pair, teacher_config: tb.BertConfig, student_config: tb.BertConfig
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Losses, in the two groups of the original, and gradients."""
    objective = tb.distill.transformer_objective(student_config, teacher_config, preset="official")
    trainable = with_torch_projection(objective.init(jax.random.key(0), pair.student_params), pair.fit_dense)
    targets = jax.jit(objective.targets)(pair.teacher_params, pair.batch)
    gradient = jax.jit(jax.grad(objective.loss, has_aux=True))
    grads, metrics = gradient(trainable, targets, pair.batch, tb.Hyper(), None)
    attention = sum(float(value) for name, value in metrics.items() if name.startswith("attention/"))
    hidden = sum(float(value) for name, value in metrics.items() if name.startswith(("embedding", "hidden/")))
    assert float(metrics["loss"]) == pytest.approx(attention + hidden, rel=TOLERANCE)
    return {"attention": attention, "hidden": hidden}, our_tensors(grads)


def test_transformer_loss_and_gradients(pair: Pair) -> None:
    ours, grads = our_transformer_loss(pair, TEACHER, STUDENT)
    theirs = transformer_loss(pair, pair.student, pair.fit_dense)
    assert ours == pytest.approx({name: loss.item() for name, loss in theirs.items()}, rel=TOLERANCE)
    named = named_parameters(pair.student, pair.fit_dense)
    assert_close(grads, gradients(theirs["attention"] + theirs["hidden"], named), "gradients")


def test_scores_below_minus_100_count_as_padding() -> None:
    """Losses alone: torch's own gradients in float32 are 2e-5 away from float64 with weights so large."""
    pair = make_pair(WIDE_TEACHER, WIDE_STUDENT)
    assert min(scores.min() for scores in outputs(pair.student, pair.batch).scores) < -100
    ours, _ = our_transformer_loss(pair, WIDE_TEACHER, WIDE_STUDENT)
    theirs = transformer_loss(pair, pair.student, pair.fit_dense)
    assert ours == pytest.approx({name: loss.item() for name, loss in theirs.items()}, rel=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_prediction_loss_and_gradients(pair: Pair, temperature: float) -> None:
    objective = tb.distill.prediction_objective(STUDENT, TEACHER, preset="official")
    targets = jax.jit(objective.targets)(pair.teacher_params, pair.batch)
    loss = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    hyper = tb.Hyper(temperature=temperature)
    (total, _), grads = loss(pair.student_params, targets, pair.batch, hyper, None)

    theirs = prediction_loss(pair, pair.student, temperature)
    assert float(total) == pytest.approx(theirs.item(), rel=TOLERANCE)
    ours, expected = our_tensors(grads), gradients(theirs, named_parameters(pair.student, None))
    # A bias of all keys shifts all scores of a query alike: its gradient is 0, and what is computed is rounding.
    for name in [name for name in expected if name.endswith("key.bias")]:
        scale = np.linalg.norm(expected[name.replace("key", "query")])
        assert np.linalg.norm(ours.pop(name)) < TOLERANCE * scale
        assert np.linalg.norm(expected.pop(name)) < TOLERANCE * scale
    assert_close(ours, expected, "gradients")


def test_parameters_after_steps_of_bert_adam(pair: Pair) -> None:
    """The rate is high enough for a step without weight decay, clipping or warm-up to show."""
    student, fit_dense = copy.deepcopy(pair.student), copy.deepcopy(pair.fit_dense)
    named = named_parameters(student, fit_dense)
    optimizer = reference.BertAdam(named, LEARNING_RATE, TOTAL_STEPS, WARMUP)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(transformer_loss(pair, student, fit_dense).values()).backward()
        optimizer.step()

    objective = tb.distill.transformer_objective(STUDENT, TEACHER, preset="official")
    trainable = with_torch_projection(objective.init(jax.random.key(0), pair.student_params), pair.fit_dense)
    ours = make_optimizer("bert_adam", weight_decay=0.01)
    schedule = make_schedule("linear", TOTAL_STEPS, WARMUP)
    mesh = make_mesh()
    state = create_state(trainable, ours, jax.random.key(0), mesh)
    step = make_train_step(objective, ours, schedule, mesh, state, pair.teacher_params)
    for _ in range(STEPS):
        state, _ = step(state, pair.teacher_params, pair.batch, tb.Hyper(learning_rate=LEARNING_RATE))
    assert_close(our_tensors(state.params), {name: p.detach().numpy() for name, p in named}, "parameters")
