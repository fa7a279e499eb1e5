"""The aim of a search, and the choice of candidates that are trained longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinybert_jax.errors import InputError


class Candidate(NamedTuple):
    """A candidate of a search, measured as it would be deployed: in int8, by ONNX Runtime."""

    name: str  # also of its directory
    model: str  # what its training starts from: a size, or the directory of a compressed teacher
    milliseconds: float  # for one text
    megabytes: float
    step_seconds: float  # of a training step, estimated; 0: it is not trained
    is_copy: bool = False  # whether its training starts from a copy of the teacher's layers

    @property
    def is_trained(self) -> bool:
        """Whether it is trained. Only the teacher itself is not."""
        return self.step_seconds > 0


class Outcome(NamedTuple):
    """A candidate and its score on the dev set after some training."""

    candidate: Candidate
    score: float
    steps: int  # of its training; 0: it was not trained
    rung: int  # from 0


@dataclass(frozen=True)
class Aim:
    """The aim of a search, one of: a share of the teacher's score to keep, a limit of time, or a limit of size."""

    keep: float | None = None  # in (0, 1.5]
    max_ms: float | None = None  # for one text
    max_mb: float | None = None

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("keep", "max_ms", "max_mb")}
        set_ones = {name: value for name, value in numbers.items() if value is not None}
        if len(set_ones) != 1:
            raise InputError("give one aim: --keep 97%, --max-ms 2 or --max-mb 10")
        (name, value) = next(iter(set_ones.items()))
        if not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be greater than 0")
        if self.keep is not None and self.keep > 1.5:
            raise InputError(f"--keep {self.keep:g} is {100 * self.keep:g} %: write 97 % as 97% or 0.97")

    def __str__(self) -> str:
        if self.keep is not None:
            return f"keep {self.keep:.1%} of the teacher's score"
        return f"at most {self.max_ms:g} ms" if self.max_ms is not None else f"at most {self.max_mb:g} MB"

    def allows(self, candidate: Candidate) -> bool:
        """Whether a candidate is within the limits of time and size, whatever it scores."""
        fast = self.max_ms is None or candidate.milliseconds <= self.max_ms
        return fast and (self.max_mb is None or candidate.megabytes <= self.max_mb)

    def is_met(self, outcome: Outcome, teacher_score: float) -> bool:
        kept = self.keep is None or outcome.score >= self.keep * teacher_score
        return kept and self.allows(outcome.candidate)


def parse_share(option: str, text: str) -> float:
    """Parse a share of a command line.

    Raises:
        InputError: it is not a number.

    >>> parse_share("--keep", "97%"), parse_share("--keep", "0.97")
    (0.97, 0.97)
    """
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise InputError(f"{option} {text}: give a share, as 97% or 0.97") from None


def front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The Pareto front: outcomes for which no other is at least as good in score, time and size, and better in one."""

    def beats(one: Outcome, other: Outcome) -> bool:
        pairs = (
            (one.score, other.score),
            (-one.candidate.milliseconds, -other.candidate.milliseconds),
            (-one.candidate.megabytes, -other.candidate.megabytes),
        )
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [one for one in outcomes if not any(beats(other, one) for other in outcomes)]


def pick(outcomes: Sequence[Outcome], aim: Aim, teacher_score: float) -> Outcome | None:
    """The outcome that meets the aim best: the fastest that keeps the share, or the best within the limit; or None."""
    met = [outcome for outcome in outcomes if aim.is_met(outcome, teacher_score)]
    if aim.keep is not None:
        return min(met, key=lambda o: (o.candidate.milliseconds, o.candidate.megabytes), default=None)
    return max(met, key=lambda o: (o.score, -o.candidate.milliseconds), default=None)


def survivors(outcomes: Sequence[Outcome], aim: Aim, teacher_score: float) -> list[Candidate]:
    """The candidates that are trained longer: at most half of them, and at least one if there are any.

    If the aim is a share to keep, the fastest candidate that has reached it stays, and slower ones are dropped. The
    others are chosen by their scores.

    Args:
        outcomes: the outcomes of the candidates that a rung trained, in the order of the plan. The result has this
            order.
        aim: the aim of the search.
        teacher_score: the teacher's score on the same rows.
    """
    reached = None if aim.keep is None else pick(outcomes, aim, teacher_score)
    left = [
        outcome
        for outcome in outcomes
        if reached is None or outcome is reached or outcome.candidate.milliseconds < reached.candidate.milliseconds
    ]
    most = max(1, len(outcomes) // 2)
    best = sorted(left, key=lambda o: (o is not reached, -o.score))[:most]
    return [outcome.candidate for outcome in left if outcome in best]
