"""A file of predictions teaches its rows by their texts; what is wrong with it is refused by line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rewrite_reviews, write_scored_reviews

import tinybert_jax as tb
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.training.inputs import load_inputs

GOOD = {"good": 0.9, "bad": 0.1}


def read_rows(reviews: Path) -> list[tuple[str, str]]:
    lines = (reviews / "train.tsv").read_text().splitlines()[1:]
    return [(text, label) for text, label in (line.split("\t") for line in lines)]


def write_predictions(path: Path, rows: list[Any], prediction: Callable[[str], dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"text": text} | prediction(label)) + "\n" for text, label in rows))
    return path


def sure(label: str) -> dict[str, Any]:
    return {"probabilities": {"good": 0.9, "bad": 0.1} if label == "good" else {"bad": 0.9, "good": 0.1}}


def experiment(model: Path, data: Path, teacher: Path, **changes: Any) -> tb.Experiment:
    described = {
        "task": "classification",
        "source": tb.DataSource(data=str(data)),
        "model": str(model),
        "teacher": str(teacher),
        "stages": (tb.Stage(tb.Prediction(), epochs=6, learning_rate=1e-2),),
        "max_length": 16,
    }
    return tb.Experiment(**described | changes)


def test_a_student_learns_from_probabilities_alone(pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    """The labels of the training file are turned round, and the student believes the predictions."""
    teacher = write_predictions(tmp_path / "soft.jsonl", read_rows(reviews), sure)
    (tmp_path / "data").mkdir()
    rewrite_reviews(tmp_path / "data", reviews, "text\tlabel", lambda text, label: f"{text}\t{label}")
    turned = {"good": "bad", "bad": "good"}
    rows = [f"{text}\t{turned[label]}" for text, label in read_rows(reviews)]
    (tmp_path / "data" / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    stages = (tb.Stage(tb.Prediction(), epochs=12, learning_rate=3e-3),)
    result = tb.run(experiment(pretrained, tmp_path / "data", teacher, stages=stages), tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    assert result.teacher_scores is None


def test_the_targets_of_a_batch_are_the_predictions_of_its_rows(
    blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    teacher = write_predictions(tmp_path / "soft.jsonl", read_rows(reviews), sure)
    inputs = load_inputs(experiment(blank_student, reviews, teacher))
    assert inputs.config.id2label == ("bad", "good")
    batch = inputs.train.batch(np.array([3, -1, 0]), 16, 0)
    likely = np.exp(np.asarray(batch.targets))
    labels = [label for _, label in read_rows(reviews)]
    for row, probabilities in ((3, likely[0]), (0, likely[2])):
        np.testing.assert_allclose(probabilities, [0.1, 0.9] if labels[row] == "good" else [0.9, 0.1], rtol=1e-5)


def test_numbers_and_pairs_have_predictions_too(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    values = {"1.0": 2.5, "0.0": -1.0}
    teacher = write_predictions(tmp_path / "n.jsonl", read_rows(tmp_path), lambda label: {"value": values[label]})
    inputs = load_inputs(experiment(blank_student, tmp_path, teacher, task="regression"))
    batch = inputs.train.batch(np.arange(8), 16, 0)
    assert np.asarray(batch.targets).tolist() == [values[f"{label:.1f}"] for label in batch.labels]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rewrite_reviews(pairs, reviews, "a\tb\tlabel", lambda text, label: f"{text}\tthe bag\t{label}")
    rows = [([text, "the bag"], label) for text, label in read_rows(reviews)]
    teacher = write_predictions(tmp_path / "p.jsonl", rows, sure)
    source = tb.DataSource(data=str(pairs), text_columns=("a", "b"))
    assert load_inputs(experiment(blank_student, pairs, teacher, source=source)).train.batch(
        np.arange(2), 32, 0
    ).targets.shape == (2, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"soft.jsonl:2: not JSON .*: give one JSON object a line"),
        ("[1]", r'soft.jsonl:2: no JSON object: give {"text": ..., "probabilities": ...}'),
        (json.dumps({"probabilities": GOOD}), r'soft.jsonl:2: "text" is null: give a string, or a list of two'),
        (json.dumps({"text": "a"}), r'soft.jsonl:2: no "probabilities" of two classes or more'),
        (
            json.dumps({"text": "a", "probabilities": {"good": 0.9, "bad": 0.3}}),
            r"soft.jsonl:2: the probabilities add up to 1.2: they must be at least 0, and add up to 1",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": 0.9, "ugly": 0.1}}),
            r"soft.jsonl:2: the classes are \['good', 'ugly'\], and in the first line \('bad', 'good'\)",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": "x", "bad": 0.1}}),
            r"soft.jsonl:2: the probability of 'good' is \"x\"; it must be a finite number",
        ),
        (
            json.dumps({"text": "first", "probabilities": {"good": 0.2, "bad": 0.8}}),
            r"soft.jsonl:2: the text has another prediction in a line before: keep one of the two",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_refused_by_its_number(
    line: str, message: str, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "soft.jsonl"
    teacher.write_text(json.dumps({"text": "first", "probabilities": GOOD}) + "\n" + line + "\n")
    with pytest.raises(tb.InputError, match=message):
        load_inputs(experiment(blank_student, reviews, teacher))


def test_what_a_file_cannot_teach_is_refused(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    rows = read_rows(reviews)
    teacher = write_predictions(tmp_path / "soft.jsonl", rows, sure)
    usual = experiment(blank_student, reviews, teacher)
    with pytest.raises(tb.InputError, match=r"soft.jsonl: brings no vocabulary, which student '2x16' needs"):
        load_inputs(dataclasses.replace(usual, model="2x16"))
    with pytest.raises(tb.InputError, match="teaches texts and pairs of texts, not task 'ner'"):
        load_inputs(dataclasses.replace(usual, task="ner"))
    with pytest.raises(tb.InputError, match="stage 'transformer' compares layers, and the teacher has none"):
        tb.run(dataclasses.replace(usual, stages=(tb.Stage(tb.Transformer()),)), tmp_path / "run")
    write_predictions(teacher, [row for row in rows if row[0] != rows[5][0]], sure)
    with pytest.raises(tb.InputError, match=r"soft.jsonl: no prediction for row 7 of the training file"):
        load_inputs(usual)
    teacher.write_text("\n")
    with pytest.raises(tb.InputError, match=r"soft.jsonl:1: the file holds no prediction"):
        load_inputs(usual)


def test_labels_are_those_of_the_file(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    named = {"good": "tasty", "bad": "stale"}
    teacher = write_predictions(
        tmp_path / "soft.jsonl",
        read_rows(reviews),
        lambda label: {"probabilities": {named[name]: p for name, p in sure(label)["probabilities"].items()}},
    )
    with pytest.raises(tb.InputError, match=r"train.tsv:2: unknown label '\w+'; .* has 'stale', 'tasty'"):
        load_inputs(experiment(blank_student, reviews, teacher))
    config, _ = tb.load_hf(blank_student)
    split = load_split(
        get_task("classification"),
        tb.DataSource(data=str(reviews)),
        "train",
        tb.load_tokenizer(blank_student, config),
        16,
    )
    assert split.label_names == ("bad", "good")
