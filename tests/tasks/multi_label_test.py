"""Rows with any number of classes: read, learnt, distilled, scored, exported, and taught by files and functions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import BAD, GOOD, NEUTRAL, write_model
from in_process import assert_refused, tinybert

import tinybert_jax as tb
from tinybert_jax import losses
from tinybert_jax.data.rows import read_rows
from tinybert_jax.inference import evaluate
from tinybert_jax.models.heads import CLASS_SETS, CLASSES, NUMBERS, head_losses
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks import metrics
from tinybert_jax.tasks.classes import class_rows
from tinybert_jax.teachers.ensemble import average
from tinybert_jax.teachers.predictions import log_odds

TASK = get_task("multi_label")
NAMES = ("crisp", "praise", "stale")  # which words a text has
TELLING = {"crisp": "crisp", "praise": GOOD[0], "stale": BAD[0]}


def write_sets(directory: Path, train: int = 192, dev: int = 64) -> Path:
    """train.jsonl, dev.jsonl and test.jsonl; a text has a class for each telling word in it, and some have none."""
    random = np.random.default_rng(0)
    directory.mkdir(parents=True)
    neutral = [word for word in NEUTRAL if word not in TELLING.values()]
    for name, n in (("train", train), ("dev", dev)):
        lines = []
        for _ in range(n):
            labels = [label for label in NAMES if random.random() < 0.4]
            words = [*random.choice(neutral, 6), *(TELLING[label] for label in labels)]
            lines.append(json.dumps({"text": " ".join(random.permutation(words)), "labels": labels}))
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def source_of(directory: Path) -> tb.DataSource:
    return tb.DataSource(train=str(directory / "train.jsonl"), dev=str(directory / "dev.jsonl"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets") / "data")


@pytest.fixture(scope="module")
def tagger(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A fine-tuned model, as the run gives it."""
    folder = tmp_path_factory.mktemp("tagger")
    words = (*NEUTRAL, *GOOD, *BAD, "crisp")
    model = write_model(folder / "bert", words=words, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    stage = tb.Stage("supervised", epochs=16, learning_rate=5e-3, evaluate_every=24)
    return tb.run(tb.Experiment("multi_label", source_of(sets), str(model), (stage,), max_length=16), folder / "run")


def distilled(teacher: Any, student: Path, sets: Path, out: Path, **source: Any) -> Any:
    stages = (tb.Stage("prediction", epochs=16, learning_rate=1e-2, evaluate_every=24),)
    data = dataclasses.replace(source_of(sets), **source)
    return tb.run(tb.Experiment("multi_label", data, str(student), stages, teacher, max_length=16), out)


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = (*NEUTRAL, *GOOD, *BAD, "crisp")
    path = tmp_path_factory.mktemp("blank") / "bert"
    return write_model(path, words=words, hidden_size=16, num_hidden_layers=1, intermediate_size=32)


def test_lists_and_delimited_cells_are_the_same_rows(tmp_path: Path) -> None:
    rows = [("one", ["b", "a"]), ("two", []), ("three", ["c"])]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": t, "labels": x}) for t, x in rows))
    (tmp_path / "train.csv").write_text("text,labels\n" + "\n".join(f'{t},"{", ".join(x)}"' for t, x in rows) + "\n")
    (tmp_path / "train.tsv").write_text("text\tlabels\n" + "\n".join(f"{t}\t{'|'.join(x)}" for t, x in rows) + "\n")
    for name, delimiter in (("train.jsonl", None), ("train.csv", ","), ("train.tsv", "|")):
        source = tb.DataSource(train=str(tmp_path / name), dev="none", label_delimiter=delimiter)
        read = read_rows(TASK, source, "train")
        assert read.label_names == ("a", "b", "c")
        assert read.labels is not None
        assert read.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_unlabelled_rows_are_marked(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("we bought chips\n")
    rows = read_rows(TASK, dataclasses.replace(source_of(sets), unlabelled=(str(tmp_path / "more.txt"),)), "train")
    assert rows.labels is not None
    assert rows.labels.shape == (193, 3)
    assert rows.labels[-1].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("file", "content", "delimiter", "message"),
    [
        ("a.csv", "text,labels\none,a;b\n", None, r"a\.csv:2: 'labels' is 'a;b', .* --label-delimiter ';'"),
        ("a.csv", "text,labels\none,a\ntwo,a\n", ";", "all rows have the label 'a'"),
        ("a.csv", "text,labels\none,\ntwo,\n", ";", "no row has a label"),
        ("a.jsonl", '{"text": "one", "labels": [["a"]]}', None, "'labels' is a list instead of a string"),
        ("a.jsonl", '{"text": "one", "labels": {"a": 1}}', None, "'labels' is an object instead of a string"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    file: str, content: str, delimiter: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(tb.InputError, match=message):
        read_rows(TASK, tb.DataSource(train=str(tmp_path / file), label_delimiter=delimiter), "train")


def test_a_label_that_training_rows_lack_is_named(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"text": "one", "labels": ["crisp", "sour"]}\n')
    source = dataclasses.replace(source_of(sets), dev=str(tmp_path / "dev.jsonl"))
    with pytest.raises(tb.InputError, match=r"dev\.jsonl:1: unknown label 'sour'; .* 'crisp', 'praise', 'stale'"):
        read_rows(TASK, source, "dev")


@pytest.mark.long
def test_options_of_other_tasks_are_refused(sets: Path, reviews: Path, tagger: Any, teacher: Path) -> None:
    common = {"max_length": 16}
    with pytest.raises(tb.InputError, match="one label a row: leave out --label-delimiter"):
        evaluate.evaluate(
            str(teacher), "classification", tb.DataSource(data=str(reviews), label_delimiter=";"), **common
        )
    with pytest.raises(tb.InputError, match=r"gives a text one class .* take another --task, or correct problem_type"):
        evaluate.evaluate(str(teacher), "multi_label", source_of(sets), **common)
    with pytest.raises(tb.InputError, match="gives a text any number of classes"):
        evaluate.evaluate(str(tagger.directory), "classification", source_of(sets), **common)
    with pytest.raises(tb.InputError, match="label_delimiter is ' '"):
        tb.DataSource(train="a.csv", label_delimiter=" ")


def test_losses_are_those_of_binary_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits, teacher = random.normal(size=(2, 5)).astype(np.float32) * 4
    labels = np.array([1, 0, 0, 1, 1], np.int32)
    p = scipy.special.expit(logits.astype(np.float64))
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    student, target, classes = map(jnp.asarray, (logits, teacher, labels))
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(student, classes), expected, rtol=1e-5)
    p, q = (scipy.special.expit(x.astype(np.float64) / 2) for x in (logits, teacher))
    expected = -np.mean(q * np.log(p) + (1 - q) * np.log(1 - p))
    np.testing.assert_allclose(losses.soft_sigmoid_cross_entropy(student, target, 2.0), expected, rtol=1e-5)
    gradient = jax.grad(losses.soft_sigmoid_cross_entropy)(student, target, 2.0)
    np.testing.assert_allclose(gradient, (p - q) / 2 / 5, atol=1e-6)
    # far away, nothing overflows
    assert np.isfinite(losses.sigmoid_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([0, 1])))


def test_the_problem_of_the_config_chooses_the_losses() -> None:
    config = tb.BertConfig(id2label=("a", "b"))
    assert head_losses("sequence", config) is CLASSES
    several = dataclasses.replace(config, problem_type="multi_label_classification")
    assert head_losses("sequence", several) is CLASS_SETS
    assert head_losses("sequence", dataclasses.replace(config, id2label=("a",))) is NUMBERS


def test_the_mean_of_teachers_is_that_of_each_probability() -> None:
    first, second = np.array([[0.9, 0.2]]), np.array([[0.5, 0.6]])
    mean = average([log_odds(first), log_odds(second)], "each", shares=[0.25, 0.75], of="probabilities")
    np.testing.assert_allclose(scipy.special.expit(mean), 0.25 * first + 0.75 * second, rtol=1e-5)


def test_scores_and_tables_count_classes() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    predicted = np.array([[1, 1], [0, 1], [0, 0]])
    assert metrics.micro_f1(predicted, labels) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.macro_f1(predicted, labels) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"must both be \[n, c\]"):
        metrics.macro_f1(predicted[:, 0], labels[:, 0])
    header, rows = class_rows(("a", "b"), predicted, labels)
    assert header == ["class", "rows", "precision", "recall", "F1"]
    assert rows == [["a", "2", "1.000", "0.500", "0.667"], ["b", "1", "0.500", "1.000", "0.667"]]


@pytest.mark.long
def test_a_teacher_and_its_student_learn_and_are_scored(tagger: Any, blank: Path, sets: Path, tmp_path: Path) -> None:
    assert tagger.scores["macro_f1"] > 0.9
    config = json.loads((tagger.directory / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    student = distilled(str(tagger.directory), blank, sets, tmp_path / "run")
    assert student.scores["micro_f1"] > 0.9
    tables: list[Any] = []
    predictions = tmp_path / "predictions.tsv"
    scores = evaluate.evaluate(
        str(student.directory), "multi_label", source_of(sets), predictions=predictions,
        show=lambda *table: tables.append(table),
    )  # fmt: skip
    assert scores == student.scores
    [(header, rows)] = tables
    assert header[-2:] == ["best threshold", "its F1"]
    assert [row[0] for row in rows] == list(NAMES)
    first = json.loads((sets / "dev.jsonl").read_text().splitlines()[0])
    lines = predictions.read_text().splitlines()
    assert len(lines) == 65
    assert lines[1] == f"0\t{';'.join(first['labels'])}"


def test_transformers_gives_the_same_probabilities(tagger: Any) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    kind = transformers.AutoModelForSequenceClassification.from_pretrained(tagger.directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tagger.directory)
    texts = ["we bought crisp chips", f"{GOOD[0]} and {BAD[0]}", "the bag"]
    with torch.inference_mode():
        expected = torch.sigmoid(kind(**tokenizer(texts, return_tensors="pt", padding=True)).logits).numpy()
    assert kind.config.problem_type == "multi_label_classification"
    np.testing.assert_allclose(tb.load_predictor(tagger.directory).probabilities(texts), expected, atol=1e-5)


@pytest.mark.long
def test_files_and_functions_teach_class_sets(sets: Path, blank: Path, tmp_path: Path) -> None:
    lines = [
        json.loads(line) for name in ("train", "dev") for line in (sets / f"{name}.jsonl").read_text().splitlines()
    ]
    unique = {line["text"]: line["labels"] for line in lines}
    half = len(unique) // 2
    records = [
        {"text": text, "probabilities": {name: 0.95 if name in labels else 0.05 for name in NAMES}}
        if number < half
        else {"text": text, "labels": labels, "confidence": 0.95}
        for number, (text, labels) in enumerate(unique.items())
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    assert distilled(str(path), blank, sets, tmp_path / "file").scores["micro_f1"] > 0.9

    def function(texts: Sequence[str]) -> list[list[float]]:
        return [[0.95 if TELLING[name] in text.split() else 0.05 for name in NAMES] for text in texts]

    teacher = tb.FunctionTeacher(function, "version 1", NAMES)
    assert distilled(teacher, blank, sets, tmp_path / "function").scores["micro_f1"] > 0.9


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"probabilities": {"crisp": 1.2}}, r"the probabilities are \{'crisp': 1.2\}: each must be from 0 to 1"),
        ({"labels": "crisp"}, '"labels" is "crisp": give a list'),
        ({"labels": ["sour"]}, "unknown class 'sour'"),
    ],
)
def test_predictions_that_are_no_class_sets_are_refused(
    record: dict[str, Any], message: str, sets: Path, blank: Path, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"text": "we bought chips"} | record))
    with pytest.raises(tb.InputError, match=message):
        distilled(str(path), blank, sets, tmp_path / "run")


