"""Our side of the benchmarks, as `torch_baseline` is the other: distillation step, its gradient, inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import Pair, alternate

from tinybert_jax.batch import Batch
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.inference.step import make_predict_step
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import BertForSequenceClassification
from tinybert_jax.models.parameters import init_params
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.stages import Hyper
from tinybert_jax.training import optim, population
from tinybert_jax.training.step import create_state, make_train_step


def matmul_flops_per_second(repeats: int) -> float:
    """Of one large float32 product, 2048 x 768 x 3072, by JAX: what this machine reaches."""
    product = jax.jit(jnp.matmul)
    a, b = jnp.ones((2048, 768)), jnp.ones((768, 3072))
    ms = alternate({"matmul": lambda: product(a, b).block_until_ready()}, repeats)["matmul"]
    return 2 * 2048 * 768 * 3072 / ms * 1000


def make_intermediate_step(pair: Pair, members: int = 1, preset: Preset = "official") -> Callable[[Batch], None]:
    """One update of the Transformer stage with AdamW, of one student or of a population; waits for its result. The
    teacher is computed unless the batch brings its targets.
    """
    teacher, student, compute = pair
    objective = transformer_objective(student, teacher, preset=preset, compute=compute)
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant", 1), make_mesh()
    teacher_params = init_params(BertForSequenceClassification(teacher), jax.random.key(0))
    student_params = init_params(BertForSequenceClassification(student), jax.random.key(1))
    trainable = population.stack([objective.init(jax.random.key(2), student_params)] * members)
    keys = population.stack([jax.random.key(3 + i) for i in range(members)])
    state = create_state(trainable, optimizer, keys, mesh, keeps_best=False)
    compiled = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params)
    hyper = population.stack([Hyper()] * members)

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, teacher_params, batch, hyper)
        jax.block_until_ready(metrics)

    return step


def targets_of(pair: Pair, batch: Batch) -> Batch:
    """The batch with the targets of `make_intermediate_step`."""
    objective = transformer_objective(pair.student, pair.teacher, preset="official", compute=pair.compute)
    params = init_params(BertForSequenceClassification(pair.teacher), jax.random.key(0))
    return batch._replace(targets=jax.tree.map(np.asarray, jax.jit(objective.targets)(params, batch)))


def make_gradient(pair: Pair, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The student's part of the step on known targets: the loss, and the loss with its gradient; without dropout."""
    objective = transformer_objective(pair.student, pair.teacher, preset="official", compute=pair.compute)
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
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant", 1), make_mesh()
    params = init_params(BertForSequenceClassification(student), jax.random.key(1))
    state = create_state(params, optimizer, jax.random.key(3), mesh)
    compiled = make_train_step(objective, optimizer, schedule, mesh, state, {})

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, {}, batch, Hyper())
        jax.block_until_ready(metrics)

    return step


def make_inference(config: BertConfig) -> Callable[[Batch], jax.Array]:
    """Class logits of a random classifier, waited for."""
    model = BertForSequenceClassification(config)
    params = init_params(model, jax.random.key(0))
    compiled = make_predict_step(model, make_mesh(), params)
    return lambda batch: compiled(params, batch).block_until_ready()
