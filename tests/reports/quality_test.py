"""What the page says of each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinybert_jax.reports.document import Fold, Grid, Heading, Items, Pictures, Text
from tinybert_jax.reports.models import EXPORTED, STUDENT, TEACHER, Model
from tinybert_jax.reports.quality import AGAINST, chance, classes, lost_and_won, quality, summary
from tinybert_jax.reports.recipe import training
from tinybert_jax.reports.runs import Run
from tinybert_jax.tasks.split import Judged, Reading


def test_each_student_is_held_against_its_own_teacher() -> None:
    models = [
        Model(name, name, role, {"accuracy": score})
        for name, role, score in (
            ("first", TEACHER, 0.8),
            ("second", TEACHER, 0.5),
            ("small", STUDENT, 0.4),
            ("tiny", STUDENT, 0.4),
        )
    ]
    grid, _ = summary(models, "accuracy", {"small": models[0], "tiny": models[1]})
    assert isinstance(grid, Grid)
    assert grid.header == ["model", "accuracy", AGAINST[0], "teacher"]  # nothing else is known
    assert [(row[0], row[1], row[2], row[-1]) for row in grid.rows] == [
        (f"A first ({TEACHER})", "0.8000", "-", "-"),
        (f"B second ({TEACHER})", "0.5000", "-", "-"),
        (f"C small ({STUDENT})", "0.4000", "50.0%", "A"),
        (f"D tiny ({STUDENT})", "0.4000", "80.0%", "B"),
    ]


def judged(*scores: float) -> Reading:
    rows = [Judged(f"row {i}", "good", "good" if score else "bad", score, 0.9) for i, score in enumerate(scores)]
    return Reading(rows, "texts", np.full(len(rows), 0.9), np.array(scores) == 1)


def held() -> tuple[list[Model], dict[str, Model]]:
    """A teacher, a student that lost three of its rows and won one, and the student's export, which says the same."""
    teacher = Model("teacher", "t", TEACHER, {"accuracy": 0.6}, bytes=400, milliseconds=(8.0, 4.0), largest=0.55)
    student = Model("small", "s", STUDENT, {"accuracy": 0.5}, bytes=100, milliseconds=(1.0, 0.5))
    exported = Model("small, ONNX", "o", EXPORTED, {"accuracy": 0.5}, bytes=100)
    teacher.reading = judged(1.0, 1.0, 1.0, 0.0, 1.0)
    student.reading = exported.reading = judged(0.0, 0.0, 0.0, 1.0, 1.0)
    return [teacher, student, exported], {"s": teacher, "o": teacher}


def test_the_lead_says_what_is_lost_won_and_due_to_chance() -> None:
    models, teachers = held()
    grid, items = summary(models, "accuracy", teachers)
    assert isinstance(grid, Grid)
    assert grid.header == ["model", "accuracy", *AGAINST]
    assert [*grid.rows] == [
        ["A teacher", "0.6000", *["-"] * len(AGAINST)],
        ["B small (student)", "0.5000", "83.3%", "4.0x", "8.0x", "3", "1", "0.62"],
        ["C small, ONNX", "0.5000", "83.3%", "4.0x", "-", "3", "1", "0.62"],
    ]
    assert isinstance(items, Items)
    text = " ".join(items.items)
    assert "Rows lost, out of 5" in text
    assert "A model that always answers the largest class is right on 55.0% of these rows" in text
    assert "tinybert evaluate" in text


def test_chance_is_the_exact_sign_test() -> None:
    assert chance(4, 0) == pytest.approx(2 / 2**4)
    assert chance(3, 1) == pytest.approx(2 * (1 + 4) / 2**4)
    assert chance(5, 5) == chance(0, 0) == 1


def test_rows_of_a_model_that_says_what_one_before_it_says_are_not_shown_again() -> None:
    section = lost_and_won(*held())
    assert section is not None
    _, lost, won, same = section.blocks
    assert isinstance(lost, Fold)
    assert isinstance(won, Fold)
    assert lost.summary == "Lost by small: 3 of 5 dev rows, which teacher has right"
    assert won.summary == "Won by small: 1 of 5 dev rows, which teacher has wrong"
    assert same == Text("small, ONNX says of every dev row what small says: see there.")


def test_nothing_won_is_a_line_and_no_fold_to_open() -> None:
    models, teachers = held()
    models[1].reading = judged(0.0, 1.0, 1.0, 0.0, 1.0)
    section = lost_and_won(models[:2], teachers)
    assert section is not None
    assert section.blocks[2] == Text("Won by small: 0 of 5 dev rows, which teacher has wrong.")


def test_classes_of_all_models_stand_beside_each_other_by_name() -> None:
    models, _ = held()
    header = ["class", "rows", "precision", "recall", "F1"]
    models[0].tables = [(header, [["bad", "2", "0", "0", "0.1"], ["good", "3", "0", "0", "0.2"]])]
    models[1].tables = [(header, [["good", "3", "0", "0", "0.3"], ["bad", "2", "0", "0", "0.4"]])]
    section = classes(models)
    assert section is not None
    grid = section.blocks[0]
    assert isinstance(grid, Grid)
    assert grid.header == ["class", "rows", "teacher", "small (student)"]
    assert [*grid.rows] == [["bad", "2", "0.1", "0.4"], ["good", "3", "0.2", "0.3"]]


def test_members_are_told_by_their_population_and_not_by_their_names() -> None:
    models = [Model(f"{i}", f"{i}", STUDENT, {"accuracy": i / 4}, population="eight") for i in (1, 2)]
    models.append(Model("a member 3", "3", STUDENT, {"accuracy": 1.0}))
    told = next(block for block in quality(models, "accuracy").blocks if isinstance(block, Items))
    assert told.items == ("eight, 2 members: accuracy 0.3750, standard deviation 0.1768.",)


def test_a_term_that_is_the_whole_loss_is_not_drawn_twice() -> None:
    metrics = [
        {"stage": "1-prediction", "step": i, "hard": 5.0 - i, "loss": 2.0 / i, "soft": 2.0 / i, "dev/accuracy": 0.5}
        for i in (1, 2)
    ]
    assert drawn(metrics, {"name": "prediction"}) == ["dev accuracy", "loss, all terms", "hard"]


@pytest.mark.parametrize(
    ("weight", "is_drawn"),
    [
        (0.0, False),
        (0.5, True),
        ({"start": 0.0, "end": 0.0, "shape": "linear"}, False),
        ({"start": 0.0, "end": 1.0, "shape": "linear"}, True),
    ],
)
def test_a_term_without_weight_is_not_drawn(weight: Any, is_drawn: bool) -> None:
    metrics = [{"stage": "1-prediction", "step": i, "hard": 5.0 - i, "loss": 3.0 / i, "soft": 2.0 / i} for i in (1, 2)]
    captions = drawn(metrics, {"name": "prediction", "soft_weight": 1.0, "hard_weight": weight})
    assert captions == ["loss, all terms", *(["hard"] if is_drawn else []), "soft"]


def drawn(metrics: list[dict[str, Any]], objective: dict[str, Any]) -> list[str]:
    """The titles of the curves of a run of one stage."""
    settings = {"stages": [{"objective": objective}]}
    section = training([Run("small", Path("small"), settings, {}, metrics, [], Path("small"))])
    assert section is not None
    fold = section.blocks[1]
    assert isinstance(fold, Fold)
    heading, pictures = fold.blocks
    assert heading == Heading("Stage 1: prediction")
    assert isinstance(pictures, Pictures)
    return [picture.caption for picture in pictures.pictures]