def test_a_function_that_gives_no_probabilities_is_refused(sets: Path, blank: Path, tmp_path: Path) -> None:
    teacher = tb.FunctionTeacher(lambda texts: [[0.5, 1.5, 0.1]] * len(texts), "version 1", NAMES)
    with pytest.raises(tb.InputError, match="and for classes probabilities from 0 to 1"):
        distilled(teacher, blank, sets, tmp_path / "run")


@pytest.mark.long
def test_an_exported_model_agrees_and_teaches(tagger: Any, blank: Path, sets: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from tinybert_jax.export.export import export_model

    [exported] = export_model(str(tagger.directory), tmp_path / "onnx", ("onnx",))
    assert exported.agreement == 1.0
    result = distilled(str(tmp_path / "onnx"), blank, sets, tmp_path / "run")
    assert result.scores["micro_f1"] > 0.9


@pytest.mark.long
def test_predictors_give_sets_that_teach_again(
    tagger: Any,
    blank: Path,
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    predictor = tb.load_predictor(tagger.directory)
    texts = [f"we bought crisp {GOOD[0]} chips", "the bag"]
    likely = predictor.probabilities(texts)
    assert predictor.label_sets(texts) == [("crisp", "praise"), ()]
    assert predictor.label_sets(texts, threshold=0.0) == [NAMES, NAMES]
    assert [prediction.label for prediction in predictor(texts[:1])] == [NAMES[int(likely[0].argmax())]]
    # the command writes what a teacher may be
    common = ["predict", "--model", tagger.directory, "--input"]
    out = tmp_path / "train.jsonl"
    assert tinybert(monkeypatch, *common, sets / "train.jsonl", "--out", out) == 0
    first = json.loads(out.read_text().splitlines()[0])
    assert first["prediction"] == first["labels"]
    assert list(first["probabilities"]) == list(NAMES)
    (tmp_path / "dev.txt").write_text("\n".join(texts))
    assert tinybert(monkeypatch, *common, tmp_path / "dev.txt", "--out", tmp_path / "dev.tsv") == 0
    assert (tmp_path / "dev.tsv").read_text().splitlines()[1].split("\t")[1] == "crisp;praise"
    capsys.readouterr()
    code = tinybert(monkeypatch, *common, tmp_path / "dev.txt", "--threshold", 1.5, "--out", tmp_path / "no.tsv")
    assert_refused(capsys, code, "--threshold is 1.5; it is from 0 to 1")
    assert distilled(str(out), blank, sets, tmp_path / "run").scores["micro_f1"] > 0.9


def test_other_models_give_no_sets(teacher: Path) -> None:
    with pytest.raises(ValueError, match="does not give a text any number of classes"):
        tb.load_predictor(teacher).label_sets(["a bag"])
