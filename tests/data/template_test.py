"""Columns that a template joins are one text everywhere; a template that says no text is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_model

import tinybert_jax as tb
from tinybert_jax.data.augmentation.build import build
from tinybert_jax.data.rows import Rows, read_rows
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.training.inputs import load_inputs

TASK = get_task("classification")
CELLS: list[dict[str, Any]] = [
    {"title": "Cold", "body": "The ice melted.", "price": 3, "label": "bad"},
    {"title": "", "body": "It {was} fine", "price": 2.5, "label": "good"},
    {"title": "", "body": "Warm", "price": "", "label": "good"},
]
ONE = ("{title}: {body} ({price})",)
TEXTS = ["Cold: The ice melted. (3)", ": It {was} fine (2.5)", ": Warm ()"]


def write(path: Path, cells: list[dict[str, Any]] = CELLS) -> str:
    if path.suffix == ".jsonl":
        rows = [{name: None if cell == "" else cell for name, cell in row.items()} for row in cells]
        lines = [json.dumps(row) for row in rows]
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        lines = [delimiter.join(map(str, row)) for row in ([*cells[0]], *(row.values() for row in cells))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def read(file: str, *template: str, **more: Any) -> Rows:
    return read_rows(TASK, tb.DataSource(train=file, text_template=template, **more), "train")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_a_template_joins_columns_to_one_text_and_two_of_them_make_a_pair(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"train{suffix}")
    assert read(file, *ONE).texts == [(text,) for text in TEXTS]
    pairs = read(file, "{title} {{}} {body}", "{body}{price}", label_column="label")
    assert pairs.texts[1:] == [(" {} It {was} fine", "It {was} fine2.5"), (" {} Warm", "Warm")]
    assert pairs.labels_or_zeros.tolist() == [0, 1, 1]


def test_rows_without_labels_and_ids_go_with_a_template(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv")
    rows = read(file, "{title}/{body}", unlabelled=(file,), id_column="price", label_column="label")
    assert rows.texts[1:4:2] == [("/It {was} fine",), ("Cold/The ice melted.",)]
    assert list(rows.ids or []) == ["3", "2.5", ""] * 2
    (tmp_path / "more.txt").write_text("a text\n")
    with pytest.raises(tb.InputError, match=r"more.txt: a .txt has one text a line, and no other column"):
        read(file, "{body}", unlabelled=(str(tmp_path / "more.txt"),))


def test_the_fingerprint_is_of_the_template_too(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv")
    templates = [ONE, ("{title}: {body} [{price}]",), ("{title}: {body}", "{body}"), ("{title}: {body}",)]
    for more in ({}, {"unlabelled": (file,)}):
        assert len({read(file, *template, **more).fingerprint for template in templates}) == len(templates)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (("",), "text_template '' names no column: write for example '{title}: {body}'"),
        (("title",), "text_template 'title' names no column: "),
        (("{}",), "text_template '{}': the name of a column, and no more, stands between braces"),
        (("{title!r}",), "text_template '{title!r}': the name of a column, and no more, "),
        (("{title:>9}",), "text_template '{title:>9}': the name of a column, and no more, "),
        (("{title",), "text_template '{title': expected '}' before end of string: write {column}, and {{ for a brace"),
        (("title}",), "text_template 'title}': Single '}' encountered in format string: write {column}, "),
        (("{a}", "{b}", "{c}"), "text_template are {a}, {b}, {c}; BERT reads one text, or a pair"),
    ],
)
def test_a_malformed_template_is_refused_before_any_file_is_read(template: tuple[str, ...], message: str) -> None:
    with pytest.raises(tb.InputError) as refused:
        tb.DataSource(train="no such file", text_template=template)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("suffix", "template", "message"),
    [
        (
            ".csv",
            "{titel}",
            "train.csv:1: no column 'titel'; did you mean title?; the columns are 'title', 'body', 'pr",
        ),
        (
            ".jsonl",
            "{titel}",
            "train.jsonl:1: no key 'titel'; the keys are 'title', 'body', 'price', 'label': name you",
        ),
        (".jsonl", "{list} {body}", "train.jsonl:1: 'list' is a list, and a template joins strings and numbers"),
        (".csv", "{price}", "train.csv:4: the text in '{price}' is empty: fill it or remove the row"),
        (".csv", "{body} {label}", "has the column 'label', and that is the label: take it out, or name another --la"),
    ],
)
def test_a_template_that_does_not_fit_the_file_is_refused(
    suffix: str, template: str, message: str, tmp_path: Path
) -> None:
    cells = [{**CELLS[0], "list": [1]}] if "list" in template else CELLS
    with pytest.raises(tb.InputError) as refused:
        read(write(tmp_path / f"train{suffix}", cells), template)
    assert message in str(refused.value)


def test_columns_and_a_template_are_not_both_named() -> None:
    with pytest.raises(tb.InputError, match="both say what the texts are: leave one out"):
        tb.DataSource(train="t.csv", text_columns=("a",), text_template=("{a}",))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_of_predictions_names_rows_by_the_columns_or_by_the_text(suffix: str, tmp_path: Path) -> None:
    likely = [{"good": 0.2, "bad": 0.8}, {"good": 0.7, "bad": 0.3}, {"good": 0.6, "bad": 0.4}]
    train = write(tmp_path / "train.csv")
    student = write_model(tmp_path / "bert", hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    by_column = [
        {name: x for name, x in row.items() if name != "label"}
        | ({"probabilities": of} if suffix == ".jsonl" else {f"probability.{label}": x for label, x in of.items()})
        for row, of in zip(CELLS, likely, strict=True)
    ]
    files = [write(tmp_path / f"soft{suffix}", by_column)]
    if suffix == ".jsonl":
        by_text = [{"text": text, "probabilities": of} for text, of in zip(TEXTS, likely, strict=True)]
        files.append(write(tmp_path / "texts.jsonl", by_text))
    for file in files:
        source = tb.DataSource(train=train, dev=train, text_template=ONE)
        stages = (tb.Stage(tb.Prediction()),)
        experiment = tb.Experiment("classification", source, str(student), stages, file, max_length=16)
        (lesson,) = load_inputs(experiment).lessons
        targets = np.exp(np.asarray(lesson.train.batch(np.arange(3), 16, 0).targets))
        np.testing.assert_allclose(targets, [[of["bad"], of["good"]] for of in likely], rtol=1e-5)


def test_variants_are_of_the_joined_text_and_not_written_in_its_columns(tmp_path: Path) -> None:
    source = tb.DataSource(train=write(tmp_path / "train.tsv"), text_template=ONE)
    model = Path(__file__).parent.parent / "fixtures" / "tiny-bert-mlm"
    samples = build(str(model), "classification", source, tmp_path / "variants", max_length=32)
    assert [texts[0] for texts in samples] == [(text,) for text in TEXTS]
    with pytest.raises(tb.InputError, match="which --text-template joins: leave one out"):
        build(str(model), "classification", source, tmp_path / "variants", tsv=tmp_path / "all.tsv")
