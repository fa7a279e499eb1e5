"""Meshes and shardings: rules reach parameters and optimizer state alike, and every mesh computes the same."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

import tinybert_jax as tb
from tinybert_jax import distill, optim, sharding, train_step
from tinybert_jax.checkpoint import Checkpoints, checksums

# A prime vocabulary, which no mesh divides; heads for 2 devices; widths for 8
SIZES = {"vocab_size": 97, "vocab_multiple": 16, "num_attention_heads": 4, "initializer_range": 0.2}
TEACHER = tb.BertConfig(hidden_size=48, num_hidden_layers=4, intermediate_size=64, **SIZES)
STUDENT = tb.BertConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64, **SIZES)
ALL_AXES = "data=2 fsdp=2 model=2"
# what is compiled where: each costs seconds
STAGES = {
    "transformer": ["data=8", "fsdp=8", ALL_AXES],
    "transformer in parts, remat": [ALL_AXES],
    "prediction": [ALL_AXES],
    "masked_lm": [ALL_AXES],
}
MESHES: dict[str, dict[str, int]] = {
    "one": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    ALL_AXES: {"data": 2, "fsdp": 2, "model": 2},
}


def test_one_device_is_a_mesh_with_all_axes() -> None:
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 1, "model": 1}


def test_too_few_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="data=64, fsdp=1, model=1 needs 64 devices; found"):
        sharding.make_mesh(data=64)


def test_rules_hold_for_parameters_and_their_moments() -> None:
    mesh = AbstractMesh((1, 2, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    kernel = jnp.zeros((3, 8, 16))  # [l, d, mlp]
    params = {"encoder": {"layer": {"intermediate": {"dense": {"kernel": kernel, "bias": jnp.zeros((3, 16))}}}}}
    state = {"params": params, "opt_state": optim.make_optimizer("adamw").init(params)}
    specs = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, state))
    dense = specs["params"]["encoder"]["layer"]["intermediate"]["dense"]
    assert dense["kernel"] == PartitionSpec(None, "fsdp", "model")
    assert dense["bias"] == PartitionSpec(None, "model")
    moments = [spec for spec in jax.tree.leaves(specs["opt_state"]) if spec == dense["kernel"]]
    assert len(moments) == 2


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    mesh = AbstractMesh((1, 3, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    tree = {"intermediate": {"dense": {"kernel": jnp.zeros((3, 8, 16))}}}
    spec = sharding.tree_shardings(mesh, tree)["intermediate"]["dense"]["kernel"].spec
    assert spec == PartitionSpec(None, None, "model")


def test_a_mesh_is_chosen_from_the_devices_and_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, one = [], sharding.make_mesh()
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    monkeypatch.setattr(sharding, "make_mesh", lambda *sizes: chosen.append(sizes) or one)
    models = {"model": STUDENT, "teacher": dataclasses.replace(TEACHER, num_attention_heads=3)}
    sharding.choose_mesh(None, [32, 24], models)
    sharding.choose_mesh({"fsdp": 2}, [32], models)
    assert chosen == [(4, 1, 1), (1, 2, 1)], "by default as many devices as divide 32 and 24"
    for asked, message in (
        ({"data": 4, "fsdp": 2}, "--mesh data=4,fsdp=2 needs 8 devices, and there are 6"),
        ({"data": 3}, "--mesh data=3 cannot share 32 rows"),
        ({"model": 2}, "model=2 does not divide the 3 attention heads of the teacher"),
    ):
        with pytest.raises(tb.InputError, match=message):
            sharding.choose_mesh(asked, [32], models)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(tb.InputError, match="--mesh data=4 leaves 2 of 6 devices out; of several processes all"):
        sharding.choose_mesh({"data": 4}, [32], models)


@pytest.fixture(scope="module")
def on_eight() -> dict:
    """What this file, run as a program on 8 fake devices, prints: their number is fixed before jax starts."""
    # little optimised: it is compiled for longer than it runs
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("stage", "mesh"), [(stage, mesh) for stage, meshes in STAGES.items() for mesh in meshes])
def test_every_mesh_gives_the_loss_and_the_gradients_of_one_device(on_eight: dict, stage: str, mesh: str) -> None:
    loss, one = on_eight[stage][mesh]["loss"], on_eight[stage]["one"]["loss"]
    assert loss == pytest.approx(one, rel=1e-6)
    assert on_eight[stage][mesh]["gradient"] < 5e-6, "norm of the difference over the norm, per leaf"


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


def objective_of(stage: str) -> tuple[distill.Objective, tb.Batch, dict]:
    student = dataclasses.replace(STUDENT, remat="remat" in stage)
    batch = batch_of(16)
    classifier = tb.init_params(tb.BertForSequenceClassification(student), jax.random.key(1))
    if stage == "masked_lm":
        head = tb.init_params(tb.BertForMaskedLM(student), jax.random.key(1))
        return distill.masked_lm_objective(student), batch, head
    batch = batch._replace(labels=np.zeros(16, np.int32))
    if stage == "prediction":
        return distill.prediction_objective(student, TEACHER), batch, classifier
    return distill.transformer_objective(student, TEACHER), batch, classifier


def measure(stage: str, mesh: Mesh) -> tuple[float, dict]:
    """The loss and the gradients of one step. With dropout: its masks do not depend on the mesh."""
    objective, batch, student = objective_of(stage)
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(0))
    trainable = objective.init(jax.random.key(2), student)
    # an optimizer that keeps the gradient as its state
    kept = optax.GradientTransformation(lambda params: params, lambda grads, state, params: (grads, grads))
    state = train_step.create_state(trainable, kept, jax.random.key(3), mesh)
    schedule = optim.make_schedule("constant", 1)
    step = train_step.make_train_step(objective, kept, schedule, mesh, state, teacher, 2 if "parts" in stage else 1)
    placed = sharding.place(teacher, sharding.tree_shardings(mesh, teacher))
    state, metrics = step(state, placed, sharding.global_batch(mesh, batch, 16), tb.Hyper())
    return float(metrics["loss"]), sharding.fetch(state.opt_state)


def worst(gradients: dict, reference: dict) -> float:
    """The largest error of a leaf, in norm, relative to the gradient's."""

    def error(path: tuple, own: np.ndarray, other: np.ndarray) -> float:
        # without a loss on scores, a bias of keys changes nothing: its gradient is rounding alone
        nothing = "key" in str(path) and "bias" in str(path) and np.linalg.norm(other) < 1e-7 * whole
        return 0.0 if nothing else float(np.linalg.norm(own - other) / np.linalg.norm(other))

    whole = float(optax.tree.norm(reference))
    return max(jax.tree.leaves(jax.tree.map_with_path(error, gradients, reference)))


