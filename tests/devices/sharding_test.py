"""Meshes and shardings: rules reach parameters and optimizer state alike, and every mesh computes the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.models.config import Ranks
from tinybert_jax.objectives.masked_lm import masked_lm_objective
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import Attention, transformer_objective
from tinybert_jax.training import optim
from tinybert_jax.training.checkpoint import Checkpoints, checksums
from tinybert_jax.training.population import member, stack
from tinybert_jax.training.step import TrainState, create_state, make_train_step

# A prime vocabulary, which no mesh divides; heads for 2 devices; widths for 8
SIZES = {"vocab_size": 97, "num_attention_heads": 4, "initializer_range": 0.2}
TEACHER = tb.BertConfig(hidden_size=48, num_hidden_layers=4, intermediate_size=64, **SIZES)
STUDENT = tb.BertConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64, **SIZES)
LOW_RANK = dataclasses.replace(STUDENT, ranks=Ranks(8, 8, 8, 8, 8, 8, 8))
COMPUTE = tb.Compute(vocab_multiple=16)
ALL_AXES = "data=2 fsdp=2 model=2"
# what is compiled where: each costs seconds
STAGES = {
    "transformer": ["data=8", "fsdp=8", ALL_AXES],
    "transformer in parts, remat": [ALL_AXES],
    "relations": [ALL_AXES],
    "prediction": [ALL_AXES],
    "masked_lm": [ALL_AXES],
    "low rank": [ALL_AXES],
}
MESHES: dict[str, dict[str, int]] = {
    "one": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    ALL_AXES: {"data": 2, "fsdp": 2, "model": 2},
}
MEMBERS = {  # of a population
    "member=4": {"member": 4},
    "data=2 member=2 fsdp=2": {"data": 2, "member": 2, "fsdp": 2},
}


def test_one_device_is_a_mesh_with_all_axes() -> None:
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 1, "model": 1, "member": 1}


def test_too_few_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="data=64, fsdp=1, model=1, member=1 needs 64 devices; found"):
        sharding.make_mesh(data=64)


def test_rules_hold_for_parameters_and_their_moments() -> None:
    mesh = AbstractMesh((1, 2, 4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    kernel = jnp.zeros((3, 8, 16))  # [l, d, mlp]
    params = {"encoder": {"layer": {"intermediate": {"dense": {"kernel": kernel, "bias": jnp.zeros((3, 16))}}}}}
    state = {"params": params, "opt_state": optim.make_optimizer("adamw").init(params)}
    specs = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, state))
    dense = specs["params"]["encoder"]["layer"]["intermediate"]["dense"]
    assert dense["kernel"] == PartitionSpec(None, "fsdp", "model")
    assert dense["bias"] == PartitionSpec(None, "model")
    moments = [spec for spec in jax.tree.leaves(specs["opt_state"]) if spec == dense["kernel"]]
    assert len(moments) == 2
    population = sharding.tree_shardings(mesh, jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params), members=True)
    dense = population["encoder"]["layer"]["intermediate"]["dense"]
    assert dense["kernel"].spec == PartitionSpec("member", None, "fsdp", "model")
    assert dense["bias"].spec == PartitionSpec("member", None, "model")


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    mesh = AbstractMesh((1, 3, 4, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    tree = {"intermediate": {"dense": {"kernel": jnp.zeros((3, 8, 16))}}}
    spec = sharding.tree_shardings(mesh, tree)["intermediate"]["dense"]["kernel"].spec
    assert spec == PartitionSpec(None, None, "model")


def test_a_mesh_is_chosen_from_the_devices_and_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, one = [], sharding.make_mesh()
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    monkeypatch.setattr(sharding, "make_mesh", lambda *sizes: chosen.append(sizes) or one)
    heads = {"model": STUDENT.num_attention_heads, "teacher": 3}
    sharding.choose_mesh(None, [32, 24], heads)
    sharding.choose_mesh({"fsdp": 2}, [32], heads)
    assert chosen == [(4, 1, 1, 1), (1, 2, 1, 1)], "by default as many devices as divide 32 and 24"
    for asked, message in (
        ({"data": 4, "fsdp": 2}, "--mesh data=4,fsdp=2 needs 8 devices, and there are 6"),
        ({"data": 3}, "--mesh data=3 cannot split 32 rows"),
        ({"tensor": 2}, r"mesh {'tensor': 2}: give sizes, at least 1, of data, fsdp, model, member"),
        ({"data": 0}, r"mesh {'data': 0}: give sizes, at least 1"),
        ({"member": 2}, "--mesh member=2: member=2 does not divide the population of 3: choose one that does"),
        ({"model": 2}, "model=2 does not divide the 3 attention heads of the teacher"),
    ):
        with pytest.raises(tb.InputError, match=message):
            sharding.choose_mesh(asked, [32], heads, members=3)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(tb.InputError, match="--mesh data=4 leaves 2 of 6 devices out, and a run of several"):
        sharding.choose_mesh({"data": 4}, [32], heads)


@pytest.fixture(scope="module")
def on_eight() -> dict:
    """What this file, run as a program on 8 fake devices, prints: their number is fixed before jax starts."""
    from conftest import on_devices  # not for the program

    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=on_devices(8), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "mesh"), [(stage, mesh) for stage, meshes in STAGES.items() for mesh in meshes])
def test_every_mesh_gives_the_loss_and_the_gradients_of_one_device(on_eight: dict, stage: str, mesh: str) -> None:
    loss, one = on_eight[stage][mesh]["loss"], on_eight[stage]["one"]["loss"]
    assert loss == pytest.approx(one, rel=1e-6)
    assert on_eight[stage][mesh]["gradient"] < 5e-6, "norm of the difference over the norm, per leaf"


@pytest.mark.long
@pytest.mark.parametrize("mesh", list(MEMBERS))
def test_members_on_devices_of_their_own_have_the_loss_and_the_gradients_of_their_runs_alone(
    on_eight: dict, mesh: str
) -> None:
    """They are computed at once, as on accelerators, behind a teacher whose rows all devices share."""
    measured = on_eight["population"][mesh]
    assert len(set(measured["alone"])) == 4
    assert measured["loss"] == pytest.approx(measured["alone"], rel=1e-6)
    assert max(measured["gradient"]) < 5e-6, "norm of the difference over the norm, per leaf"
    assert measured["shared_out"]


@pytest.mark.long
def test_devices_that_hold_members_share_the_teachers_rows(on_eight: dict) -> None:
    """Each does a quarter of the teacher's work, and all of its member's."""
    flops = on_eight["population"]["flops"]
    expected = flops["alone"] - 0.75 * flops["teacher"]
    assert on_eight["population"]["member=4"]["flops"] == pytest.approx(expected, rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("mesh", list(MESHES))
def test_a_checkpoint_of_eight_fsdp_devices_is_restored_equal_on_every_mesh(on_eight: dict, mesh: str) -> None:
    assert on_eight["restored"][mesh]


def batch_of(size: int) -> tb.Batch:
    random = np.random.default_rng(0)
    ids = random.integers(5, 97, (size, 12)).astype(np.int32)
    mask = (np.arange(12) < random.integers(3, 13, (size, 1))).astype(np.int32)
    labels = np.where((random.random(ids.shape) < 0.2) & (mask > 0), ids, -1).astype(np.int32)
    example_mask = (np.arange(size) < size - 3).astype(np.float32)
    return tb.Batch(ids, mask, np.zeros_like(ids), labels, example_mask)


def objective_of(stage: str) -> tuple[Objective, tb.Batch, dict]:
    compute = dataclasses.replace(COMPUTE, remat="remat" in stage)
    batch = batch_of(16)
    classifier = tb.init_params(tb.BertForSequenceClassification(STUDENT, compute), jax.random.key(1))
    if stage == "masked_lm":
        head = tb.init_params(tb.BertForMaskedLM(STUDENT, compute), jax.random.key(1))
        return masked_lm_objective(STUDENT, compute), batch, head
    batch = batch._replace(labels=np.zeros(16, np.int32))
    if stage == "low rank":
        factors = tb.init_params(tb.BertForSequenceClassification(LOW_RANK, compute), jax.random.key(1))
        return prediction_objective(LOW_RANK, TEACHER, compute=compute), batch, factors
    if stage == "prediction":
        return prediction_objective(STUDENT, TEACHER, compute=compute), batch, classifier
    attention: Attention = "relations" if stage == "relations" else "scores"
    return transformer_objective(STUDENT, TEACHER, attention=attention, compute=compute), batch, classifier


class Measured(NamedTuple):
    loss: Any
    state: TrainState  # with the gradients in the place of the optimizer's
    flops: float  # of one device


def measure(stage: str, mesh: Mesh, seeds: tuple[int, ...] = (3,)) -> Measured:
    """One step of one student, or of a population, with dropout: its masks do not depend on the mesh."""
    objective, batch, student = objective_of(stage)
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER, COMPUTE), jax.random.key(0))
    trainable = stack([objective.init(jax.random.key(seed - 1), student) for seed in seeds])
    kept = optax.GradientTransformation(lambda params: params, lambda grads, state, params: (grads, grads))
    keys = stack([jax.random.key(seed) for seed in seeds])
    state = create_state(trainable, kept, keys, mesh)
    schedule = optim.make_schedule("constant")
    step = make_train_step(objective, kept, schedule, mesh, state, teacher, 2 if "parts" in stage else 1)
    placed = sharding.place(teacher, sharding.tree_shardings(mesh, teacher))
    arguments = state, placed, sharding.global_batch(mesh, batch, 16), stack([tb.Hyper()] * len(seeds))
    compiled = step.lower(*arguments).compile()
    state, metrics = compiled(*arguments)
    return Measured(np.asarray(metrics["loss"]).tolist(), state, compiled.cost_analysis()["flops"])


def measure_members(meshes: dict[str, Mesh]) -> dict[str, Any]:
    """Four members on every mesh, and each alone on one device."""
    seeds = (3, 5, 7, 9)
    alone = [measure("transformer", sharding.make_mesh(), (seed,)) for seed in seeds]
    results = {}
    for name, mesh in meshes.items():
        loss, state, flops = measure("transformer", mesh, seeds)
        gradients = sharding.fetch(state.opt_state)
        references = [member(sharding.fetch(run.state.opt_state), 0) for run in alone]
        errors = [worst(member(gradients, i), reference) for i, reference in enumerate(references)]
        results[name] = {
            "loss": loss,
            "alone": [run.loss[0] for run in alone],
            "gradient": errors,
            "shared_out": all(leaf.sharding.spec[:1] == ("member",) for leaf in jax.tree.leaves(state.params)),
            "flops": flops,
        }
    objective, batch, _ = objective_of("transformer")
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER, COMPUTE), jax.random.key(0))
    targets = jax.jit(objective.targets).lower(teacher, batch).compile()
    return results | {"flops": {"alone": alone[0].flops, "teacher": targets.cost_analysis()["flops"]}}


def worst(gradients: dict, reference: dict) -> float:
    """The largest error of a leaf, in norm, relative to the gradient's."""

    def error(path: tuple, gradient: np.ndarray, expected: np.ndarray) -> float:
        # without a loss on scores, a bias of keys changes nothing: its gradient is rounding alone
        nothing = "key" in str(path) and "bias" in str(path) and np.linalg.norm(expected) < 1e-7 * whole
        return 0.0 if nothing else float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))

    whole = float(optax.tree.norm(reference))
    return max(jax.tree.leaves(jax.tree.map_with_path(error, gradients, reference)))


