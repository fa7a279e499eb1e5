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
CARRIED = "carried"  # in a trainable tree: what the loss reads and no optimizer reaches, as masks and scales


def count_examples(batch: Batch) -> Float[Array, ""]:
    """The number of rows that are no filler."""
    return jnp.sum(jnp.asarray(batch.example_mask, jnp.float32))


def no_flops(tokens: int) -> float:
    """The operations of what costs nothing, or was not counted."""
    return 0.0


class Objective(NamedTuple):
    """What a stage minimises, as pure functions. `key` drives the student's dropout; None switches it off.

    targets(teacher_params, batch) -> pytree: only what `loss` reads, under no gradient; the batch on axis 0.
    loss(trainable, targets, batch, hyper, key) -> (scalar, metrics): a mean over the batch.
    init(key, student_params) -> trainable: the parameters that `loss` reaches, and new projections where it has any.
    export(trainable, student_params) -> student_params with the trained leaves in their places, projections left out.
    weight(batch) -> scalar: how many examples, or masked tokens, that mean is over; accumulated parts weigh as much.
    learn(carried, gradients, hyper) -> carried: what `trainable["carried"]` becomes in a step by the gradients of the
    loss for it, which all have the dtype of a float; None: none are computed.
    advance(carried, params, hyper) -> carried: what it becomes after a step; None: it stays.
    settled(carried) -> bool: whether a state may be the best of its stage, as masks at their target; None: each may.

    The entry "carried" of a trainable tree gets no update by the optimizer. `loss` and `export` find it in its place.
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
    reads_teacher: bool = True  # `targets` runs the teacher, so its results are worth keeping
    reads_padding: bool = False  # `loss` reads the targets of padding, so they are kept too
    target_dtype: Literal["float32", "bfloat16"] = "float32"  # of kept targets
    identity: tuple[Any, ...] = ()  # what determines the targets, beside the teacher and the rows; JSON values
    student_flops: Callable[[int], float] = no_flops  # of a row of so many tokens, forward, backward and loss
    teacher_flops: Callable[[int], float] = no_flops  # of the targets of such a row


class Context(NamedTuple):
    """What an objective is built for: the models, the head that is trained, and the run's arithmetic."""

    student: BertConfig
    teacher: BertConfig | None  # None: no teacher runs; its targets may be known
    head: str
    layer_map: LayerMap
    arithmetic: Arithmetic
    compute: Compute = DEFAULT
    by_query: bool = False  # the task's rows are passages for queries


def split_carried(trainable: Params) -> tuple[Params, Params]:
    """The trained parameters, and what is carried; {} where nothing is.

    >>> split_carried({"encoder": 1, "carried": {"mask": 2}})
    ({'encoder': 1}, {'mask': 2})
    """
    params = {name: value for name, value in trainable.items() if name != CARRIED}
    return params, trainable.get(CARRIED, {})


def acting(
    objective: Objective, name: str, state: Callable[[Params], Any], act: Callable[[Params, Any], Params]
) -> Objective:
    """The objective of a student on whose parameters something acts, in the loss and in what is exported.

    Args:
        objective: of the parameters after it.
        name: of what is carried.
        state: gives it, from the parameters that a stage begins with.
        act: gives the parameters, from the trained ones and what is carried.
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
    """The trainable tree that `split_carried` takes apart."""
    return params | {CARRIED: carried} if carried else params


def take_carried(trainable: Params, name: str) -> tuple[Params, Any]:
    """The trainable tree without what is carried under a name, and that.

    >>> take_carried({"encoder": 1, "carried": {"mask": 2, "scale": 3}}, "mask")
    ({'encoder': 1, 'carried': {'scale': 3}}, 2)
    """
    params, carried = split_carried(trainable)
    return join_carried(params, {key: value for key, value in carried.items() if key != name}), carried[name]


def no_targets(teacher_params: Params, batch: Batch) -> Any:
    """The targets of an objective without a teacher."""
    return ()


def whole_student(key: PRNGKeyArray, student_params: Params) -> Params:
    """Every parameter of the student is reached; projections are no part of it."""
    return without_projections(student_params)


def replace_student(trainable: Params, student_params: Params) -> Params:
    """The trained parameters, which are all of the student."""
    return trainable


def mean_over_examples(per_example: Float[Array, "*l b"], batch: Batch) -> Float[Array, "*l"]:
    """The mean over the rows that are no filler."""
    mask = jnp.asarray(batch.example_mask, jnp.float32)
    return jnp.sum(per_example * mask.reshape((1,) * (per_example.ndim - 1) + (-1,)), -1) / jnp.maximum(
        jnp.sum(mask), 1.0
    )
