"""TrainState, and the jitted train and predict steps: the same function on one device and on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tinybert_jax.config import Batch, Hyper, Params
from tinybert_jax.optim import Schedule
from tinybert_jax.sharding import batch_sharding, on_mesh, place, replicated, tree_shardings


class TrainState(NamedTuple):
    """All that training changes; arrays only. `best_params` are those of the evaluation with `best_metric`."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: PRNGKeyArray
    best_metric: Float[Array, ""]
    best_params: Params


def create_state(params: Params, optimizer: optax.GradientTransformation, key: PRNGKeyArray, mesh: Mesh) -> TrainState:
    """A state at step 0, placed on the mesh. The step donates it, so `params`, whole on every process, are copied."""

    def create(params: Params, key: PRNGKeyArray) -> TrainState:
        step, best = jnp.zeros((), jnp.int32), jnp.full((), -jnp.inf)
        return TrainState(step, params, optimizer.init(params), key, best, jax.tree.map(jnp.copy, params))

    shardings = tree_shardings(mesh, jax.eval_shape(create, params, key))
    placed = place(params, tree_shardings(mesh, params))
    return jax.jit(create, out_shardings=shardings)(placed, key)


def make_train_step(
    objective: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    state: TrainState,
    teacher_params: Params,
    accumulation_steps: int = 1,
) -> Callable[[TrainState, Params, Batch, Hyper], tuple[TrainState, dict[str, Array]]]:
    """The compiled step `(state, teacher_params, batch, hyper) -> (state, metrics)`; the state passed in is donated.

    Args:
        objective: a `distill.Objective`, or any pair of functions `targets` and `loss` of its form.
        optimizer: a transform without learning rate (`optim.make_optimizer`).
        schedule: the learning rate's multiplier at a step.
        mesh: from `sharding.make_mesh`.
        state: of the shapes and shardings that will be trained.
        teacher_params: of the shapes that will be passed; anything, where the objective has no teacher.
        accumulation_steps: parts of equal size that a batch is computed in, one after the other, to save memory; the
            result is that of the whole batch but for rounding and the dropout keys. Must divide the batch size.

    Metrics are the objective's, and `learning_rate`, `gradient_norm` and `parameter_norm` (after the update); scalars,
    still on the device.
    """

    def step(
        state: TrainState, teacher_params: Params, batch: Batch, hyper: Hyper
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)

        def gradient(batch: Batch, key: PRNGKeyArray) -> tuple[Params, dict[str, Array]]:
            targets = jax.lax.stop_gradient(objective.targets(teacher_params, batch))
            return jax.grad(objective.loss, has_aux=True)(state.params, targets, batch, hyper, key)

        if accumulation_steps == 1:
            grads, metrics = gradient(batch, key)
        else:
            grads, metrics = _accumulated(gradient, batch, key, accumulation_steps)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            learning_rate = hyper.learning_rate * schedule(state.step)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        norms = {"gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(params)}
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, metrics | {"learning_rate": learning_rate} | norms

    shardings = tree_shardings(mesh, state)
    teacher_shardings = tree_shardings(mesh, teacher_params)
    return jax.jit(
        on_mesh(mesh, step),
        in_shardings=(shardings, teacher_shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _accumulated(gradient: Callable[[Batch, PRNGKeyArray], Any], batch: Batch, key: PRNGKeyArray, parts: int) -> Any:
    """The mean of `gradient` over the parts of a batch, each weighed by its real examples."""
    # every parts-th row is of one part, so that each part is spread over all devices
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    total = jnp.maximum(jnp.sum(batch.example_mask), 1.0)

    def add(sums: Any, part: tuple[Batch, PRNGKeyArray]) -> tuple[Any, None]:
        weight = jnp.sum(part[0].example_mask) / total
        return jax.tree.map(lambda s, x: s + weight * x, sums, gradient(*part)), None

    inputs = split, jax.random.split(key, parts)
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)[0]


def make_predict_step(model: Any, mesh: Mesh, params: Params) -> Callable[[Params, Batch], Array]:
    """The compiled `(params, batch) -> logits` of a model, dropout off; every process passes the whole batch, and gets
    all logits.
    """

    def predict(params: Params, inputs: tuple[Array, Array, Array]) -> Array:
        return model.apply({"params": params}, *inputs, score_layers=()).logits

    rows = batch_sharding(mesh)
    compiled = jax.jit(
        on_mesh(mesh, predict), in_shardings=(tree_shardings(mesh, params), rows), out_shardings=replicated(mesh)
    )

    def step(params: Params, batch: Batch) -> Array:
        inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return compiled(params, place(inputs, (rows,) * 3))

    return step