def restored_everywhere(meshes: dict[str, Mesh]) -> dict[str, bool]:
    def state(mesh: Mesh, seed: int) -> train_step.TrainState:
        params = tb.init_params(tb.BertForSequenceClassification(STUDENT), jax.random.key(seed))
        return train_step.create_state(params, optim.make_optimizer("adamw"), jax.random.key(seed), mesh)

    saved = state(meshes["fsdp=8"], 1)
    with tempfile.TemporaryDirectory() as directory:
        writer = Checkpoints(Path(directory))
        writer.save(1, saved)
        writer.finish()
        found = {name: Checkpoints(Path(directory)).restore(state(mesh, 2)) for name, mesh in meshes.items()}
    return {name: checksums(restored) == checksums(saved) for name, restored in found.items()}


if __name__ == "__main__":
    meshes = {name: sharding.make_mesh(**sizes) for name, sizes in MESHES.items()}
    result: dict = {"restored": restored_everywhere(meshes)}
    for stage, names in STAGES.items():
        loss, reference = measure(stage, meshes["one"])
        result[stage] = {"one": {"loss": loss}}
        for name in names:
            loss, gradients = measure(stage, meshes[name])
            result[stage][name] = {"loss": loss, "gradient": worst(gradients, reference)}
    print(json.dumps(result))
