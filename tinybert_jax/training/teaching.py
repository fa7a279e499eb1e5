"""The work of a run's teacher before the first step: its scores, and the outputs that are computed in advance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from tinybert_jax.batch import Examples, Params
from tinybert_jax.devices import processes
from tinybert_jax.devices.sharding import batch_shares, place, tree_shardings
from tinybert_jax.errors import InputError
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.heads import HEADS, ClassAxis, head_losses
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.choices import EVAL_BATCH_SIZE
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.objectives import Prediction
from tinybert_jax.tasks.kinds import named_scores
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.cache import ExamplesWithTargets, OverLimit, TeacherCache
from tinybert_jax.teachers.ensemble import AveragedTargets, class_mask
from tinybert_jax.teachers.teacher import Teacher
from tinybert_jax.training.inputs import Inputs
from tinybert_jax.training.material import Lesson

FEW_ROWS = 100  # with fewer dev rows, a weak teacher looks like guessing (WNLI's dev set has 71)


class Taught(NamedTuple):
    """What the stages of a run need from its teacher."""

    params: Params  # of the model that runs in the step, on the mesh; {} if no model runs
    examples: Examples | None  # the training rows with the teacher's outputs; None if the teacher runs in the step
    scores: dict[str, float] | None  # on the dev sets; None if unknown


def prepare(experiment: Experiment, inputs: Inputs, mesh: Mesh) -> Taught:
    """Score the teacher, and compute outputs in advance where possible. The members of an ensemble come one by one.

    Raises:
        InputError: a teacher is at chance (only a warning with fewer dev rows than FEW_ROWS), its outputs are not
            finite, or the outputs of an ensemble do not fit into the cache.
    """
    teacher = inputs.teacher
    if teacher is None or not experiment.distils:
        return Taught({}, None, None)
    if not inputs.lessons:  # a corpus
        return Taught(_placed(teacher, mesh), None, None)
    examined = [_examined(experiment, inputs, lesson, mesh) for lesson in inputs.lessons]
    params = next((member.params for member in examined if member.params), {})
    if not teacher.members:
        (alone,) = examined
        return Taught(params, alone.examples, alone.scores or None)
    axis = head_losses(inputs.head, inputs.config).class_axis
    assert teacher.average is not None, "an ensemble has a mean"
    scores = _score_together(teacher, inputs.dev, [member.outputs for member in examined], axis)
    known = [member.examples for member in examined if member.examples is not None]
    in_order = [member.in_order for member in teacher.members]
    examples = AveragedTargets(inputs.train, known, in_order, teacher.average, axis) if known else None
    return Taught(params, examples, scores or None)


class Examined(NamedTuple):
    """A teacher or member of an ensemble on the dev sets, and what the stages need of it."""

    params: Params  # on the mesh; {} if it does not run in the step
    outputs: dict[str, np.ndarray]  # logits, by dev set
    scores: dict[str, float]
    examples: ExamplesWithTargets | None  # the training rows with its outputs, if a stage reads them


def _examined(experiment: Experiment, inputs: Inputs, lesson: Lesson, mesh: Mesh) -> Examined:
    """Score a teacher, and compute its outputs in advance, unless it runs in the step."""
    teacher, whole = lesson.teacher, inputs.teacher
    assert whole is not None, "a lesson has a teacher"
    params = {} if teacher.model is None else _placed(teacher, mesh)
    if processes.is_primary():
        rows = sum(len(split.tokens) for split in lesson.dev.values())
        print(f"scoring {lesson.name} on {rows} dev rows", file=sys.stderr, flush=True)
    outputs = {name: teacher.in_order(x) for name, x in _dev_outputs(inputs, lesson, params, mesh).items()}
    scores = score(lesson.name, lesson.dev, outputs, teacher.label_names)
    if whole.members and processes.is_primary():
        print(f"teacher {lesson.name}: {_line(scores)}", flush=True)
    reads_outputs = any(stage.objective.reads_outputs for stage in experiment.stages)
    is_known = reads_outputs and not whole.runs_alone
    examples = _known_targets(experiment, inputs, lesson, params, mesh) if is_known else None
    runs = whole.runs_alone or (experiment.matches_tokens and teacher is inputs.layer_teacher)
    return Examined(params if runs else {}, outputs, scores, examples)


def _score_together(
    teacher: Teacher,
    dev: dict[str, Split],
    outputs: Sequence[dict[str, np.ndarray]],
    axis: ClassAxis,
) -> dict[str, float]:
    """An ensemble's scores, from its members' logits, on the dev sets for which all members have outputs."""
    assert teacher.average is not None, "an ensemble has a mean"
    means = {}
    for name, split in dev.items():
        if all(name in of_dev for of_dev in outputs):
            of_members = [of_dev[name] for of_dev in outputs]
            mask = class_mask(axis, np.asarray(split.tokens.lengths), of_members[0].shape[1])
            means[name] = teacher.average(of_members, axis, mask)
    scores = score(teacher.name, dev, means, teacher.label_names)
    if scores and processes.is_primary():
        print(f"ensemble of {len(outputs)}: {_line(scores)}", flush=True)
    return scores


def target_cache(
    experiment: Experiment,
    inputs: Inputs,
    objective: Objective,
    named: str,
    teacher: Teacher,
    params: Params,
    mesh: Mesh,
) -> TeacherCache:
    """The cache of a teacher's targets for an objective with the name `named`."""
    identity = [teacher.fingerprint, experiment.compute_dtype, named, *objective.identity]
    title = f"{teacher.name}, {named}"
    return TeacherCache(objective, params, identity, mesh, eval_batch_size(mesh), inputs.buckets, title)


