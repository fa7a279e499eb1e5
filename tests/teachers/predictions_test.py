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


@pytest.mark.long
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
    batch = inputs.lessons[0].train.batch(np.array([3, -1, 0]), 16, 0)
    likely = np.exp(np.asarray(batch.targets))
    labels = [label for _, label in read_rows(reviews)]
    for row, probabilities in ((3, likely[0]), (0, likely[2])):
        np.testing.assert_allclose(probabilities, [0.1, 0.9] if labels[row] == "good" else [0.9, 0.1], rtol=1e-5)


def test_numbers_and_pairs_have_predictions_too(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    values = {"1.0": 2.5, "0.0": -1.0}
    teacher = write_predictions(tmp_path / "n.jsonl", read_rows(tmp_path), lambda label: {"value": values[label]})
    inputs = load_inputs(experiment(blank_student, tmp_path, teacher, task="regression"))
    batch = inputs.lessons[0].train.batch(np.arange(8), 16, 0)
    assert np.asarray(batch.targets).tolist() == [values[f"{label:.1f}"] for label in batch.labels]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rewrite_reviews(pairs, reviews, "a\tb\tlabel", lambda text, label: f"{text}\tthe bag\t{label}")
    rows = [([text, "the bag"], label) for text, label in read_rows(reviews)]
    teacher = write_predictions(tmp_path / "p.jsonl", rows, sure)
    source = tb.DataSource(data=str(pairs), text_columns=("a", "b"))
    (lesson,) = load_inputs(experiment(blank_student, pairs, teacher, source=source)).lessons
    assert lesson.train.batch(np.arange(2), 32, 0).targets.shape == (2, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"soft.jsonl:2: not JSON .*: give one JSON object a line"),
        ("[1]", r'soft.jsonl:2: no JSON object: give {"text": ..., "probabilities": ...}'),
        (json.dumps({"probabilities": GOOD}), r'soft.jsonl:2: "text" is null: give a string, or a list of two'),
        (json.dumps({"text": "a"}), r'soft.jsonl:2: no "probabilities" by class: give {"good": 0.9, "bad": 0.1}'),
        (json.dumps({"id": 1.5, "logits": GOOD}), r'soft.jsonl:2: "id" is 1.5: give a string or number'),
        (
            json.dumps({"text": "a", "logits": {"good": 4.0}}),
            "soft.jsonl:2: 1 logits, and there are 2 classes: give one for each",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": 1.2}}),
            "soft.jsonl:2: the probabilities add up to 1.2: .* where the likeliest are named alone, to no more than 1",
        ),
        (
            json.dumps({"text": "a", "label": "good", "confidence": 90}),
            "soft.jsonl:2: the confidence is 90; it must be above 0, and at most 1",
        ),
        (
            json.dumps({"text": "a", "label": "Good"}),
            "soft.jsonl:2: unknown class 'Good'; the labelled rows have 'bad', 'good': write it as 'good'",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": 0.9, "bad": 0.3}}),
            r"soft.jsonl:2: the probabilities add up to 1.2: they must be at least 0, and add up to 1",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": 0.9, "ugly": 0.1}}),
            "soft.jsonl:2: unknown class 'ugly'; the labelled rows have 'bad', 'good': correct it, or remove",
        ),
        (
            json.dumps({"text": "a", "probabilities": {"good": "x", "bad": 0.1}}),
            r"soft.jsonl:2: the probability of 'good' is \"x\"; it must be a finite number",
        ),
        (
            json.dumps({"text": "first", "probabilities": {"good": 0.2, "bad": 0.8}}),
            r"soft.jsonl:2: the row has another prediction in a line before: keep one of the two",
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
    corpus = {"task": "corpus", "source": tb.CorpusSource((str(tmp_path / "text.txt"),))}
    with pytest.raises(
        tb.InputError, match=r"soft.jsonl: raw text is learnt from layers: give the directory of one model"
    ):
        load_inputs(dataclasses.replace(usual, stages=(tb.Stage("transformer"),), **corpus))
    with pytest.raises(tb.InputError, match="stage 'transformer' compares layers, and the teacher has none"):
        tb.run(dataclasses.replace(usual, stages=(tb.Stage(tb.Transformer()),)), tmp_path / "run")
    write_predictions(teacher, [row for row in rows if row[0] != rows[5][0]], sure)
    with pytest.raises(tb.InputError, match=r"soft.jsonl: no prediction for row 7 of its file"):
        load_inputs(usual)
    teacher.write_text("\n")
    with pytest.raises(tb.InputError, match=r"soft.jsonl:1: the file holds no prediction"):
        load_inputs(usual)


def of_rows(teacher: Path, student: Path, data: Path, **changes: Any) -> np.ndarray:
    """The probabilities that the file gives the first three training rows, in the order bad, good."""
    inputs = load_inputs(experiment(student, data, teacher, **changes))
    assert inputs.config.id2label == ("bad", "good")
    return np.exp(np.asarray(inputs.lessons[0].train.batch(np.arange(3), 16, 0).targets))


FORMS: dict[str, list[Any]] = {
    "jsonl": [{"probabilities": {"bad": 0.2, "good": 0.8}}, {"probabilities": {"bad": 0.7}}, {"label": "good"}],
    "csv": [{"bad": "0.2", "good": "0.8"}, {"bad": "0.7", "good": ""}, {"bad": "", "good": "1"}],
    "parquet": [{"bad": 0.2, "good": 0.8}, {"bad": 0.7, "good": None}, {"bad": 0.0, "good": 1.0}],
    "nested.parquet": [{"probabilities": x} for x in ({"bad": 0.2, "good": 0.8}, {"bad": 0.7}, {"good": 1.0})],
    "tsv": [{"label": "good", "confidence": x} for x in ("0.8", "0.3", "1")],
    "logits.jsonl": [{"logits": {"bad": 5 + np.log(0.2), "good": 5 + np.log(0.8)}}] * 3,
}


@pytest.mark.parametrize("key", ["text", "id"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(
    form: str, key: str, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    """The rows have ids, and the file names them by these or by their texts; it holds the first three alone."""
    lines = [*read_rows(reviews)[:3], read_rows(reviews)[1]]  # a text that occurs twice has two ids
    ids = ["r7", "r8", "r9", "r10"]
    (tmp_path / "train.csv").write_text(
        "\n".join(["id,text,label", *(f"{i},{text},{label}" for i, (text, label) in zip(ids, lines, strict=True))])
    )
    content = [*FORMS[form], FORMS[form][1]]
    named = [{"id": i} if key == "id" else {"text": text} for i, (text, _) in zip(ids, lines, strict=True)]
    records = [name | record for name, record in zip(named, content, strict=True)]
    teacher = tmp_path / f"soft.{form}"
    if form.endswith("jsonl"):
        teacher.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif form.endswith("parquet"):
        pytest.importorskip("pandas").DataFrame(records).to_parquet(teacher)
    else:
        mark = "," if form == "csv" else "\t"
        teacher.write_text("\n".join(mark.join(row) for row in (records[0], *(r.values() for r in records))) + "\n")
    source = tb.DataSource(
        train=str(tmp_path / "train.csv"), dev=str(reviews / "dev.tsv"), id_column="id", text_columns=("text",)
    )
    dev = "id\ttext\tlabel\n" + "".join(
        f"{number}\t{line}\n" for number, line in enumerate((reviews / "dev.tsv").read_text().splitlines()[1:])
    )
    (tmp_path / "dev.tsv").write_text(dev)
    source = dataclasses.replace(source, dev=str(tmp_path / "dev.tsv"))
    likely = of_rows(teacher, blank_student, reviews, source=source)
    expected = [[0.2, 0.8], [0.7, 0.3], [1e-9, 1.0]] if "logits" not in form else [[0.2, 0.8]] * 3
    odds = likely / likely.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(odds, expected, rtol=1e-5)
    if key == "id":
        with pytest.raises(tb.InputError, match="names rows by id, and no column of the rows is an id"):
            of_rows(teacher, blank_student, reviews)


def test_what_is_not_named_shares_the_rest(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    """Of four classes two are named, with 0.9; each other one has 0.05."""
    rows = read_rows(reviews)
    labels = ["good", "bad", "fair", "odd"]
    lines = [f"{text}\t{labels[number % 4]}" for number, (text, _) in enumerate(rows)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    teacher = write_predictions(
        tmp_path / "soft.jsonl", rows, lambda label: {"probabilities": {"odd": 0.6, "good": 0.3}}
    )
    inputs = load_inputs(experiment(blank_student, tmp_path, teacher))
    likely = np.exp(np.asarray(inputs.lessons[0].train.batch(np.arange(1), 16, 0).targets))
    assert dict(zip(inputs.config.id2label, likely[0].tolist(), strict=True)) == pytest.approx(
        {"bad": 0.05, "fair": 0.05, "good": 0.3, "odd": 0.6}
    )


def test_a_table_is_refused_by_line(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "soft.tsv"
    for content, message in (
        ("text\tgood\tbad\na\t0.1\n", r"soft.tsv:2: 2 cells instead of 3 \(text, good, bad\): repair it"),
        (
            "text\tgood\tlength\na\t0.1\t0.9\n",
            "soft.tsv:2: unknown class 'length'; the labelled rows have 'bad', ",
        ),
        ("text\tlabel\tconfidence\na\tgood\thigh\n", "soft.tsv:2: the confidence is 'high'; it must be a number"),
        ("", "soft.tsv:1: the file holds no prediction"),
        ("text\tgood\tgood\na\t0.1\t0.9\n", "soft.tsv:1: the column 'good' occurs twice: rename one"),
        (
            "text\tlabel\tgood\tbad\na\tbad\t0.9\t0.1\n",
            "soft.tsv:2: has a label, and numbers in 'good', 'bad', which are read as probabilities of classes",
        ),
        ("text\tlabel\tyear\na\tbad\t1999\n", "soft.tsv:2: has a label, and numbers in 'year', which are read as"),
        ("text\tgood\tbad\n10\t0.9\t0.3\n", "soft.tsv:2: the probabilities add up to 1.2"),
        ("sentence\tgood\na\t1\n", 'soft.tsv:2: "text" is null: give a string, or a list of two; or an "id"'),
    ):
        teacher.write_text(content)
        with pytest.raises(tb.InputError, match=message):
            load_inputs(experiment(blank_student, reviews, teacher))
    damaged = tmp_path / "soft.parquet"
    damaged.write_bytes(b"PAR1")
    with pytest.raises(tb.InputError, match=r"soft.parquet: (not a Parquet file|a Parquet file is read by pyarrow)"):
        load_inputs(experiment(blank_student, reviews, damaged))


def test_an_id_of_two_rows_is_refused(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    """Two files count their rows from 1."""
    for split in ("train", "dev"):
        rows = (reviews / f"{split}.tsv").read_text().splitlines()[1:]
        lines = [f"{number}\t{line}" for number, line in enumerate(rows, 1)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["id\ttext\tlabel", *lines]) + "\n")
    count = len(read_rows(reviews))
    lines = [json.dumps({"id": number, "label": "good"}) for number in range(1, count + 1)]
    (tmp_path / "soft.jsonl").write_text("\n".join(lines))
    source = tb.DataSource(data=str(tmp_path), id_column="id")
    with pytest.raises(tb.InputError, match=r"soft.jsonl: the id '\d+' is that of two rows, '.*' and '.*': give"):
        load_inputs(experiment(blank_student, reviews, tmp_path / "soft.jsonl", source=source))


def test_names_of_classes_are_those_of_the_task(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    """In a task of the table, a file may write them in any of the forms that its rows may have."""
    turned = {"good": "1", "bad": "0"}
    for split in ("train", "dev"):
        lines = [line.split("\t") for line in (reviews / f"{split}.tsv").read_text().splitlines()[1:]]
        rows = [f"{text}\t{turned[label]}" for text, label in lines]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    teacher = write_predictions(
        tmp_path / "soft.jsonl", read_rows(reviews), lambda label: {"probabilities": {"positive": 0.9, "0": 0.1}}
    )
    inputs = load_inputs(experiment(blank_student, tmp_path, teacher, task="sst2"))
    assert inputs.config.id2label == ("negative", "positive")
    likely = np.exp(np.asarray(inputs.lessons[0].train.batch(np.arange(1), 16, 0).targets))
    np.testing.assert_allclose(likely, [[0.1, 0.9]], rtol=1e-5)
    other = write_predictions(tmp_path / "o.jsonl", read_rows(reviews), lambda label: {"label": "neutral"})
    with pytest.raises(
        tb.InputError, match=r"o.jsonl:1: unknown class 'neutral'; the labelled rows have 'negative', 'positive'"
    ):
        load_inputs(experiment(blank_student, tmp_path, other, task="sst2"))


def test_a_table_that_others_wrote_may_have_a_column_of_the_name_prediction(
    blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    """Only `probability.CLASS` or a lone number make it one that `tinybert predict` wrote."""
    rows = read_rows(reviews)
    lines = [
        f"{text}\t{label}\t{0.9 if label == 'good' else 0.2}\t{0.1 if label == 'good' else 0.8}"
        for text, label in rows
    ]
    (tmp_path / "soft.tsv").write_text("\n".join(["text\tprediction\tgood\tbad", *lines]) + "\n")
    (lesson,) = load_inputs(experiment(blank_student, reviews, tmp_path / "soft.tsv")).lessons
    likely = np.exp(np.asarray(lesson.train.batch(np.arange(8), 16, 0).targets))
    expected = [[0.1, 0.9] if label == "good" else [0.8, 0.2] for _, label in rows[:8]]
    np.testing.assert_allclose(likely, expected, rtol=1e-5)


def test_a_number_has_one_name(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    rows = read_rows(tmp_path)
    both = write_predictions(tmp_path / "n.jsonl", rows, lambda label: {"value": 1.0, "prediction": 2.0})
    with pytest.raises(tb.InputError, match=r"n.jsonl:1: has value and prediction: keep one of them"):
        load_inputs(experiment(blank_student, tmp_path, both, task="regression"))
