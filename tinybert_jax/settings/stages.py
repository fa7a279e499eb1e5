"""A stage of a run, and the numbers that its compiled step takes as arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.settings.choices import ObjectiveName, ScheduleName


class Hyper(NamedTuple):
    """The numbers one sweeps. They are arguments of the compiled step, so another float is no recompilation."""

    learning_rate: Any = 5e-5
    temperature: Any = 1.0
    embedding_weight: Any = 1.0
    attention_weight: Any = 1.0
    hidden_weight: Any = 1.0


@dataclass(frozen=True)
class Stage:
    """One call of the training loop: what it minimises, for how long, how fast."""

    objective: ObjectiveName
    epochs: int = 3
    max_steps: int | None = None  # the length of the stage in steps; it replaces `epochs`
    batch_size: int = 32
    learning_rate: float = 5e-5
    schedule: ScheduleName = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    temperature: float = 1.0
    embedding_weight: float = 1.0
    attention_weight: float = 1.0
    hidden_weight: float = 1.0
    masking_probability: float = 0.15  # of a token in `masked_lm`; in the other stages nothing is masked
    accumulation_steps: int = 1  # parts that a batch is computed in, one after the other, to save memory
    evaluate_every: int | None = None  # steps; None: after every epoch

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ObjectiveName)
        check_choice("schedule", self.schedule, ScheduleName)
        optional = [name for name in ("max_steps", "evaluate_every") if getattr(self, name) is not None]
        for name in ("epochs", "batch_size", "accumulation_steps", *optional):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}; it must be a whole number, at least 1")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is not either
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and greater than 0")
        for name in ("weight_decay", "embedding_weight", "attention_weight", "hidden_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"accumulation_steps {self.accumulation_steps} does not divide the batch size {self.batch_size}"
            )
        if not 0 < self.masking_probability <= 0.2:  # the decoder runs on 1 / MASKED_SHARE of the positions
            raise InputError(f"masking_probability is {self.masking_probability}; it must be above 0, and at most 0.2")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher."""
        return self.objective in ("transformer", "prediction")

    @property
    def hyper(self) -> Hyper:
        return Hyper(
            self.learning_rate, self.temperature, self.embedding_weight, self.attention_weight, self.hidden_weight
        )
