"""What a search keeps, picks and lets go."""

from __future__ import annotations

import pytest

import tinybert_jax as tb
from tinybert_jax.shrink.aim import Aim, Candidate, Outcome, front, parse_share, pick, survivors


def outcome(name: str, score: float, ms: float = 1.0, mb: float = 1.0) -> Outcome:
    return Outcome(Candidate(name, name, ms, mb, 1.0), score, 10, 0)


def names(outcomes: list[Outcome]) -> list[str]:
    return [one.candidate.name for one in outcomes]


SOME = [
    outcome("tiny", 0.70, 1, 5),
    outcome("small", 0.90, 2, 8),
    outcome("slow", 0.89, 3, 9),
    outcome("large", 0.95, 4, 4),
]


def test_the_front_is_what_no_other_beats() -> None:
    assert names(front(SOME)) == ["tiny", "small", "large"]
    equal = [outcome("a", 0.9), outcome("b", 0.9)]
    assert names(front(equal)) == ["a", "b"]


@pytest.mark.parametrize(
    ("aim", "name"),
    [
        (Aim(keep=0.89), "small"),  # 0.89 of 1.0: slow reaches it too, and is slower
        (Aim(keep=0.92), "large"),
        (Aim(keep=0.96), None),
        (Aim(max_ms=3.0), "small"),
        (Aim(max_ms=1.5), "tiny"),
        (Aim(max_mb=4.0), "large"),
        (Aim(max_mb=3.0), None),
    ],
)
def test_the_pick_meets_the_aim_best(aim: Aim, name: str | None) -> None:
    chosen = pick(SOME, aim, teacher_score=1.0)
    assert (chosen and chosen.candidate.name) == name


def test_half_of_the_candidates_go_on() -> None:
    limit = Aim(max_ms=10.0)
    assert [c.name for c in survivors(SOME, limit, 1.0)] == ["small", "large"]
    assert [c.name for c in survivors(SOME[:1], limit, 1.0)] == ["tiny"]
    assert [c.name for c in survivors(SOME[:3], limit, 1.0)] == ["small"]


def test_what_is_slower_than_one_that_reached_the_aim_ends() -> None:
    assert [c.name for c in survivors(SOME, Aim(keep=0.9), 1.0)] == ["tiny", "small"]
    # nothing reached it: the best scores go on
    assert [c.name for c in survivors(SOME, Aim(keep=0.99), 1.0)] == ["small", "large"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one aim: --keep 97%, --max-ms 2 or --max-mb 10"),
        ({"keep": 0.9, "max_ms": 2.0}, "give one aim"),
        ({"max_mb": 0.0}, "--max-mb is 0.0; it must be greater than 0"),
        ({"max_ms": float("nan")}, "--max-ms is nan; it must be greater than 0"),
        ({"keep": 97.0}, "--keep 97 is 9700 %: write 97 % as 97% or 0.97"),
    ],
)
def test_an_aim_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(tb.InputError, match=message.replace("(", r"\(")):
        Aim(**settings)


def test_shares_are_read() -> None:
    assert parse_share("--keep", "97%") == parse_share("--keep", "0.97") == pytest.approx(0.97)
    with pytest.raises(tb.InputError, match="--keep much: give a share, as 97%"):
        parse_share("--keep", "much")
