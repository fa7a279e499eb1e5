"""How many steps a stage has, and how often it is scored."""

from __future__ import annotations

import pytest

import tinybert_jax as tb
from tinybert_jax.data.batches import stage_steps
from tinybert_jax.training.loop import steps_between_scores


@pytest.mark.parametrize(
    ("stage", "rows", "steps", "between_scores"),
    [
        (tb.Stage("prediction", epochs=3), 6400, 600, 200),
        (tb.Stage("prediction", epochs=3), 200, 21, 7),
        (tb.Stage("prediction", epochs=3, min_steps=300), 200, 300, 15),
        (tb.Stage("prediction", epochs=3, min_steps=300), 6400, 600, 200),
        (tb.Stage("prediction", epochs=3, min_steps=300, evaluate_every=4), 200, 300, 4),
        (tb.Stage("prediction", max_steps=50), 6400, 50, 200),
        (tb.Stage("prediction", max_steps=50), 32, 50, 3),
        (tb.Stage("prediction", epochs=40), 32, 40, 2),
    ],
)
def test_few_rows_have_enough_steps_and_few_scores(
    stage: tb.Stage, rows: int, steps: int, between_scores: int
) -> None:
    assert (stage_steps(stage, rows), steps_between_scores(stage, rows)) == (steps, between_scores)
