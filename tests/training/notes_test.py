"""What a run says of its settings and rows, when all is checked and before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import distillation

import tinybert_jax as tb
from tinybert_jax.training import run


def far_enough(*_: object) -> None:
    raise tb.InputError("far enough")


def test_a_student_deeper_or_larger_than_its_teacher_is_noted(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tb.load_hf(teacher)[0].num_hidden_layers

    monkeypatch.setattr(run, "prepare", far_enough)  # before anything is compiled
    for depth, width, is_deeper, is_larger in (
        (layers, 16, False, False),
        (layers + 1, 16, True, False),
        (layers, 64, False, True),
    ):
        experiment = distillation(teacher, Path(f"{depth}x{width}"), reviews, start="random")
        with pytest.raises(tb.InputError, match="far enough"):
            tb.run(experiment, tmp_path / f"{depth}x{width}")
        printed = capsys.readouterr().err
        assert (f"note: the student has {depth} layers, and the teacher {layers}\n" in printed) == is_deeper
        assert ("note: the student is larger than the teacher: it has " in printed) == is_larger


def test_dev_rows_that_are_training_rows_too_are_noted(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "prepare", far_enough)
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    train.write_text("text\tlabel\na tasty bag\tgood\nstale chips\tbad\na lovely bag\tgood\n")
    for rows, note in (
        ("a tasty bag\tgood\nstale chips\tgood\nstale chips\tbad\nan awful bag\tbad\n", "note: 3 of 4 dev rows have"),
        ("an awful bag\tbad\na fresh bag\tgood\n", ""),
    ):
        dev.write_text(f"text\tlabel\n{rows}")
        source = tb.DataSource(train=str(train), dev=str(dev))
        experiment = tb.Experiment("classification", source, str(pretrained), (tb.Stage("supervised"),), max_length=16)
        with pytest.raises(tb.InputError, match="far enough"):
            tb.run(experiment, tmp_path / "run")
        notes = [line for line in capsys.readouterr().err.splitlines() if "dev rows" in line]
        assert [line[: len(note)] for line in notes] == ([note] if note else [])


@pytest.mark.parametrize(("step", "is_told"), [("prepare", False), ("initial_params", True)])
def test_what_was_chosen_is_told_when_nothing_was_refused(
    step: str, is_told: bool, pretrained: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The teacher's exam, in `prepare`, is the last check; then parameters are computed."""
    monkeypatch.setattr(run, step, far_enough)
    source = tb.DataSource(data=str(reviews))
    experiment = tb.Experiment("classification", source, str(pretrained), (tb.Stage("supervised"),), max_length=16)
    with pytest.raises(tb.InputError, match="far enough"):
        tb.run_population([experiment], tmp_path / "run", opening="recipe: a")
    assert ("recipe: a\n" in capsys.readouterr().out) == is_told