def restored_everywhere(meshes: dict[str, Mesh]) -> dict[str, bool]:
    def state(mesh: Mesh, seed: int) -> TrainState:
        params = tb.init_params(tb.BertForSequenceClassification(STUDENT), jax.random.key(seed))
        return create_state(params, optim.make_optimizer("adamw"), jax.random.key(seed), mesh)

    saved = state(meshes["fsdp=8"], 1)
    with tempfile.TemporaryDirectory() as directory:
        writer = Checkpoints(Path(directory))
        writer.save(1, saved)
        writer.finish()
        states = {name: Checkpoints(Path(directory)).restore(state(mesh, 2)) for name, mesh in meshes.items()}
    return {name: checksums(restored) == checksums(saved) for name, restored in states.items()}


if __name__ == "__main__":
    meshes = {name: sharding.make_mesh(**sizes) for name, sizes in MESHES.items()}
    result: dict = {"restored": restored_everywhere(meshes)}
    for stage, names in STAGES.items():
        one = measure(stage, meshes["one"])
        reference = sharding.fetch(one.state.opt_state)
        result[stage] = {"one": {"loss": one.loss}}
        for name in names:
            measured = measure(stage, meshes[name])
            gradients = sharding.fetch(measured.state.opt_state)
            result[stage][name] = {"loss": measured.loss, "gradient": worst(gradients, reference)}
    result["population"] = measure_members({name: sharding.make_mesh(**sizes) for name, sizes in MEMBERS.items()})
    print(json.dumps(result))