def score(
    name: str, dev: dict[str, Split], outputs: dict[str, np.ndarray], label_names: Sequence[str]
) -> dict[str, float]:
    """A teacher's dev scores, by metric. `label_names` are its classes by id.

    Raises:
        InputError: its skill is below chance (only a warning with fewer rows than FEW_ROWS), or its outputs are not
            finite.
    """
    scores = {}
    for dev_name, logits in outputs.items():
        split = dev[dev_name]
        if not np.isfinite(logits).all():
            raise InputError(f"{name}: its outputs on the dev set are not finite")
        if message := split.doubt(name, logits, label_names):
            if len(split.tokens) >= FEW_ROWS:
                raise InputError(message)
            if processes.is_primary():
                print(f"warning: {message}", file=sys.stderr)
        scores[dev_name] = split.score(logits)
    return named_scores(scores)


def eval_batch_size(mesh: Mesh) -> int:
    """EVAL_BATCH_SIZE, rounded up to a multiple of the number of devices that a batch is split over."""
    rows = batch_shares(mesh)
    return -(-EVAL_BATCH_SIZE // rows) * rows


def _placed(teacher: Teacher, mesh: Mesh) -> Params:
    assert teacher.model is not None
    return place(teacher.model.params, tree_shardings(mesh, teacher.model.params))


def _dev_outputs(inputs: Inputs, lesson: Lesson, params: Params, mesh: Mesh) -> dict[str, np.ndarray]:
    """A teacher's logits on the dev sets, [n, c] or [n, q, c]; [n, 1] in regression."""
    model = lesson.teacher.model
    if model is None:
        return {name: x if x.ndim > 1 else x[:, None] for name, x in lesson.dev_outputs.items()}
    step = make_predict_step(HEADS[inputs.head].model(model.config, inputs.compute), mesh, params)
    return {
        name: predict_logits(step, params, dev.tokens, eval_batch_size(mesh), inputs.buckets)
        for name, dev in lesson.dev.items()
    }


def _known_targets(
    experiment: Experiment, inputs: Inputs, lesson: Lesson, params: Params, mesh: Mesh
) -> ExamplesWithTargets:
    if isinstance(lesson.train, ExamplesWithTargets):
        return lesson.train
    model = lesson.teacher.model
    assert model is not None, "a teacher is a model, or knows outputs"
    facts = arithmetic(experiment.preset)
    objective = prediction_objective(inputs.config, model.config, facts, inputs.head, compute=inputs.compute)
    cache = target_cache(experiment, inputs, objective, Prediction.name, lesson.teacher, params, mesh)
    try:
        return cache.with_targets(lesson.train, 1e9 * experiment.teacher_cache_gb)
    except OverLimit as needed:
        raise InputError(
            f"{lesson.name}: the outputs of an ensemble's member are kept, and {needed}: give a larger"
            " --teacher-cache-gb"
        ) from None


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items()) or "no prediction of the dev rows"
