"""The form of an objective, and what several objectives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.objectives.projections import without_projections
from tinybert_jax.settings.arithmetic import Arithmetic
from tinybert_jax.settings.objectives import LayerMap
from tinybert_jax.settings.stages import Hyper

Metrics = dict[str, Float[Array, ""]]
CARRIED = "carried"  # entry of a trainable tree: masks, scales and the like, which the loss reads but does not train


def count_examples(batch: Batch) -> Float[Array, ""]:
    """The number of rows that are not filler."""
    return jnp.sum(jnp.asarray(batch.example_mask, jnp.float32))


def no_flops(tokens: int) -> float:
    """Zero operations: for something that costs nothing, or is not counted."""
    return 0.0


class Objective(NamedTuple):
    """What a stage minimises, as pure functions. `key` drives the student's dropout; None switches it off.

    targets(teacher_params, batch) -> pytree: what `loss` needs of the teacher, without gradients; rows on axis 0.
    loss(trainable, targets, batch, hyper, key) -> (scalar, metrics): a mean over the batch.
    init(key, student_params) -> trainable: the parameters that `loss` reads, and new projections if it needs any.
    export(trainable, student_params) -> student_params with the trained leaves in their places, without projections.
    weight(batch) -> scalar: number of examples, or masked tokens, of that mean; the weight of an accumulated part.
    learn(carried, gradients, hyper) -> carried: updates `trainable["carried"]` in a step, from the gradients of the
    loss with respect to it, all of float dtypes; None: these gradients are not computed.
    advance(carried, params, hyper) -> carried: updates it after a step; None: it does not change.
    settled(carried) -> bool: whether a state may be the best of its stage, as when masks have reached their target;
    None: every state may.

    The optimizer does not update the entry "carried" of a trainable tree. `loss` and `export` get it in the tree.
    The other fields are facts that a run reads.
    """

    targets: Callable[[Params, Batch], Any]
    loss: Callable[[Params, Any, Batch, Hyper, PRNGKeyArray | None], tuple[Float[Array, ""], Metrics]]
    init: Callable[[PRNGKeyArray, Params], Params]
    export: Callable[[Params, Params], Params]
    weight: Callable[[Batch], Float[Array, ""]] = count_examples
    learn: Callable[[Any, Any, Hyper], Any] | None = None
    advance: Callable[[Any, Params, Hyper], Any] | None = None
    settled: Callable[[Any], Any] | None = None
    reads_teacher: bool = True  # `targets` runs the teacher, so its results are worth caching
    reads_padding: bool = False  # `loss` reads the targets of padding, so they are cached too
    target_dtype: Literal["float32", "bfloat16"] = "float32"  # of cached targets
    identity: tuple[Any, ...] = ()  # JSON values that determine the targets, together with the teacher and the rows
    student_flops: Callable[[int], float] = no_flops  # of a row with that many tokens: forward, backward and loss
    teacher_flops: Callable[[int], float] = no_flops  # of the targets of a row with that many tokens


class Context(NamedTuple):
    """What an objective is built from: the models, the head that is trained, and the run's arithmetic."""

    student: BertConfig
    teacher: BertConfig | None  # None: no teacher model runs; batches may bring its targets
    head: str
    layer_map: LayerMap
    arithmetic: Arithmetic
    compute: Compute = DEFAULT
    by_query: bool = False  # the task's rows are passages for queries


def split_carried(trainable: Params) -> tuple[Params, Params]:
    """Split a trainable tree into the trained parameters and the entry "carried" ({} if there is none).

    >>> split_carried({"encoder": 1, "carried": {"mask": 2}})
    ({'encoder': 1}, {'mask': 2})
    """
    params = {name: value for name, value in trainable.items() if name != CARRIED}
    return params, trainable.get(CARRIED, {})


def acting(
    objective: Objective, name: str, state: Callable[[Params], Any], act: Callable[[Params, Any], Params]
) -> Objective:
    """The objective with the student's parameters changed by `act`, in the loss and in the export.

    Args:
        objective: reads the changed parameters.
        name: the name of the state of `act` under "carried".
        state: computes this state from the trainable tree at the start of a stage.
        act: computes the changed parameters from the trained ones and the state.
    """

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        trainable = objective.init(key, student_params)
        return trainable | {CARRIED: trainable.get(CARRIED, {}) | {name: state(trainable)}}

    def acted(trainable: Params) -> Params:
        return act(*take_carried(trainable, name))

    return objective._replace(
        init=init,
        loss=lambda trainable, *more: objective.loss(acted(trainable), *more),
        export=lambda trainable, student_params: objective.export(acted(trainable), student_params),
    )


def join_carried(params: Params, carried: Params) -> Params:
    """The inverse of `split_carried`."""
    return params | {CARRIED: carried} if carried else params


def take_carried(trainable: Params, name: str) -> tuple[Params, Any]:
    """Take the entry `name` out of "carried": the trainable tree without it, and the entry.

    >>> take_carried({"encoder": 1, "carried": {"mask": 2, "scale": 3}}, "mask")
    ({'encoder': 1, 'carried': {'scale': 3}}, 2)
    """
    params, carried = split_carried(trainable)
    return join_carried(params, {key: value for key, value in carried.items() if key != name}), carried[name]


def no_targets(teacher_params: Params, batch: Batch) -> Any:
    """`Objective.targets` without a teacher: no targets."""
    return ()


def whole_student(key: PRNGKeyArray, student_params: Params) -> Params:
    """`Objective.init` if the loss reads all of the student's parameters: the student without projections."""
    return without_projections(student_params)


def replace_student(trainable: Params, student_params: Params) -> Params:
    """`Objective.export` if all of the student is trained."""
    return trainable


def mean_over_examples(per_example: Float[Array, "*l b"], batch: Batch) -> Float[Array, "*l"]:
    """The mean over the rows that are not filler."""
    mask = jnp.asarray(batch.example_mask, jnp.float32)
    return jnp.sum(per_example * mask.reshape((1,) * (per_example.ndim - 1) + (-1,)), -1) / jnp.maximum(
        jnp.sum(mask), 1.0
    )
