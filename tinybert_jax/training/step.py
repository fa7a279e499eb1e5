"""TrainState, and the compiled training step. The same function serves one device and a mesh, a single student and a
population.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.devices.sharding import batch_sharding, for_members, on_mesh, place, replicated, tree_shardings
from tinybert_jax.objectives.objective import join_carried, split_carried
from tinybert_jax.settings.stages import Hyper
from tinybert_jax.training.optim import Schedule
from tinybert_jax.training.population import over_members


class TrainState(NamedTuple):
    """All arrays that training changes. `best_params` is the trainable tree at the best evaluation.

    `carried` holds arrays that the loss reads but the optimizer does not update, such as masks. In a population, every
    leaf has the members on axis 0.
    """

    step: Int[Array, "*members"]
    params: Params
    opt_state: Any
    key: Key[Array, "*members"]
    best_metric: Float[Array, "*members"]
    best_params: Params
    carried: Params

    @property
    def trainable(self) -> Params:
        """The trainable tree of the objective: the parameters with the entry "carried"."""
        return join_carried(self.params, self.carried)

    @property
    def of_members(self) -> bool:
        """Whether it is the state of a population."""
        return self.key.ndim > 0


def create_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, "*members"],
    mesh: Mesh,
    keeps_best: bool = True,
) -> TrainState:
    """A state at step 0, placed on the mesh. The step donates it, so `params` (whole on every process) are copied.

    In a population, `params` and `key` have the members on axis 0. Without evaluation (`keeps_best` False),
    `best_params` is empty.
    """

    def create(params: Params, key: PRNGKeyArray) -> TrainState:
        step, best = jnp.zeros((), jnp.int32), jnp.full((), -jnp.inf)
        best_params = jax.tree.map(jnp.copy, params) if keeps_best else {}
        params, carried = split_carried(params)
        return TrainState(step, params, optimizer.init(params), key, best, best_params, carried)

    members = key.ndim > 0
    build = jax.vmap(create) if members else create
    shardings = tree_shardings(mesh, jax.eval_shape(build, params, key), members)
    placed = place(params, tree_shardings(mesh, params, members))
    return jax.jit(build, out_shardings=shardings)(placed, key)


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
        objective: an `objectives.Objective`, or any object with such functions `targets` and `loss`, and `weight` if
            `accumulation_steps` is greater than 1.
        optimizer: a transform without learning rate (`optim.make_optimizer`).
        schedule: the learning rate's multiplier at `hyper.progress`.
        mesh: from `sharding.make_mesh`.
        state: a state with the shapes and shardings to compile for.
        teacher_params: parameters with the shapes to compile for. Not used if the objective has no teacher or if
            batches bring its targets.
        accumulation_steps: number of equal parts that a batch is computed in, one after the other, to save memory. It
            must divide the batch size. The result is that of the whole batch up to rounding and dropout keys.

    In a population, `state`, `hyper` and the metrics have the members on axis 0. All members learn from the same
    batch, and the teacher's targets are computed once for all.

    Metrics are the objective's, `learning_rate`, `gradient_norm`, `parameter_norm` (after the update), and
    `real_tokens`, the share of the batch's positions that are not padding. They are scalars (in a population, one per
    member), still on the device.
    """
    members = state.of_members
    learn, advance = (getattr(objective, name, None) for name in ("learn", "advance"))

    def each(function: Callable[..., Any]) -> Callable[..., Any]:
        return over_members(function, mesh) if members else function

    def update(params: Params, opt_state: Any, grads: Params, hyper: Hyper) -> tuple[Params, Any, dict[str, Array]]:
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, opt_state, params)
            learning_rate = hyper.learning_rate * schedule(hyper.progress)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
        norms = {"gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(params)}
        return params, opt_state, {"learning_rate": learning_rate} | norms

    def step(
        state: TrainState, teacher_params: Params, batch: Batch, hyper: Hyper
    ) -> tuple[TrainState, dict[str, Array]]:
        keys = each(jax.random.fold_in)(state.key, state.step)

        def gradients(batch: Batch, keys: Key[Array, "*members"]) -> tuple[tuple[Params, ...], dict[str, Array]]:
            known = batch.targets is not None
            targets = batch.targets if known else jax.lax.stop_gradient(objective.targets(teacher_params, batch))

            if mesh.shape["member"] > 1:
                targets, batch = for_members(targets), for_members(batch._replace(targets=None))

            def gradient(
                params: Params, carried: Params, hyper: Hyper, key: PRNGKeyArray
            ) -> tuple[tuple[Params, ...], dict[str, Array]]:
                def loss(params: Params, carried: Params) -> Any:
                    return objective.loss(join_carried(params, carried), targets, batch, hyper, key)

                return jax.grad(loss, (0,) if learn is None else (0, 1), has_aux=True)(params, carried)

            return each(gradient)(state.params, state.carried, hyper, keys)

        if accumulation_steps == 1:
            grads, metrics = gradients(batch, keys)
        else:
            parts = each(lambda key: jax.random.split(key, accumulation_steps))(keys)
            grads, metrics = _accumulated(gradients, objective.weight, batch, parts.T)  # the parts on axis 0
        # only what changes is passed to `each`, because the loop over members copies its arguments
        params, opt_state, numbers = each(update)(state.params, state.opt_state, grads[0], hyper)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        if learn is not None:
            state = state._replace(carried=each(learn)(state.carried, grads[1], hyper))
        if advance is not None:
            state = state._replace(carried=each(advance)(state.carried, params, hyper))
        real_tokens = jnp.mean(batch.attention_mask, dtype=jnp.float32)
        return state, metrics | numbers | {"real_tokens": jnp.broadcast_to(real_tokens, keys.shape)}

    shardings = tree_shardings(mesh, state, members)
    teacher_shardings = tree_shardings(mesh, teacher_params)
    return jax.jit(
        on_mesh(mesh, step),
        in_shardings=(shardings, teacher_shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _accumulated(
    gradients: Callable[[Batch, Array], Any],
    weight: Callable[[Batch], Array],
    batch: Batch,
    keys: Key[Array, "parts *members"],
) -> Any:
    """The weighted mean of `gradients` over the parts of a batch, one part for each key."""
    # a part has every n-th row, so that it is spread over all devices
    split = jax.tree.map(lambda x: x.reshape(-1, len(keys), *x.shape[1:]).swapaxes(0, 1), batch)
    total = jnp.maximum(weight(batch), 1.0)

    def add(sums: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        share = weight(part[0]) / total
        return jax.tree.map(lambda s, x: s + share * x, sums, gradients(*part)), None

    shapes = jax.eval_shape(gradients, *jax.tree.map(lambda x: x[0], (split, keys)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (split, keys))[0]


def make_keep_best(
    mesh: Mesh, state: TrainState, settled: Callable[[Any], Array] | None = None
) -> Callable[[TrainState, np.ndarray], TrainState]:
    """The compiled `(state, metric) -> state`. The state passed in is donated.

    If `metric` ([members] in a population) is better than `best_metric`, and `settled(state.carried)` holds, the
    trainable tree becomes `best_params`.
    """

    def keep(state: TrainState, metric: Array) -> TrainState:
        better = metric > state.best_metric  # False for NaN
        if settled is not None:
            better &= (jax.vmap(settled) if state.of_members else settled)(state.carried)

        def kept(params: Array, best: Array) -> Array:
            return jnp.where(better.reshape(better.shape + (1,) * (params.ndim - better.ndim)), params, best)

        best_params = jax.tree.map(kept, state.trainable, state.best_params)
        return state._replace(best_metric=jnp.where(better, metric, state.best_metric), best_params=best_params)

    return jax.jit(keep, out_shardings=tree_shardings(mesh, state, state.of_members), donate_argnums=0)


def make_end_members(mesh: Mesh, state: TrainState) -> Callable[[TrainState, np.ndarray], TrainState]:
    """The compiled `(state, ended) -> state`: sets the parameters of the members in `ended`, bool [members], to NaN.
    The state passed in is donated.
    """

    def end(state: TrainState, ended: Array) -> TrainState:
        def marked(leaf: Array) -> Array:
            return jnp.where(ended.reshape(ended.shape + (1,) * (leaf.ndim - ended.ndim)), jnp.nan, leaf)

        return state._replace(params=jax.tree.map(marked, state.params))

    return jax.jit(end, out_shardings=tree_shardings(mesh, state, state.of_members), donate_argnums=0)


def finite_members(mesh: Mesh, state: TrainState) -> list[bool]:
    """Whether all parameters of each member of a population are finite."""

    def finite(params: Params) -> Array:
        leaves = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1) for leaf in jax.tree.leaves(params)]
        return jnp.stack(leaves).all(axis=0)

    return np.asarray(jax.jit(finite, out_shardings=replicated(mesh))(state.params)).tolist()


def make_member_params(mesh: Mesh, state: TrainState) -> Callable[[Params, int], Params]:
    """The compiled `(state.trainable, i) -> trainable` tree of member i of a population, with a model's sharding."""

    def member_params(params: Params, i: ArrayLike) -> Params:
        return jax.tree.map(lambda leaf: leaf[i], params)

    return jax.jit(
        member_params, out_shardings=tree_shardings(mesh, jax.eval_shape(member_params, state.trainable, 0))
    )
