"""The table of teachers: which kind a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.teachers.predictions import is_predictions, load_predictions
from tinybert_jax.teachers.teacher import Teacher, load_model_teacher


class TeacherKind(NamedTuple):
    """A kind of teacher: the names that it takes, and how one is loaded and checked."""

    takes: Callable[[str], bool]
    load: Callable[[Experiment], Teacher]


# a later row comes first, so a row that is added takes its names from these
TEACHERS: dict[str, TeacherKind] = {
    "model": TeacherKind(lambda name: True, load_model_teacher),
    "predictions": TeacherKind(is_predictions, load_predictions),
}


def load_teacher(experiment: Experiment) -> Teacher:
    """The teacher of an experiment, by the last row that takes its name.

    Raises:
        InputError: it cannot be read, or does not fit the task.
    """
    name = str(experiment.teacher)
    return next(row for row in reversed(TEACHERS.values()) if row.takes(name)).load(experiment)
