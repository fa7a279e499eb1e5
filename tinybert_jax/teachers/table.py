"""The table of kinds of teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tinybert_jax.errors import InputError
from tinybert_jax.models.heads import HEADS
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import Ensemble, FunctionTeacher
from tinybert_jax.teachers.ensemble import load_ensemble
from tinybert_jax.teachers.exported import is_exported, load_exported
from tinybert_jax.teachers.function import load_function
from tinybert_jax.teachers.predictions import is_predictions, load_predictions
from tinybert_jax.teachers.teacher import Teacher, load_model_teacher


class TeacherKind(NamedTuple):
    """A kind of teacher: which names or settings it is for, and how it is loaded and checked."""

    takes: Callable[[Any], bool]  # `Experiment.teacher` -> whether it is of this kind
    load: Callable[[Experiment], Teacher]
    gives_vectors: bool = False  # it can teach a task whose outputs are vectors
    on_corpus: bool = False  # it can teach raw text: it has layers
    labels_any_text: bool = True  # it has outputs for texts that nobody has given it before


def _row(teacher: Any) -> TeacherKind:
    return next(row for row in reversed(TEACHERS.values()) if row.takes(teacher))


def labels_any_text(teacher: Any) -> bool:
    """Whether the teacher, as in `Experiment.teacher`, has outputs for new texts. A file of predictions has not."""
    return _row(teacher).labels_any_text


def load_teacher(experiment: Experiment) -> Teacher:
    """Load the teacher of an experiment, by the last row of TEACHERS that takes it.

    Raises:
        InputError: it cannot be read, or does not fit the task.
    """
    row = _row(experiment.teacher)
    if isinstance(experiment.source, CorpusSource):
        if not row.on_corpus:
            raise InputError(
                f"{experiment.teacher}: raw text is learnt from layers: give the directory of one model, not exported"
            )
    elif HEADS[get_task(experiment.task).head].gives_vectors and not row.gives_vectors:
        raise InputError(
            f"{experiment.teacher}: the teacher of task {experiment.task!r} is one model: give its directory or hub id"
        )
    return row.load(experiment)


# later rows are asked first, so an added row can take names from these
TEACHERS: dict[str, TeacherKind] = {
    "model": TeacherKind(
        lambda teacher: isinstance(teacher, str), load_model_teacher, gives_vectors=True, on_corpus=True
    ),
    "predictions": TeacherKind(is_predictions, load_predictions, labels_any_text=False),
    "exported": TeacherKind(is_exported, load_exported),
    "function": TeacherKind(lambda teacher: isinstance(teacher, FunctionTeacher), load_function),
    "ensemble": TeacherKind(
        lambda teacher: isinstance(teacher, Ensemble), lambda experiment: load_ensemble(experiment, load_teacher)
    ),
}
