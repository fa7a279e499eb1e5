"""A template that joins columns is trained with, kept with the model, and applied to new files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import GOOD, rewrite_reviews
from in_process import assert_refused, tinybert, write

import tinybert_jax as tb

TEMPLATE = "{title} . {text} {bag}"


@pytest.fixture
def rows(reviews: Path, tmp_path: Path) -> list[object]:
    """Options that name rows of three columns."""
    (tmp_path / "data").mkdir()
    rewrite_reviews(
        tmp_path / "data", reviews, "title\ttext\tbag\tlabel", lambda *row: f"{row[0][:9]}\t{row[0]}\t2\t{row[1]}"
    )
    return ["--task", "classification", "--data", tmp_path / "data"]


@pytest.mark.long
def test_a_model_keeps_the_template_that_it_was_trained_with(
    rows: list[object], blank_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    training = ["--model", blank_student, *rows, "--max-length", 16, "--max-steps", 1, "--out", tmp_path / "run"]
    assert tinybert(monkeypatch, "finetune", *training, "--text-template", TEMPLATE) == 0, capsys.readouterr().err
    model, note = tmp_path / "run" / "student", f"--text-template '{TEMPLATE}'"
    assert json.loads((model / "tokenizer_config.json").read_text())["text_template"] == [TEMPLATE]
    capsys.readouterr()
    code = tinybert(monkeypatch, "finetune", *training, "--text-template", "{title}", "--resume")
    assert_refused(
        capsys, code, f"source.text_template.0 was '{TEMPLATE}' and is '{{title}}': give the command as it was, or"
    )

    new = tmp_path / "new.csv"
    write(new, f"bag,text,title\n1,the {GOOD[0]} bag,chips\n,it was awful,\n")
    texts = [f"chips . the {GOOD[0]} bag 1", " . it was awful "]
    predictor = tb.load_predictor(model)
    for options, expected in (([], texts), (["--text-columns", "text"], [f"the {GOOD[0]} bag", "it was awful"])):
        capsys.readouterr()
        assert tinybert(monkeypatch, "predict", "--model", model, "--input", new, *options) == 0
        printed = capsys.readouterr()
        assert (note in printed.err) == (not options)
        written = [[float(cell) for cell in row[4:]] for row in [*csv.reader(io.StringIO(printed.out))][1:]]
        np.testing.assert_allclose(written, predictor.probabilities(expected), rtol=1e-5)

    plain = tmp_path / "texts.txt"
    write(plain, "\n".join(texts))
    assert tinybert(monkeypatch, "predict", "--model", model, "--input", plain) == 0
    assert not capsys.readouterr().err, "a file of texts has them already"
    code = tinybert(monkeypatch, "predict", "--model", model, "--input", plain, "--text-template", "{a}")
    assert_refused(capsys, code, "a .txt has one text a line, and no columns for a --text-template: give a .csv")

    scores = []
    for options in ([], ["--text-template", TEMPLATE], ["--text-columns", "text"]):
        file = tmp_path / f"scores{len(scores)}.tsv"
        assert tinybert(monkeypatch, "evaluate", "--model", model, *rows, *options, "--predictions", file) == 0
        assert (note in capsys.readouterr().err) == (not options)
        scores.append(file.read_text())
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            ["{titel}"],
            "no column 'titel'; did you mean title?; the columns are 'title', 'text', 'bag', 'label': name",
        ),
        (["{title"], "text_template '{title': expected '}' before end of string: write {column}, and {{ for a brace"),
        (["{title}", "{text}", "{bag}"], "text_template are {title}, {text}, {bag}; BERT reads one text, or a pair"),
        (["{title}", "--text-columns", "text"], "text_columns and text_template both say what the texts are"),
    ],
)
def test_a_wrong_template_is_one_line(
    template: list[str], message: str, rows: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model = Path(__file__).parent.parent / "fixtures" / "tiny-bert"
    arguments = ["--model", model, *rows, "--out", tmp_path / "run", "--max-length", 16, "--text-template", *template]
    assert_refused(capsys, tinybert(monkeypatch, "finetune", *arguments), message)
    assert not (tmp_path / "run").exists()
