"""Tables of scores, where a teacher does not have all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tinybert_jax.reports.tables import scores_table
from tinybert_jax.training.run import Result


def test_a_score_that_the_teacher_lacks_is_a_dash() -> None:
    scores, teacher = {"accuracy": 0.5, "accuracy_mismatched": 0.25}, {"accuracy": 1.0}
    result = Result(Path("student"), scores, teacher)
    _, rows = scores_table([result])
    assert rows == [["accuracy", "0.5000", "1.0000", "50.0%"], ["accuracy_mismatched", "0.2500", "-", "-"]]
    _, rows = scores_table([result, result])
    assert [row[-1] for row in rows] == ["1.0000", "-"]


def test_a_member_that_diverged_is_in_no_mean() -> None:
    one, other, lost = (Result(Path("s"), scores, None) for scores in ({"f1": 0.5}, {"f1": 0.75}, {}))
    lost = dataclasses.replace(lost, diverged="member 1 diverged")
    assert scores_table([one, lost, other])[1] == [["f1", "0.6250", "0.1768", "0.5000", "diverged", "0.7500"]]
    assert scores_table([lost, one])[1] == [["f1", "0.5000", "-", "diverged", "0.5000"]]
