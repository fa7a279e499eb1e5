"""Our side of the benchmarks, as `torch_baseline` is the other: distillation step, its gradient, inference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import Pair, alternate

from tinybert_jax.batch import Batch, Params
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.inference.step import make_predict_step
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import BertForSequenceClassification
from tinybert_jax.models.parameters import init_params
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.stages import Hyper
from tinybert_jax.training import optim, population
from tinybert_jax.training.step import TrainState, create_state, make_train_step


def matmul_flops_per_second(repeats: int) -> float:
    """The rate of one large float32 product, 2048 x 768 x 3072, by JAX: what this machine reaches."""
    product = jax.jit(jnp.matmul)
    a, b = jnp.ones((2048, 768)), jnp.ones((768, 3072))
    ms = alternate({"matmul": lambda: product(a, b).block_until_ready()}, repeats)["matmul"]
    return 2 * 2048 * 768 * 3072 / ms * 1000


def objective_of(pair: Pair, preset: Preset = "official") -> Objective:
    """The Transformer objective of a teacher and its student."""
    return transformer_objective(pair.student, pair.teacher, preset=preset, compute=pair.compute)


class Stage(NamedTuple):
    """The Transformer stage with AdamW, of one student or of a population, and what its step takes beside a batch."""

    step: Any  # jitted: (state, teacher_params, batch, hyper) -> (state, metrics), the state donated
    state: TrainState
    teacher_params: Params
    hyper: Hyper


def make_stage(pair: Pair, members: int = 1, preset: Preset = "official", teacher: bool = True) -> Stage:
    """Random parameters. Without `teacher`, every batch must bring its targets."""
    objective = objective_of(pair, preset)
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant"), make_mesh()
    teacher_params = init_params(BertForSequenceClassification(pair.teacher), jax.random.key(0)) if teacher else {}
    student_params = init_params(BertForSequenceClassification(pair.student), jax.random.key(1))
    trainable = population.stack([objective.init(jax.random.key(2), student_params)] * members)
    keys = population.stack([jax.random.key(3 + i) for i in range(members)])
    state = create_state(trainable, optimizer, keys, mesh, keeps_best=False)
    step = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params)
    return Stage(step, state, teacher_params, population.stack([Hyper()] * members))


def make_intermediate_step(pair: Pair, members: int = 1, preset: Preset = "official") -> Callable[[Batch], None]:
    """One update of `make_stage`, waited for. The teacher is computed unless the batch brings its targets."""
    compiled, state, teacher_params, hyper = make_stage(pair, members, preset)

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, teacher_params, batch, hyper)
        jax.block_until_ready(metrics)

    return step


@functools.cache
def _host_params(config: BertConfig, seed: int) -> Params:
    return jax.device_get(init_params(BertForSequenceClassification(config), jax.random.key(seed)))


def step_on(
    device: jax.Device, name: Literal["transformer", "prediction"], pair: Pair, batch: Batch
) -> tuple[float, Params]:
    """Loss and gradient of one training step, with the teacher and dropout: of the same parameters on every device."""
    make_objective = transformer_objective if name == "transformer" else prediction_objective
    objective = make_objective(pair.student, pair.teacher, compute=pair.compute)
    teacher_params, student_params = (_host_params(config, i) for i, config in enumerate(pair[:2]))
    trainable = jax.device_get(objective.init(jax.random.key(2), student_params))
    with jax.default_device(device):
        mesh, keeps_gradient = make_mesh(devices=[device]), optax.trace(0.0)
        state = create_state(trainable, keeps_gradient, jax.random.key(3), mesh, keeps_best=False)
        schedule = optim.make_schedule("constant")
        step = make_train_step(objective, keeps_gradient, schedule, mesh, state, teacher_params)
        state, metrics = step(state, teacher_params, batch, Hyper())
    return float(metrics["loss"]), jax.device_get(state.opt_state.trace)


def random_targets(pair: Pair, batch: Batch) -> Batch:
    """The batch with random numbers, on the device, in the shapes of the targets of `make_stage`."""
    objective = objective_of(pair)
    teacher = BertForSequenceClassification(pair.teacher)
    params = jax.eval_shape(lambda: init_params(teacher, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(jax.eval_shape(objective.targets, params, batch))

    @jax.jit
    def draw(keys: jax.Array) -> list[jax.Array]:
        return [jax.random.normal(keys[i], leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]

    return batch._replace(targets=jax.tree.unflatten(tree, draw(jax.random.split(jax.random.key(0), len(leaves)))))


def targets_of(pair: Pair, batch: Batch) -> Batch:
    """The batch with the targets of `make_intermediate_step`."""
    objective = objective_of(pair)
    params = init_params(BertForSequenceClassification(pair.teacher), jax.random.key(0))
    return batch._replace(targets=jax.tree.map(np.asarray, jax.jit(objective.targets)(params, batch)))


def make_gradient(pair: Pair, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The student's part of the step on known targets: the loss, and the loss with its gradient; without dropout."""
    objective = objective_of(pair)
    params = init_params(BertForSequenceClassification(pair.student), jax.random.key(1))
    trainable = objective.init(jax.random.key(2), params)
    loss = jax.jit(lambda trainable, batch: objective.loss(trainable, batch.targets, batch, Hyper(), None)[0])
    gradient = jax.jit(jax.grad(lambda trainable, batch: loss(trainable, batch)))
    return {
        "forward": lambda: jax.block_until_ready(loss(trainable, batch)),
        "gradient": lambda: jax.block_until_ready(gradient(trainable, batch)),
    }


def make_prediction_step(student: BertConfig) -> Callable[[Batch], None]:
    """One update of the prediction stage on batches that bring the teacher's logits; waits for its result."""
    objective = prediction_objective(student, student)
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant"), make_mesh()
    params = init_params(BertForSequenceClassification(student), jax.random.key(1))
    state = create_state(params, optimizer, jax.random.key(3), mesh)
    compiled = make_train_step(objective, optimizer, schedule, mesh, state, {})

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, {}, batch, Hyper())
        jax.block_until_ready(metrics)

    return step


def make_dispatch(config: BertConfig, compute: Compute = DEFAULT) -> Callable[[Batch], jax.Array]:
    """Class logits of a random classifier, which may still be computing."""
    model = BertForSequenceClassification(config, compute)
    params = init_params(model, jax.random.key(0))
    return functools.partial(make_predict_step(model, make_mesh(), params), params)


def make_inference(config: BertConfig) -> Callable[[Batch], jax.Array]:
    """As `make_dispatch`, waited for."""
    dispatch = make_dispatch(config)
    return lambda batch: dispatch(batch).block_until_ready()
