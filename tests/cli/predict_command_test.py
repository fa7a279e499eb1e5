"""`tinybert predict`: every row of every format comes out with its columns and what the model says, as it comes in."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import NER_WORDS, rest_long, write_conll, write_model, write_scored_reviews, write_squad
from in_process import assert_refused, tinybert, write

import tinybert_jax as tb
from tinybert_jax.cli import entry
from tinybert_jax.training.inputs import load_inputs

TEXTS = ["a lovely bag", "it was awful", 'the "tasty" chips, and very fine', "it's bitter — né \u2028 🍟 e\u0301"]
Feed = Callable[[str | bytes], None]
COLUMNS = ["prediction", "probability.bad", "probability.good"]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """Makes standard input a pipe of some content."""
    with contextlib.ExitStack() as pipes:

        def pipe(content: str | bytes) -> None:
            read, write = os.pipe()
            os.write(write, content.encode() if isinstance(content, str) else content)
            os.close(write)
            monkeypatch.setattr("sys.stdin", pipes.enter_context(os.fdopen(read)))

        yield pipe


def with_head(directory: Path, module: Callable[..., Any], labels: tuple[str, ...]) -> Path:
    """A random model with a head."""
    write_model(directory, words=NER_WORDS, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    config = tb.load_hf(directory)[0]
    tokenizer = tb.load_tokenizer(directory, config)
    config = dataclasses.replace(config, id2label=labels)
    tb.save_hf(directory, config, tb.init_params(module(config), jax.random.key(1)), tokenizer)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that gives half of TEXTS each of its classes."""
    path = with_head(tmp_path_factory.mktemp("model") / "bert", tb.BertForSequenceClassification, ("bad", "good"))
    config, params = tb.load_hf(path)
    likely = tb.load_predictor(path).probabilities(TEXTS)
    params["classifier"]["bias"][0] = np.median(np.log(likely[:, 1] / likely[:, 0]))
    tb.save_hf(path, config, params)
    labels = {prediction.label for prediction in tb.load_predictor(path)(TEXTS)}
    assert labels == {"bad", "good"}
    return path


def predicted_json(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.removesuffix("\n").split("\n")]


def expected_lines(model: Path) -> list[list[Any]]:
    """What the predictor says of TEXTS: the label, and the two probabilities."""
    predictor = tb.load_predictor(model)
    labels = [prediction.label for prediction in predictor(TEXTS)]
    return [[label, *row] for label, row in zip(labels, predictor.probabilities(TEXTS).tolist(), strict=True)]


def as_table(form: str) -> str:
    lines = io.StringIO()
    if form == "csv":
        csv.writer(lines).writerows([["n", "text", "label"], *([str(i), text, "x"] for i, text in enumerate(TEXTS))])
        return "\ufeff" + lines.getvalue()  # with CRLF and the mark, as Excel writes it
    return "\r\n".join(["n\ttext\tlabel", *(f"{i}\t{text}\tx" for i, text in enumerate(TEXTS))]) + "\r\n\r\n"


