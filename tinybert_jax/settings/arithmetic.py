"""The presets, each a set of named facts about a run's arithmetic. Any combination of facts is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import OptimizerName, Preset

Padding = Literal["exclude", "include", "zero"]
Projections = Literal["separate", "shared"]


@dataclass(frozen=True)
class Arithmetic:
    """How losses count padding, how states are projected, what regression learns from, and which optimizer trains.

    `padding`: "exclude": means are over real positions. "include": means are over all positions. "zero": means are
    over all positions, and attention scores of padded keys count as 0 on both sides, as in the authors' code.
    `projections`: "separate": a kernel for embeddings and one for hidden states. "shared": one dense layer with bias.
    """

    padding: Padding = "exclude"
    projections: Projections = "separate"
    class_mean: bool = False  # the prediction loss is divided by the number of classes
    temperature_squared: bool = False  # the soft term of prediction distillation is multiplied by temperature**2
    regression_from_labels: bool = False  # in regression, prediction distillation learns the label, not the teacher
    optimizer: OptimizerName = "adamw"
    target_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of a teacher's cached hidden states, queries and keys
    # start "auto" takes initial parameters from the teacher if possible, and projections between equal widths start as
    # the identity
    start_from_teacher: bool = True


PRESETS: dict[Preset, Arithmetic] = {
    "default": Arithmetic(temperature_squared=True),
    "paper": Arithmetic(padding="include", target_dtype="float32", start_from_teacher=False),
    "official": Arithmetic(
        "zero",
        "shared",
        class_mean=True,
        regression_from_labels=True,
        optimizer="bert_adam",
        target_dtype="float32",
        start_from_teacher=False,
    ),
}


def arithmetic(preset: Preset | Arithmetic) -> Arithmetic:
    """The facts of a preset. An `Arithmetic` is returned as it is.

    Raises:
        InputError: the preset is unknown.
    """
    if isinstance(preset, Arithmetic):
        return preset
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    return PRESETS[preset]
