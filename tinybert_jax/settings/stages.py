"""A stage of a run, and the numbers that are arguments of its compiled step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.settings.choices import ScheduleName
from tinybert_jax.settings.compression import CompressionSettings
from tinybert_jax.settings.numbers import Ramp, at
from tinybert_jax.settings.objectives import ObjectiveSettings, named_objective

if TYPE_CHECKING:
    Objective = ObjectiveSettings
else:  # a word is replaced when the stage is made
    Objective = ObjectiveSettings | str


class _Hyper(NamedTuple):
    learning_rate: Any
    numbers: Mapping[str, Any]
    progress: Any


class Hyper(_Hyper):
    """Numbers that are arguments of a compiled step, so that a new value needs no recompilation.

    `learning_rate` is the peak learning rate. `numbers` are the objective's swept settings, by name. `progress` is the
    share of the stage's steps that are done, in [0, 1); the schedule and some losses read it.

    >>> Hyper(1e-3, temperature=2.0).numbers
    {'temperature': 2.0}
    """

    __slots__ = ()

    def __new__(
        cls,
        learning_rate: Any = 5e-5,
        numbers: Mapping[str, Any] | None = None,
        progress: Any = 0.0,
        **more_numbers: Any,
    ) -> Hyper:
        if numbers is not None and not isinstance(numbers, Mapping):  # jax rebuilds the tuple with other leaves
            return super().__new__(cls, learning_rate, numbers, progress)
        return super().__new__(cls, learning_rate, {**(numbers or {}), **more_numbers}, progress)

    def number(self, name: str, settings: ObjectiveSettings) -> Any:
        """The number of that name; if it is not in `numbers`, the one in the objective's settings.

        Raises:
            ValueError: the number in the settings is a `Ramp`, so the step must get its value from `Stage.hyper_at`.
        """
        number = self.numbers[name] if name in self.numbers else getattr(settings, name)
        if isinstance(number, Ramp):
            raise ValueError(f"{name} moves over the stage: give the step its numbers, `Stage.hyper_at(progress)`")
        return number


@dataclass(frozen=True)
class Stage:
    """One stage of training: what it minimises, for how long, and with which learning rate."""

    objective: Objective  # settings such as Prediction(), or their name "prediction"
    epochs: int = 3
    max_steps: int | None = None  # the length of the stage in steps; it replaces `epochs`
    min_steps: int | None = None  # the least length in steps; with few rows, `epochs` may be too few steps to learn
    batch_size: int = 32
    learning_rate: float = 5e-5  # the peak
    schedule: ScheduleName = "linear"
    warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
    weight_decay: float = 0.01
    accumulation_steps: int = 1  # number of parts that a batch is computed in, one after the other, to save memory
    evaluate_every: int | None = None  # in steps; None: after every epoch, and at most 20 times
    compression: tuple[CompressionSettings, ...] = ()  # methods applied before or during the stage, in this order

    def __post_init__(self) -> None:
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", named_objective(self.objective))
        if not isinstance(self.objective, ObjectiveSettings):
            raise InputError(
                f"objective is {self.objective!r}; it must be settings such as Prediction(), or their name"
            )
        check_choice("schedule", self.schedule, ScheduleName)
        optional = [name for name in ("max_steps", "min_steps", "evaluate_every") if getattr(self, name) is not None]
        for name in ("epochs", "batch_size", "accumulation_steps", *optional):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}; it must be a whole number, at least 1")
        if self.max_steps is not None and self.min_steps is not None:
            raise InputError(f"max_steps {self.max_steps} is the length of the stage already: leave out min_steps")
        if not 0 < self.learning_rate < math.inf:  # also refuses NaN
            raise InputError(f"learning_rate is {self.learning_rate}; it must be finite and greater than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay}; it must be finite and not negative")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"accumulation_steps {self.accumulation_steps} does not divide the batch size {self.batch_size}"
            )
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")
        if self.schedule == "constant" and self.warmup_ratio != Stage.warmup_ratio:
            raise InputError(
                f"warmup_ratio is {self.warmup_ratio}, but schedule 'constant' has no warm-up: leave it out"
            )
        if self.evaluate_every is not None and not self.objective.trains_head:
            raise InputError(
                f"evaluate_every is {self.evaluate_every}, but stage {self.objective.name!r} trains no head and is not"
                " evaluated: leave it out"
            )

    def hyper_at(self, progress: float) -> Hyper:
        """The arguments of the stage's compiled step when the share `progress` of its steps is done."""
        numbers = {name: at(getattr(self.objective, name), progress) for name in self.objective.swept}
        return Hyper(self.learning_rate, numbers, float(progress))
