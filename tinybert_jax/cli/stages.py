"""The stages of `tinybert distill`, and the options that they read."""

from __future__ import annotations

import dataclasses
from typing import Any

from tinybert_jax.errors import InputError
from tinybert_jax.settings.objectives import (
    WORDS,
    ObjectiveSettings,
    Patient,
    Prediction,
    Supervised,
    Transformer,
)
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import Task

STAGES: dict[str, tuple[type[ObjectiveSettings], ...]] = {
    "both": (Transformer, Prediction),
    "transformer": (Transformer,),
    "prediction": (Prediction,),
    "patient": (Patient,),
    "supervised": (Supervised,),
}


def stage_kinds(stage: str, task: Task) -> tuple[type[ObjectiveSettings], ...]:
    """The objectives of a row of STAGES: in place of Prediction and Supervised, what learns a teacher's outputs, and
    labels alone, on the task.
    """
    words = {Prediction: task.kind.distilled_by, Supervised: task.kind.supervised_by}
    return tuple(WORDS[words[kind]] if kind in words else kind for kind in STAGES[stage])


def takes_recipe(epochs: int | None, steps: int | None, learning_rate: float | None) -> bool:
    """Whether a stage takes its length or its rate from the recipe."""
    return learning_rate is None or (epochs is None and steps is None)


def described(stage: Stage) -> str:
    """A stage's length and rate, in words."""
    length = f"{stage.epochs} epochs" if stage.max_steps is None else f"{stage.max_steps} steps"
    least = "" if stage.min_steps is None else f" or {stage.min_steps} steps, whichever is more,"
    return f"{stage.objective.name} {length}{least} at learning rate {stage.learning_rate:g}"


def reads(kind: type[ObjectiveSettings], number: str) -> bool:
    """Whether a setting is one of the objective's."""
    return number in {field.name for field in dataclasses.fields(kind)}


def read(kind: type[ObjectiveSettings], **numbers: Any) -> dict[str, Any]:
    """The settings that the objective reads."""
    return {name: value for name, value in numbers.items() if reads(kind, name)}


def refuse_unread(stage: str, unread: dict[str, bool]) -> None:
    """Refuse options that are given, and that no objective of the stage reads.

    Raises:
        InputError: names them.
    """
    if options := [option for option, is_set in unread.items() if is_set]:
        raise InputError(f"--stage {stage} does not read {', '.join(options)}: leave it out")