@pytest.mark.parametrize(
    ("form", "from_pipe"), rest_long(product(["csv", "tsv"], [False, True]), [("csv", False), ("tsv", True)])
)
def test_a_table_is_written_in_its_form_with_all_its_columns(
    form: str, from_pipe: bool, model: Path, tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    file = tmp_path / f"rows.{form}"
    write(file, as_table(form))
    if from_pipe:
        feed(file.read_bytes())
    source = ["--from", form] if from_pipe else ["--input", file]
    assert tinybert(monkeypatch, "predict", "--model", model, *source) == 0
    printed = capsys.readouterr()
    assert not printed.err
    if form == "csv":
        header, *rows = csv.reader(io.StringIO(printed.out, newline=""), strict=True)
    else:
        header, *rows = [line.split("\t") for line in printed.out.removesuffix("\n").split("\n")]
    assert header == ["n", "text", "label", *COLUMNS]
    assert [row[:3] for row in rows] == [[str(i), text, "x"] for i, text in enumerate(TEXTS)]
    for row, (label, *likely) in zip(rows, expected_lines(model), strict=True):
        assert row[3] == label
        np.testing.assert_allclose([float(cell) for cell in row[4:]], likely, rtol=1e-5)


def test_texts_and_json_lines_come_out_as_json_objects_with_all_their_keys(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    expected = expected_lines(model)
    write(tmp_path / "rows.txt", "\r\n\n".join(TEXTS) + "\n \n")
    kept: list[dict[str, Any]] = [{"id": i, "review": text, "tags": ["a", None]} for i, text in enumerate(TEXTS)]
    write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    for file, rows in (("rows.txt", [{"review": text} for text in TEXTS]), ("rows.jsonl", kept)):
        arguments = ["--model", model, "--input", tmp_path / file, "--text-columns", "review", "--to", "jsonl"]
        assert tinybert(monkeypatch, "predict", *arguments) == 0
        for row, written, (label, *likely) in zip(
            rows, predicted_json(capsys.readouterr().out), expected, strict=True
        ):
            assert written.pop("prediction") == label
            probabilities = written.pop("probabilities")
            assert [*probabilities] == ["bad", "good"]
            np.testing.assert_allclose([*probabilities.values()], likely, rtol=1e-5)
            assert written == row


def test_values_that_are_no_strings_are_json_in_a_table_and_half_a_surrogate_pair_is_escaped(
    model: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    row = '{"text": "a bag", "none": null, "n": 3, "list": ["é"], "half": "\\ud800"}\n'
    feed(row)
    assert tinybert(monkeypatch, "predict", "--model", model, "--from", "jsonl", "--to", "csv") == 0
    _, cells = csv.reader(io.StringIO(capsys.readouterr().out))
    assert cells[:5] == ["a bag", "", "3", '["é"]', "\\ud800"]
    feed(row)
    assert tinybert(monkeypatch, "predict", "--model", model, "--from", "jsonl") == 0
    assert json.loads(capsys.readouterr().out).items() > json.loads(row).items()


def test_the_quotes_of_a_tsv_of_pandas_are_no_part_of_its_texts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    note = f"note: {tmp_path}/quoted.tsv: its cells are quoted, as pandas does it; the quotes are no part of them\n"
    quoted = 'text\na bag\n"a ""tasty"" bag"\n"was\nstale"\n'
    for name, content, texts, printed in (
        ("quoted.tsv", quoted, ["a bag", 'a "tasty" bag', "was\nstale"], note),
        ("plain.tsv", 'text\n"a bag"\nwas\n', ['"a bag"', "was"], ""),
    ):
        (tmp_path / name).write_text(content)
        assert tinybert(monkeypatch, "predict", "--model", model, "--input", tmp_path / name, "--to", "jsonl") == 0
        out, err = capsys.readouterr()
        assert ([row["text"] for row in predicted_json(out)], err) == (texts, printed)


def test_a_table_with_semicolons_is_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write(tmp_path / "rows.csv", 'n;text\n1;"a bag; tasty"\n2;awful\n')
    assert tinybert(monkeypatch, "predict", "--model", model, "--input", tmp_path / "rows.csv") == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[:2] == ["n", "text"]
    assert [row[:2] for row in rows] == [["1", "a bag; tasty"], ["2", "awful"]]


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("csv", 'text\ngood\n""\n', ":3: the text in 'text' is empty: fill it or remove the row"),
    "spaces": ("tsv", "text\tn\n \u3000\t1\n", ":2: the text in 'text' is empty: fill it or remove the row"),
    "blank": ("tsv", "text\tn\na\t1\n\nb\t2\n", ":3: the line is blank: remove it"),
    "short": ("csv", 'text,n\n"a\nb",1\nc\n', ":4: short row: 1 instead of 2 (text, n): complete or remove the row"),
    "long": ("tsv", "text\tn\na\t1\t2\n", ":2: extra columns: 3 instead of 2 (text, n): repair or remove the row"),
    "quotes": ("csv", 'text\n"a" b\n', ":2: "),
    "column": ("csv", "review\na\n", ":1: no column 'text'; the columns are 'review': name yours with --text-columns"),
    "twice": ("csv", "text,text\na,b\n", ":1: the column 'text' occurs more than once: rename one"),
    "written": ("csv", "text,prediction\na,b\n", ":2: has 'prediction' already, which is written: rename it"),
    "bars": ("csv", "text|n\na|1\n", ":1: bars separate the columns ('text|n'): a .tsv has tabs"),
    "value": ("jsonl", '[\n {"text": "a"}\n]\n', ":1: is one value of JSON: write one object a line"),
    "key": ("jsonl", '{"text": "a"}\n{"n": 1}\n', ":2: no key 'text'; the keys are 'n': name yours with --text"),
    "json": ("jsonl", '{"text": "a"}\n{"text": \n', ":2: not JSON"),
    "list": ("jsonl", '{"text": ["a", "b"]}\n', ":1: 'text' is a list instead of a string: write a string"),
    "bytes": ("txt", b"a\ncaf\xe9\n", ":2: byte 0xe9 is not UTF-8: save the file as UTF-8"),
    "nul": ("txt", "a\nb\0\n", ":2: a NUL byte: remove it"),
    "nothing": ("txt", "\n \n", ":1: holds no row: give some"),
    "header": ("csv", "text\n", ":1: holds no row: give some"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_row_is_told_by_file_and_line_before_anything_is_written(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    form, content, message = BAD[case]
    file = tmp_path / f"rows.{form}"
    write(file, content)
    code = tinybert(monkeypatch, "predict", "--model", model, "--input", file, "--out", tmp_path / "out.csv")
    assert_refused(capsys, code, f"{file}{message}")
    assert not (tmp_path / "out.csv").exists()


def test_of_a_pipe_the_rows_before_a_wrong_one_are_written(
    model: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    feed('text\na bag\n""\ntasty\n')
    code = tinybert(monkeypatch, "predict", "--model", model, "--from", "csv")
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err == "tinybert: error: standard input:3: the text in 'text' is empty: fill it or remove the row\n"
    assert printed.out.splitlines()[1].startswith("a bag,")


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a\tb\n", [], "rows.txt:1: looks like the first line of a .tsv: add --from tsv (or --from txt if it is a"),
        (
            "a\tb\n",
            ["--from", "txt"],
            "rows.txt:1: 'a\\tb' holds a tab or a line break, which no .tsv can hold: add --to csv or --to",
        ),
        ("a\n", ["--out", "labels.xlsx"], "labels.xlsx: predictions are written as .tsv, .csv or .jsonl"),
        (
            "a\n",
            ["--out", "labels.parquet"],
            "labels.parquet: predictions are written as .tsv, .csv or .jsonl: name such",
        ),
        ("a\n", ["--text-columns", "a", "b"], "rows.txt: a .txt has one text a line, and a, b are several"),
        ("a\n", ["--text-columns", "a", "b", "c"], "BERT reads one text, or a pair"),
        ("a\n", ["--batch-size", "0"], "batch_size is 0"),
        ("a\n", ["--out", "no/such/place.tsv"], "not in an existing directory"),
        ("a\n", ["--out", "."], "exists already; choose another --out"),
    ],
)
def test_what_cannot_be_done_is_told(
    content: str, more: list[str], message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write(tmp_path / "rows.txt", content)
    code = tinybert(monkeypatch, "predict", "--model", model, "--input", tmp_path / "rows.txt", *more)
    assert_refused(capsys, code, message)


@pytest.mark.parametrize(
    ("content", "columns", "form"),
    [
        ('{"text": "a bag"}\n', [], "jsonl"),
        pytest.param("n,text\n1,a bag\n", [], "csv", marks=pytest.mark.long),
        ('"text"\r\na bag\n', [], "csv"),
        ("id,comment\n1,a bag\n", ["--text-columns", "comment"], "csv"),
        ("id,words,verdict\n1,a bag,good\n", ["--text-columns", "words"], "csv"),
        pytest.param("review\tn\na bag\t1\n", ["--text-columns", "review"], "tsv", marks=pytest.mark.long),
    ],
)
def test_a_pipe_that_looks_like_no_texts_is_refused_until_its_format_is_named(
    content: str, columns: list[str], form: str, model: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = ["predict", "--model", model, *columns, "--to", "jsonl"]
    feed(content)
    message = f"standard input:1: looks like the first line of a .{form}: add --from {form} (or --from txt if it is"
    assert_refused(capsys, tinybert(monkeypatch, *arguments), message)
    for named, count in ((form, 1), ("txt", content.count("\n"))):
        feed(content)
        assert tinybert(monkeypatch, *arguments, "--from", named) == 0
        assert len(predicted_json(capsys.readouterr().out)) == count


def test_files_that_are_none_are_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write(tmp_path / "rows.parquet", "")
    for name, message in (
        ("no.csv", "no such file: give --input FILE, or pipe rows into the command"),
        ("", "a directory, not a file"),
        ("rows.parquet", "unknown kind of file '.parquet': add --from txt, tsv, csv or jsonl"),
    ):
        code = tinybert(monkeypatch, "predict", "--model", model, "--input", tmp_path / name)
        assert_refused(capsys, code, message)
    monkeypatch.setattr("sys.stdin", None)
    assert_refused(capsys, tinybert(monkeypatch, "predict", "--model", model), "standard input is closed")


def test_keys_that_change_fit_json_lines_and_no_table(
    model: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    rows = '{"text": "a"}\n{"text": "b", "n": 1}\n'
    feed(rows)
    arguments = ["predict", "--model", model, "--from", "jsonl"]
    code = tinybert(monkeypatch, *arguments, "--to", "tsv")
    assert_refused(capsys, code, "standard input:2: has other keys than the first row: add --to jsonl")
    feed(rows)
    assert tinybert(monkeypatch, *arguments) == 0


def test_a_pipe_gives_each_prediction_before_the_next_row_is_there(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows, to_rows), (from_lines, lines) = os.pipe(), os.pipe()
    answers = []

    def ask() -> None:
        with os.fdopen(to_rows, "w") as asking, os.fdopen(from_lines) as listening:
            for text in TEXTS:
                print(text, file=asking, flush=True)
                answers.append(json.loads(listening.readline())["prediction"])

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    with os.fdopen(rows) as stdin, os.fdopen(lines, "w") as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        assert tinybert(monkeypatch, "predict", "--model", model, "--to", "jsonl") == 0
    asker.join()
    assert answers == [label for label, *_ in expected_lines(model)]


def test_a_reader_that_leaves_ends_the_command_without_a_word(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    left, lines = os.pipe()
    os.close(left)
    write(tmp_path / "rows.txt", "a lovely bag\n" * 3000)
    with os.fdopen(lines, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert tinybert(monkeypatch, "predict", "--model", model, "--input", tmp_path / "rows.txt") == 0
    assert not capsys.readouterr().err


def test_a_terminal_is_told_that_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"a lovely bag\n\x04")  # Ctrl-D
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert tinybert(monkeypatch, "predict", "--model", model) == 0
    os.close(keyboard)
    printed = capsys.readouterr()
    assert printed.err == "note: reading texts from the terminal, one a line; end with Ctrl-D\n"
    assert printed.out.splitlines()[1].startswith("a lovely bag\t")


def test_long_files_go_through_in_parts_with_their_progress(
    model: Path, tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Rows of like lengths share batches, and the order stays that of the file."""
    monkeypatch.setattr("tinybert_jax.data.batches.PROGRESS_FROM", 50)
    monkeypatch.setattr("tinybert_jax.inference.predict.ROWS_AT_ONCE", 64)
    texts = [("very " * (i % 7) + ["tasty", "stale"][i % 2]) for i in range(150)]
    write(tmp_path / "rows.txt", "\n".join(texts))
    arguments = ["--model", model, "--input", tmp_path / "rows.txt", "--out", tmp_path / "out.tsv"]
    assert tinybert(monkeypatch, "predict", *arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == f"150 rows written to {tmp_path / 'out.tsv'}\n"
    assert "predict: 100%" in printed.err
    assert "150/150" in printed.err
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == texts
    labels = [prediction.label for prediction in tb.load_predictor(model)(texts)]
    assert [row[1] for row in rows] == labels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv", "rows.txt"]
    feed("a bag\ntasty\n")
    assert tinybert(monkeypatch, "predict", "--model", model, "--out", tmp_path / "few.tsv") == 0
    assert capsys.readouterr().out == f"2 rows written to {tmp_path / 'few.tsv'}\n"


def test_an_interrupted_prediction_leaves_a_part_and_does_not_speak_of_resuming(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    codes: list[int] = []
    monkeypatch.setattr("tinybert_jax.inference.predict.Writer.lines", interrupt)
    monkeypatch.setattr(entry, "_end", lambda code, *more, **named: codes.append(code))
    write(tmp_path / "rows.txt", "a bag\n")
    arguments = ["--model", model, "--input", tmp_path / "rows.txt", "--out", tmp_path / "out.tsv"]
    tinybert(monkeypatch, "predict", *arguments)
    assert codes == [130]
    assert capsys.readouterr().err == "\ntinybert: interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv.part", "rows.txt"]
    tinybert(monkeypatch, "predict", *arguments)
    assert codes == [130, 2]
    assert "out.tsv.part: another run writes it, or was killed: remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pairs", "form"), rest_long(product([False, True], ["jsonl", "csv", "tsv"]), [(True, "jsonl")])
)
def test_predictions_of_classes_are_soft_labels_of_the_same_rows(
    form: str, pairs: bool, model: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch
) -> None:
    """The rows keep a true label, an id and a number, which are no classes."""
    rows = [line.split("\t") for line in (reviews / "train.tsv").read_text().splitlines()[1:]]
    columns = ("review", "answer") if pairs else ("review",)
    second = ["so it was"] if pairs else []
    lines = ["\t".join(["id", "stars", *columns, "label"])]
    lines += ["\t".join([str(i), "4", text, *second, label]) for i, (text, label) in enumerate(rows)]
    write(tmp_path / "train.tsv", "\n".join(lines) + "\n")
    file = tmp_path / f"soft.{form}"
    arguments = ["--model", model, "--input", tmp_path / "train.tsv", "--text-columns", *columns, "--out", file]
    assert tinybert(monkeypatch, "predict", *arguments) == 0
    source = tb.DataSource(train=str(tmp_path / "train.tsv"), dev=str(tmp_path / "train.tsv"), text_columns=columns)
    stages = (tb.Stage(tb.Prediction()),)
    experiment = tb.Experiment("classification", source, str(blank_student), stages, str(file), max_length=16)
    (lesson,) = load_inputs(experiment).lessons
    targets = np.asarray(lesson.train.batch(np.arange(len(rows)), 16, 0).targets)
    texts: list[Any] = [(text, *second) if pairs else text for text, _ in rows]
    likely = tb.load_predictor(model).probabilities(texts)
    np.testing.assert_allclose(np.exp(targets), likely, rtol=1e-5)


@pytest.mark.long
def test_distill_takes_what_predict_wrote(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From texts without labels to a student, by two commands."""
    texts = [line.split("\t")[0] for line in (reviews / "train.tsv").read_text().splitlines()[1:]]
    write(tmp_path / "texts.txt", "\n".join(texts))
    arguments = ["--model", teacher, "--input", tmp_path / "texts.txt", "--out", tmp_path / "soft.tsv"]
    assert tinybert(monkeypatch, "predict", *arguments) == 0
    models = ["--teacher", tmp_path / "soft.tsv", "--student", blank_student, "--task", "classification"]
    rows = ["--unlabelled", tmp_path / "texts.txt", "--dev", reviews / "dev.tsv", "--max-length", 16]
    length = ["--stage", "prediction", "--prediction-epochs", 12, "--prediction-learning-rate", "5e-3"]
    assert tinybert(monkeypatch, "distill", *models, *rows, *length, "--no-report", "--out", tmp_path / "run") == 0
    accuracy = float(capsys.readouterr().out.split("accuracy")[1].split()[0])
    assert accuracy > 0.85


@pytest.mark.long
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_predictions_of_numbers_are_soft_labels_too(
    form: str, reviews: Path, blank_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_head(tmp_path / "scorer", tb.BertForSequenceClassification, ("LABEL_0",))
    (tmp_path / "data").mkdir()
    write_scored_reviews(tmp_path / "data", reviews)
    train = tmp_path / "data" / "train.tsv"
    file = tmp_path / f"soft.{form}"
    assert tinybert(monkeypatch, "predict", "--model", model, "--input", train, "--out", file) == 0
    stages = (tb.Stage(tb.Prediction()),)
    source = tb.DataSource(data=str(tmp_path / "data"))
    experiment = tb.Experiment("regression", source, str(blank_student), stages, str(file), max_length=16)
    (lesson,) = load_inputs(experiment).lessons
    texts = [line.split("\t")[0] for line in train.read_text().splitlines()[1:]]
    values = [prediction.value for prediction in tb.load_predictor(model)(texts)]
    targets = np.asarray(lesson.train.batch(np.arange(len(texts)), 16, 0).targets)
    np.testing.assert_allclose(targets, values, rtol=1e-4)


def test_tags_are_those_of_evaluate_for_given_words_and_spans_are_cut_from_texts(
    tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    model = with_head(tmp_path / "tagger", tb.BertForTokenClassification, labels)
    data = write_conll(tmp_path / "data", train=1, dev=5)
    arguments = ["evaluate", "--model", model, "--task", "ner", "--data", data, "--max-length", 8]
    assert tinybert(monkeypatch, *arguments, "--predictions", tmp_path / "p.txt") == 0
    blocks = [block.split("\n") for block in (tmp_path / "p.txt").read_text().strip().split("\n\n")]
    sentences = [[line.split("\t") for line in block] for block in blocks]
    words = [[word for word, _ in sentence] for sentence in sentences]
    capsys.readouterr()
    feed("".join(json.dumps({"tokens": row}) + "\n" for row in words))
    arguments = ["predict", "--model", model, "--max-length", 8]
    assert tinybert(monkeypatch, *arguments, "--from", "jsonl", "--text-columns", "tokens") == 0
    rows = predicted_json(capsys.readouterr().out)
    assert [row["prediction"] for row in rows] == [[tag for _, tag in sentence] for sentence in sentences]
    assert {tag for row in rows for tag in row["prediction"]} > {"O"}
    assert all(len(row["probabilities"]) == len(row["tokens"]) and "words" not in row for row in rows)

    texts = [f" ({row[0]}) " + "  ".join(row[1:]) + "." for row in words]
    feed("\n".join(texts))
    assert tinybert(monkeypatch, *arguments, "--to", "jsonl") == 0
    spans = []
    for row, text, given in zip(predicted_json(capsys.readouterr().out), texts, words, strict=True):
        assert row["words"] == ["(", given[0], ")", *given[1:], "."]
        assert len(row["prediction"]) == len(row["words"])
        spans += [(text[span["start"] : span["end"]], span["text"]) for span in row["spans"]]
    assert spans
    assert all(cut == span for cut, span in spans)
    feed(texts[0])
    assert tinybert(monkeypatch, *arguments) == 0
    header, line = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert header == "text\twords\tprediction"
    assert line.split("\t")[1].split() == ["(", words[0][0], ")", *words[0][1:], "."]


@pytest.mark.long
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_are_those_of_evaluate(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model = with_head(tmp_path / "reader", tb.BertForQuestionAnswering, ("LABEL_0", "LABEL_1"))
    data = write_squad(tmp_path / "data", version, train=1, dev=20)
    task = {"1.1": "squad", "2.0": "squad2"}[version]
    files = ["--data", data, "--max-length", 16, "--predictions", tmp_path / "p.json"]
    assert tinybert(monkeypatch, "evaluate", "--model", model, "--task", task, *files) == 0
    expected = json.loads((tmp_path / "p.json").read_text())
    content = json.loads((data / f"dev-v{version}.json").read_text())
    paragraphs = content["data"][0]["paragraphs"]
    with (tmp_path / "q.csv").open("w", newline="") as file:
        rows = [[p["qas"][0]["id"], p["qas"][0]["question"], p["context"]] for p in paragraphs]
        csv.writer(file).writerows([["id", "question", "context"], *rows])
    capsys.readouterr()
    arguments = ["--model", model, "--input", tmp_path / "q.csv", "--to", "jsonl", "--max-length", 16]
    more = ["--unanswerable"] if version == "2.0" else []
    assert tinybert(monkeypatch, "predict", *arguments, *more) == 0
    rows = predicted_json(capsys.readouterr().out)
    assert {row["id"]: row["prediction"] for row in rows} == expected
    for row in rows:
        assert 0 < row["probability"] < 1
        end = row["start"] + len(row["prediction"])
        assert row["context"][row["start"] : end] == row["prediction"] if row["prediction"] else row["start"] == -1


def test_an_exported_model_and_int8_predict(
    model: Path, tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("onnxruntime")
    tb.export_model(str(model), tmp_path / "onnx", ("onnx",))
    monkeypatch.setattr("tinybert_jax.inference.predictor.int8_is_faster", lambda: True)
    expected = expected_lines(model)
    exact = np.array([likely for _, *likely in expected])
    for arguments, tolerance in (([tmp_path / "onnx"], 1e-5), ([model, "--int8"], 0.05)):
        feed("\n".join(TEXTS))
        assert tinybert(monkeypatch, "predict", "--model", *arguments) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.removesuffix("\n").split("\n")[1:]]
        written = np.array([[float(cell) for cell in row[2:]] for row in rows])
        np.testing.assert_allclose(written, exact, atol=tolerance)
    assert np.abs(written - exact).max() > 1e-5, "int8 rounds"


def test_outputs_that_are_not_finite_are_told(
    model: Path, tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    config, params = tb.load_hf(broken)
    params["classifier"]["kernel"] = np.full_like(params["classifier"]["kernel"], 3e38)
    dense = params["encoder"]["pooler"]["dense"]
    dense["bias"] = np.full_like(dense["bias"], 9.0)
    tb.save_hf(broken, config, params)
    feed("a bag\n")
    code = tinybert(monkeypatch, "predict", "--model", broken)
    assert_refused(capsys, code, f"{broken}: its output on standard input:1 is not finite")
