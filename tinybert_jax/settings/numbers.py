"""A number in an objective's settings: constant, or changing over the steps of the stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from tinybert_jax.errors import InputError, check_choice

RampShape = Literal["linear", "cosine"]
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True)
class Ramp:
    """A number that changes from `start` to `end` over the steps of a stage: linearly, or along half a cosine.

    >>> Ramp(4.0, 1.0).at(0.5), round(Ramp(4.0, 1.0, "cosine").at(0.25), 3)
    (2.5, 3.561)
    """

    start: float
    end: float
    shape: RampShape = "linear"

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, RampShape)

    def at(self, progress: float) -> float:
        """The number when the share `progress` of the stage's steps is done."""
        return self.start + (self.end - self.start) * SHAPES[self.shape](progress)


Number = float | Ramp


def bounds(number: Number) -> tuple[float, float]:
    """The first and the last value of a number."""
    return (number.start, number.end) if isinstance(number, Ramp) else (number, number)


def at(number: Number, progress: float) -> float:
    """The number when the share `progress` of the stage's steps is done."""
    return number.at(progress) if isinstance(number, Ramp) else number


def parse_number(name: str, text: str) -> Number:
    """Parse a number of a command line: `4`, or a `Ramp` as `4:1` (linear) or `4:1:cosine`.

    Raises:
        InputError: the text has another form.

    >>> parse_number("--temperature", "4:1:cosine")
    Ramp(start=4.0, end=1.0, shape='cosine')
    """
    start, *rest = text.split(":")
    with contextlib.suppress(ValueError):  # not a number
        match rest:
            case []:
                return float(start)
            case [end]:
                return Ramp(float(start), float(end))
            case [end, shape] if shape in SHAPES:
                return Ramp(float(start), float(end), cast(RampShape, shape))
    raise InputError(f"{name} {text}: give a number (4), or one that moves (4:1 or 4:1:cosine)")
