"""Recipes: the length and learning rate of each stage of a distillation, unless options set them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.settings.choices import Preset, student_shape
from tinybert_jax.settings.tasks import Task

NARROW = 384  # largest hidden size of a new student with high learning rates; they were measured with 192


@dataclass(frozen=True)
class StageRecipe:
    """The length and the learning rate of one stage."""

    epochs: int
    learning_rate: float
    min_steps: int | None = None
    max_steps: int | None = None  # the length, instead of `epochs`

    def settings(self, epochs: int | None, steps: int | None, learning_rate: float | None) -> dict[str, Any]:
        """Fields of a `Stage`: the user's where they are not None, the recipe's for the others.

        `min_steps` applies only to the recipe's epochs. A user's number of epochs or steps is the exact length.
        """
        is_free = epochs is None and steps is None
        return {
            "epochs": self.epochs if epochs is None else epochs,
            "max_steps": self.max_steps if is_free else steps,
            "min_steps": self.min_steps if is_free else None,
            "learning_rate": self.learning_rate if learning_rate is None else learning_rate,
        }


# with few rows, 3 epochs are too few steps: Zhang et al., "Revisiting Few-sample BERT Fine-tuning", arXiv 2006.05987
FINETUNING = StageRecipe(epochs=3, learning_rate=3e-5, min_steps=200)


@dataclass(frozen=True)
class Recipe:
    """The recipes of a distillation's two stages: that of layers, and that of outputs or labels."""

    name: str
    reason: str
    layers: StageRecipe
    outputs: StageRecipe

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_recipe(
    preset: Preset,
    student: str,
    task: Task,
    copies: bool = False,
    few_pairs: bool = False,
) -> Recipe:
    """The recipe of a student.

    The figures behind the rates and lengths are in docs/recipes.md.

    Args:
        preset: `paper` and `official` take the paper's epochs and learning rates (arXiv 1909.10351, section 4.2).
        student: a preset or a size, or the directory of a model.
        task: gives the paper's epochs.
        copies: whether a preset or size starts as layers of its teacher (`students.start.copies`).
        few_pairs: whether the rows are few pairs of texts, to which recombined pairs are added. The lengths are then
            numbers of steps, because epochs of all rows would be much longer than with few rows.

    Raises:
        InputError: the size has a wrong form.
    """
    epochs = task.intermediate_epochs, task.prediction_epochs
    rates = task.intermediate_learning_rate, task.prediction_learning_rate
    steps: tuple[int | None, int | None] = (300, 300)
    shape = student_shape(student)
    is_paper = not PRESETS[preset].start_from_teacher
    if is_paper:
        name, reason, steps = "paper", f"as preset {preset} says", (None, None)
    elif shape is None:
        name, reason = "trained student", "it brings its own parameters, which high rates would spoil"
    elif copies:
        name, reason = "copied student", "it starts as layers of the teacher, which high rates would spoil"
    elif shape["hidden_size"] > NARROW:
        name, reason = "wide student", f"it is wider than {NARROW}, and no other rates were measured"
    else:
        name, reason, rates = "narrow student", f"it is new, and at most {NARROW} wide", (5e-4, 3e-4)
    lengths: tuple[int | None, int | None] = (None, None)
    if few_pairs and not is_paper:
        steps, lengths = (None, None), (600, 300)
    stages = (StageRecipe(*fields) for fields in zip(epochs, rates, steps, lengths, strict=True))
    return Recipe(name, reason, *stages)
