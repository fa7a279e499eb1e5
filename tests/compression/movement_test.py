"""Movement pruning: scores, schedule, the share that is reached, and where zeros stay."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from conftest import distillation, logged
from flax import traverse_util
from small_model import CONFIG, rows

import tinybert_jax as tb
from tinybert_jax.batch import Params
from tinybert_jax.compression import movement
from tinybert_jax.compression.sparse import kernels_of, with_kernels
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.objective import CARRIED, Objective
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.training import optim
from tinybert_jax.training.step import create_state, make_train_step

NAME = tb.Movement.name
QUERY = ("attention", "self", "query", "kernel")


def make_params() -> Params:
    """A model with zeros in the first layer's queries."""
    params = small_model.make_params()
    kernels = kernels_of(params)
    return with_kernels(params, {QUERY: kernels[QUERY].at[0, :3].set(0.0)})


def train(settings: tb.Movement, steps: int) -> tuple[list[Any], list[Params], Objective]:
    """What is carried after each of 40 steps, the models that are exported, and the objective."""
    examples, mesh = rows(), sharding.make_mesh()
    wrapped = movement.wrap(settings, supervised_objective(CONFIG), CONFIG, examples)
    optimizer, schedule = optim.make_optimizer("adamw"), optim.make_schedule("constant")
    trainable = wrapped.init(jax.random.key(2), make_params())
    state = create_state(trainable, optimizer, jax.random.key(3), mesh)
    step = make_train_step(wrapped, optimizer, schedule, mesh, state, {})
    carried, models = [], []
    for done in range(steps):
        hyper = tb.Hyper(3e-3, progress=done / 40)
        state, _ = step(state, {}, examples.batch(np.arange(16), 6, 0), hyper)
        carried.append(jax.device_get(state.carried))
        models.append(wrapped.export(jax.device_get(state.trainable), {}))
    return carried, models, wrapped


@pytest.mark.long
def test_scores_fall_by_the_gradient_of_the_masked_weight_times_the_weight() -> None:
    carried, _, _ = train(tb.Movement(0.5), 1)
    objective, params = supervised_objective(CONFIG), make_params()
    batch = rows().batch(np.arange(16), 6, 0)
    gradients = jax.jit(jax.grad(lambda tree: objective.loss(tree, (), batch, tb.Hyper(), None)[0]))(params)
    scores, weights = traverse_util.flatten_dict(carried[0][NAME]["scores"]), kernels_of(params)
    for path, gradient in kernels_of(gradients).items():
        expected = jnp.where(weights[path] == 0, movement.NEVER, -gradient * weights[path])
        np.testing.assert_allclose(scores[path], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.long
def test_weights_become_zero_by_the_schedule_and_stay_so_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "EVERY", 4)
    settings = tb.Movement(0.8)
    carried, models, wrapped = train(settings, 40)
    flat = [traverse_util.flatten_dict(state[NAME]["masks"]) for state in carried]
    scores = [traverse_util.flatten_dict(state[NAME]["scores"]) for state in carried]
    assert wrapped.settled is not None
    for step, masks in enumerate(flat):
        chosen_at = step - (step + 1) % 4  # the step of the last choice, counted from 0
        share = float(movement.share_at(settings, max(chosen_at, 0) / 40)) if step < 28 else 0.8
        for path, mask in masks.items():
            zeros = 1 - mask.mean(axis=(1, 2))
            first = path == QUERY  # where 3 of 16 rows were zeros before
            expected = [max(share, 3 / 16 if first else 0.0), share]
            np.testing.assert_allclose(zeros, expected, atol=1.01 / mask[0].size)
            np.testing.assert_array_equal(kernels_of(models[step])[path] != 0, mask > 0)
            if step >= 28:
                np.testing.assert_array_equal(mask, flat[28][path])
            elif step == chosen_at and share > 3 / 16:
                for one, values in zip(mask, scores[step][path], strict=True):
                    assert values[one > 0].min() > values[one == 0].max()
        assert not masks[QUERY][0, :3].any()
        reached = all((mask.mean(axis=(1, 2)) <= 0.2 + 1e-6).all() for mask in masks.values())
        assert bool(wrapped.settled(carried[step])) == reached
        assert reached == (step >= 27)  # by rounding, a step early
    came_back = [((a[path] == 0) & (b[path] > 0)).any() for a, b in itertools.pairwise(flat) for path in a]
    assert any(came_back), "a choice is not for ever before the end"
    assert not any(np.signbit(leaf[leaf == 0]).any() for leaf in kernels_of(models[-1]).values())


def test_what_is_masked_acts_in_the_loss() -> None:
    wrapped = movement.wrap(tb.Movement(0.5), supervised_objective(CONFIG), CONFIG, rows())
    trainable, batch = wrapped.init(jax.random.key(2), make_params()), rows().batch(np.arange(16), 6, 0)
    masks = jax.tree.map(jnp.zeros_like, trainable[CARRIED][NAME]["masks"])
    state = trainable[CARRIED][NAME] | {"masks": masks}
    loss, metrics = wrapped.loss(trainable | {CARRIED: {NAME: state}}, (), batch, tb.Hyper(), None)
    without = with_kernels(make_params(), {path: 0 * kernel for path, kernel in kernels_of(make_params()).items()})
    np.testing.assert_allclose(loss, supervised_objective(CONFIG).loss(without, (), batch, tb.Hyper(), None)[0])
    assert metrics["zeros"] == 1.0


@pytest.mark.slow
def test_a_student_ends_with_its_share_of_zeros_alone_in_a_population_and_after_a_stop(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    stages = (
        # labels, because a student that is its teacher has nothing else to learn
        tb.Stage(tb.Prediction(hard_weight=1.0), max_steps=24, learning_rate=1e-3, schedule="constant"),
        tb.Stage("prediction", max_steps=40, learning_rate=3e-3, evaluate_every=20),
    )
    experiment = distillation(
        teacher, teacher, reviews, stages=stages, compression=(tb.Movement(0.6),), checkpoint_every=18
    )
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    for kernel in kernels_of(tb.load_hf(result.directory)[1]).values():
        assert ((kernel == 0).mean(axis=(1, 2)) >= 0.6).all()
        assert ((kernel == 0).mean(axis=(1, 2)) < 0.61).all()
    zeros = [line["zeros"] for line in logged(tmp_path / "run") if "zeros" in line]
    assert zeros[-1] == zeros[-2] == pytest.approx(0.6, abs=0.01)
    weights = (result.directory / "model.safetensors").read_bytes()
    both = tb.run_population([experiment, dataclasses.replace(experiment, seed=1, data_seed=0)], tmp_path / "both")
    assert (both[0].directory / "model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "run/checkpoints/1-prediction/24")  # as if the run had been killed before it
    shutil.rmtree(tmp_path / "run/checkpoints/2-prediction")
    shutil.rmtree(result.directory)
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert (again.directory / "model.safetensors").read_bytes() == weights


def test_without_training_nothing_moves(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    source = tb.DataSource(data=str(reviews))
    with pytest.raises(tb.InputError, match="'movement' acts while a model is trained, and here none is"):
        tb.compress(str(teacher), "classification", source, (tb.Movement(),), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"share": 1.0}, "share is 1.0"), ({"share": 0.0}, "share is 0.0"), ({"until": 1.0}, "unti")],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Movement(**changes)
