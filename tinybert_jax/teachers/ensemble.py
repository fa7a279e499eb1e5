"""Several teachers together. Their outputs are computed before training, and a student learns from the mean."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp

from tinybert_jax.data.labels import label_ids
from tinybert_jax.errors import InputError
from tinybert_jax.models.heads import ClassAxis
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.settings.teachers import Average, Ensemble
from tinybert_jax.teachers.cache import ExamplesWithTargets, WithTargets
from tinybert_jax.teachers.teacher import Teacher


def load_ensemble(experiment: Experiment, load: Callable[[Experiment], Teacher]) -> Teacher:
    """Load the members of an ensemble with `load`, as one teacher.

    Raises:
        InputError: a member cannot be read, does not fit the task, or has other classes than the first.
    """
    settings, task = experiment.teacher, get_task(experiment.task)
    assert isinstance(settings, Ensemble)
    for stage in experiment.stages:
        if stage.objective.matches_tokens and stage.objective.trains_head:
            raise InputError(
                f"stage {stage.objective.name!r} learns outputs and layers from one model: give one --teacher"
            )
    loaded = [load(dataclasses.replace(experiment, teacher=member)) for member in settings.members]
    names = loaded[0].label_names
    members = [dataclasses.replace(member, order=class_order(task, loaded[0], member)) for member in loaded]
    with_layers = [
        number
        for number, member in enumerate(members)
        if member.model is not None and settings.layer_teacher in (None, member.name)
    ]
    if settings.layer_teacher is not None and not with_layers:
        raise InputError(f"{settings.layer_teacher}: has no layers that could teach: name a model")

    layer_member = with_layers[0] if with_layers else None  # by its number, because a member may be moved
    described = json.dumps([settings.shares, settings.average, layer_member, [each.fingerprint for each in loaded]])
    return Teacher(
        str(settings),
        hashlib.sha256(described.encode()).hexdigest(),
        names,
        None if layer_member is None else members[layer_member].model,
        members=tuple(members),
        layer_member=layer_member,
        average=functools.partial(average, shares=settings.shares, of=settings.average),
    )


def class_order(task: Task, first: Teacher, teacher: Teacher) -> np.ndarray | None:
    """For each of the first teacher's classes, its index in another's outputs; None if the order is the same.

    Raises:
        InputError: the teacher has other classes.
    """
    names = first.label_names
    if not task.kind.names_classes or teacher.label_names == names:
        return None
    of_names, of_teacher = label_ids(task, names), label_ids(task, teacher.label_names)
    order = {of_names[label]: of_teacher[label] for label in of_names.keys() & of_teacher.keys()}
    if sorted(order) != list(range(len(names))) or sorted(order.values()) != list(range(len(teacher.label_names))):
        raise InputError(
            f"{teacher.name}: has the classes {', '.join(teacher.label_names)}, and {first.name} {', '.join(names)}:"
            " take teachers of the same classes"
        )
    return np.array([order[number] for number in range(len(names))])


def average(
    outputs: Sequence[np.ndarray],
    class_axis: ClassAxis,
    mask: np.ndarray | None = None,
    *,
    shares: Sequence[float],
    of: Average,
) -> np.ndarray:
    """The weighted mean of several teachers' outputs, as logits float32.

    Args:
        outputs: the logits, or numbers, of each teacher.
        class_axis: the axis over which probabilities add up to 1; EACH: each class has a separate probability; None:
            the outputs are numbers.
        mask: 0 for entries that are not a class, such as padding positions of answers; it broadcasts to the outputs.
        shares: the teachers' weights, which add up to 1.
        of: whether to average probabilities or logits. The result for probabilities is the logarithm of their mean.

    >>> both = [np.log([0.9, 0.1]), np.log([0.5, 0.5])]
    >>> np.exp(average(both, -1, shares=[0.5, 0.5], of="probabilities")).round(3).tolist()
    [0.699999988079071, 0.30000001192092896]
    """
    stacked = np.stack([np.asarray(x, np.float32) for x in outputs])
    weights = np.asarray(shares, np.float32).reshape(-1, *[1] * (stacked.ndim - 1))
    if class_axis is None or of == "logits":
        return (stacked * weights).sum(axis=0)
    if isinstance(class_axis, str):  # EACH
        yes, no = (logsumexp(-np.logaddexp(0, -x), axis=0, b=weights) for x in (stacked, -stacked))
        return (yes - no).astype(np.float32)
    axis = class_axis if class_axis < 0 else class_axis + 1
    real = stacked if mask is None else np.where(mask, stacked, -1e9)
    return logsumexp(log_softmax(real, axis=axis), axis=0, b=weights).astype(np.float32)


def class_mask(class_axis: ClassAxis, lengths: np.ndarray, positions: int) -> np.ndarray | None:
    """The mask for `average`: if classes are positions, [n, positions, 1] with True for real tokens; else None.

    Args:
        class_axis: the class axis of the logits [n, ...], as in `average`.
        lengths: tokens per row, int [n].
        positions: number of positions in the logits.
    """
    return (np.arange(positions) < lengths[:, None])[:, :, None] if class_axis == 1 else None


@dataclass(frozen=True, eq=False)
class AveragedTargets(WithTargets):
    """n rows with the mean of several teachers' outputs."""

    members: Sequence[ExamplesWithTargets]  # the same rows for each teacher, in its tokens
    in_order: Sequence[Callable[[np.ndarray], np.ndarray]]  # `Teacher.in_order` of each
    mean: Callable[..., np.ndarray]  # `Teacher.average`
    class_axis: ClassAxis

    def targets(self, rows: np.ndarray, length: int) -> np.ndarray:
        pairs = zip(self.in_order, self.members, strict=True)
        outputs = [in_order(member.targets(rows, length)) for in_order, member in pairs]
        lengths = np.where(rows >= 0, self.lengths[rows], 0)
        return self.mean(outputs, self.class_axis, class_mask(self.class_axis, lengths, length))
