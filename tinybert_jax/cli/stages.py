"""The stages and teachers of `tinybert distill`, and the options that they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tinybert_jax.errors import InputError
from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.objectives import (
    WORDS,
    ObjectiveSettings,
    Patient,
    Prediction,
    Supervised,
    Transformer,
)
from tinybert_jax.settings.recipes import StageRecipe
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import Task
from tinybert_jax.settings.teachers import Average, Ensemble

if TYPE_CHECKING:
    from tinybert_jax.data.rows import Recombining

STAGES: dict[str, tuple[type[ObjectiveSettings], ...]] = {
    "both": (Transformer, Prediction),
    "transformer": (Transformer,),
    "prediction": (Prediction,),
    "patient": (Patient,),
    "supervised": (Supervised,),
}


def with_recombined(task: Task, source: DataSource, preset: Preset, teachers: Sequence[str]) -> Recombining:
    """The source, with its pairs recombined if they are few or if the option asks for it.

    By default nothing is recombined with the paper's presets, or if a teacher cannot label new texts.

    Raises:
        InputError: the training rows cannot be read, or the option asks for texts that a teacher cannot label.
    """
    from tinybert_jax.data.rows import Recombining, recombines
    from tinybert_jax.teachers.table import labels_any_text

    if source.recombine_to is None and not PRESETS[preset].start_from_teacher:
        return Recombining(source)
    if unable := [teacher for teacher in teachers if not labels_any_text(teacher)]:
        if source.recombine_to:
            raise InputError(f"{unable[0]}: has no predictions for texts that --recombine-to would make: leave it out")
        return Recombining(source)
    return recombines(task, source)


def stage_kinds(stage: str, task: Task) -> tuple[type[ObjectiveSettings], ...]:
    """The objectives of a row of STAGES. Prediction and Supervised are replaced by the task's objectives for learning
    a teacher's outputs and for learning labels alone.
    """
    words = {Prediction: task.kind.distilled_by, Supervised: task.kind.supervised_by}
    return tuple(WORDS[words[kind]] if kind in words else kind for kind in STAGES[stage])


class Part(NamedTuple):
    """The options for the stages of layers, or for those of outputs and labels. None: the recipe's number."""

    recipe: StageRecipe
    has_stage: bool  # whether there is such a stage
    epochs: int | None
    steps: int | None
    learning_rate: float | None

    @property
    def is_unread(self) -> bool:
        """Whether an option is set although there is no such stage."""
        return not self.has_stage and (self.epochs, self.steps, self.learning_rate) != (None, None, None)

    @property
    def takes_recipe(self) -> bool:
        """Whether the stage takes its length or its learning rate from the recipe."""
        return self.has_stage and (self.learning_rate is None or (self.epochs is None and self.steps is None))

    def stage(self, objective: ObjectiveSettings, **settings: Any) -> Stage:
        """The stage of an objective, with the length and learning rate of the options or of the recipe."""
        return Stage(objective, **self.recipe.settings(self.epochs, self.steps, self.learning_rate), **settings)


def opening(stages: Sequence[Stage], recipe: str, recombined: int = 0) -> str | None:
    """The lines about a recipe, if one is taken, and about the number of pairs that are recombined, if it is not 0."""
    lines = [f"recipe: {recipe}: {'; '.join(map(_described, stages))}"] if recipe else []
    if recombined:
        lines.append(
            f"pairs: up to {recombined:,} more are recombined from their texts, and the teacher labels them"
            " (--recombine-to 0 makes none)"
        )
    return "\n".join(lines) or None


def _described(stage: Stage) -> str:
    """A stage's length and learning rate, in words."""
    length = f"{stage.epochs} epochs" if stage.max_steps is None else f"{stage.max_steps} steps"
    least = "" if stage.min_steps is None else f" or {stage.min_steps} steps, whichever is more,"
    return f"{stage.objective.name} {length}{least} at learning rate {stage.learning_rate:g}"


def reads(kind: type[ObjectiveSettings], number: str) -> bool:
    """Whether the objective has this setting."""
    return number in {field.name for field in dataclasses.fields(kind)}


def read(kind: type[ObjectiveSettings], **numbers: Any) -> dict[str, Any]:
    """Those of `numbers` that the objective has as settings."""
    return {name: value for name, value in numbers.items() if reads(kind, name)}


def refuse_unread(stage: str, unread: dict[str, bool]) -> None:
    """Refuse options that are set although no objective of the stage reads them.

    Raises:
        InputError: such an option is set. The message names all of them.
    """
    if options := [option for option, is_set in unread.items() if is_set]:
        raise InputError(f"--stage {stage} does not read {', '.join(options)}: leave it out")


def named_teacher(
    names: tuple[str, ...], weights: tuple[float, ...] | None, average: Average, layer_teacher: str | None
) -> str | Ensemble:
    """The teacher that the command's options name: a single one or an ensemble.

    Raises:
        InputError: there is none, or options for several stand with one.
    """
    if len(names) > 1:
        return Ensemble(names, weights, average, layer_teacher)
    if not names:
        raise InputError("--teacher names no teacher: give a directory, a hub id or a file of predictions")
    if weights is not None or average != Ensemble.average or layer_teacher is not None:
        raise InputError(
            "--teacher-weights, --teacher-average and --layer-teacher are for several teachers: leave them out"
        )
    return names[0]
