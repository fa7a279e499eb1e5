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
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.cache import ExamplesWithTargets, OverLimit, TeacherCache
from tinybert_jax.teachers.ensemble import AveragedTargets, class_mask
from tinybert_jax.teachers.teacher import Teacher
from tinybert_jax.training.inputs import Inputs, Lesson

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
    params: Params = {}
    if teacher is None or not experiment.distils:
        return Taught(params, None, None)
    if not inputs.lessons:  # a corpus
        return Taught(_placed(teacher, mesh), None, None)
    names_classes = get_task(experiment.task).kind.names_classes
    reads_outputs = any(stage.objective.reads_outputs for stage in experiment.stages)
    outputs, known = [], []
    scores: dict[str, float] = {}
    for lesson in inputs.lessons:
        member_params = {} if lesson.teacher.model is None else _placed(lesson.teacher, mesh)
        if processes.is_primary():
            rows = sum(len(split.tokens) for split in lesson.dev.values())
            print(f"scoring {lesson.name} on {rows} dev rows", file=sys.stderr, flush=True)
        of_dev = _dev_outputs(inputs, lesson, member_params, mesh)
        outputs.append({name: lesson.teacher.in_order(logits) for name, logits in of_dev.items()})
        scores = score(lesson.name, lesson.dev, outputs[-1], lesson.teacher.label_names if names_classes else ())
        if teacher.members and processes.is_primary():
            print(f"teacher {lesson.name}: {_line(scores)}", flush=True)
        if teacher.runs_alone:
            return Taught(member_params, None, scores)
        if reads_outputs:
            known.append(_known_targets(experiment, inputs, lesson, member_params, mesh))
        if experiment.matches_tokens and lesson.teacher is inputs.layer_teacher:
            params = member_params
    if not teacher.members:
        return Taught(params, known[0] if known else None, scores or None)
    axis = head_losses(inputs.head, inputs.config).class_axis
    assert teacher.average is not None, "an ensemble has a mean"
    scores = _score_together(teacher, inputs.dev, outputs, axis, teacher.label_names if names_classes else ())
    in_order = [member.in_order for member in teacher.members]
    examples = AveragedTargets(inputs.train, known, in_order, teacher.average, axis) if known else None
    return Taught(params, examples, scores or None)


def _score_together(
    teacher: Teacher,
    dev: dict[str, Split],
    outputs: Sequence[dict[str, np.ndarray]],
    axis: ClassAxis,
    label_names: Sequence[str],
) -> dict[str, float]:
    """An ensemble's scores, from its members' logits, on the dev sets for which all members have outputs."""
    assert teacher.average is not None, "an ensemble has a mean"
    means = {}
    for name, split in dev.items():
        if all(name in of_dev for of_dev in outputs):
            of_members = [of_dev[name] for of_dev in outputs]
            mask = class_mask(axis, np.asarray(split.tokens.lengths), of_members[0].shape[1])
            means[name] = teacher.average(of_members, axis, mask)
    scores = score(teacher.name, dev, means, label_names)
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
    """A teacher's dev scores, by metric. `label_names` are its classes by id, `()` if it has none.

    Raises:
        InputError: its skill is below chance (only a warning with fewer rows than FEW_ROWS), or its outputs are not
            finite.
    """
    scores = {}
    for dev_name, logits in outputs.items():
        split = dev[dev_name]
        if not np.isfinite(logits).all():
            raise InputError(f"{name}: its outputs on the dev set are not finite")
        skill = split.skill(logits)
        if skill < split.chance:
            order = f", or check its label order {tuple(label_names)}" if len(label_names) > 1 else ""
            message = (
                f"{name}: its predictions on the dev set are no better than chance ({split.measure}"
                f" {skill:.3f}, and guesses reach {split.chance:.3f}); train it on this task, or for longer{order}"
            )
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


def named_scores(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """The scores of all dev sets. Names from a second dev set get its name as a suffix: `accuracy_mismatched`."""
    suffixes = {name: "" if name == "dev" else f"_{name}" for name in scores}
    return {f"{metric}{suffixes[name]}": value for name, of_set in scores.items() for metric, value in of_set.items()}


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
