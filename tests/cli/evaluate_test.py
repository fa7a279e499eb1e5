"""The command `evaluate` writes scores and predictions, and tells in one line what does not fit."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import jax
import pytest
from in_process import assert_refused, tinybert, write

from tinybert_jax.inference import predictor
from tinybert_jax.training.run import Result


def test_evaluate_prints_scores_and_writes_json_and_predictions(
    teacher_result: Result,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = ["evaluate", "--model", teacher_result.directory, "--task", "classification", "--data", reviews]
    files = ["--json", tmp_path / "scores.json", "--predictions", tmp_path / "predictions.tsv"]
    assert tinybert(monkeypatch, *arguments, "--max-length", 16, *files) == 0
    accuracy = teacher_result.scores["accuracy"]
    printed = capsys.readouterr().out
    assert f"accuracy  {accuracy:.4f}" in printed
    assert f"predictions written to {tmp_path / 'predictions.tsv'}" in printed
    assert json.loads((tmp_path / "scores.json").read_text()) == {"split": "dev", "accuracy": accuracy}
    predicted = [line.split("\t")[1] for line in (tmp_path / "predictions.tsv").read_text().splitlines()[1:]]
    gold = [line.split("\t")[1] for line in (reviews / "dev.tsv").read_text().splitlines()[1:]]
    assert sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold) == accuracy
    code = tinybert(monkeypatch, *arguments, "--predictions", reviews / "dev.tsv")
    assert_refused(capsys, code, "dev.tsv: exists already; name another file for the predictions")


def test_a_model_whose_classes_are_swapped_is_told_so(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = shutil.copytree(teacher, tmp_path / "swapped")
    config = json.loads((model / "config.json").read_text())
    names = {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (model / "config.json").write_text(json.dumps(config | names))
    for path, is_swapped in ((teacher, False), (model, True)):
        arguments = ["evaluate", "--model", path, "--task", "classification", "--data", reviews, "--max-length", 16]
        assert tinybert(monkeypatch, *arguments) == 0
        warning = f"warning: {path}: its predictions on the dev set are no better than chance (correlation with"
        printed = capsys.readouterr().err
        assert (warning in printed) == is_swapped
        assert ("or check its label order ('good', 'bad')" in printed) == is_swapped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "regression"], "has 2 outputs, but task 'regression' asks for one number"),
        (["--task", "mnli"], "has the labels ('bad', 'good'), but task 'mnli' has ('entailment'"),
        (["--task", "classification", "--json", "."], "a directory; --json takes a file"),
        (["--task", "classification", "--json", "no/such/file.json"], "not in an existing directory"),
        (["--task", "classification", "--predictions", "."], "has no file of its own: name one"),
        (["--task", "sst2", "--predictions", "."], "a directory takes the test split's file: add --split test"),
        (["--task", "classification", "--batch-size", "0"], "batch_size is 0"),
        (["--task", "classification", "--split", "test"], "test.tsv: no such file"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    arguments: list[str],
    message: str,
    teacher: Path,
    reviews: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    code = tinybert(monkeypatch, "evaluate", "--model", teacher, "--data", reviews, *arguments)
    assert_refused(capsys, code, message)


def test_the_model_whose_classes_a_file_does_not_have_is_named(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "dev.tsv", "text\tlabel\na lovely bag\tfine\nstale chips\tbad\n")
    arguments = ["--model", teacher, "--task", "classification", "--dev", tmp_path / "dev.tsv"]
    code = tinybert(monkeypatch, "evaluate", *arguments)
    message = f"{tmp_path / 'dev.tsv'}:2: unknown label 'fine'; {teacher} has 'bad', 'good': correct it in the file"
    assert_refused(capsys, code, message)


def test_predictions_that_cannot_be_written_are_told_in_a_line(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, text: str, encoding: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    arguments = ["evaluate", "--model", teacher, "--data", reviews, "--task", "classification"]
    code = tinybert(monkeypatch, *arguments, "--predictions", tmp_path / "p.tsv")
    assert_refused(capsys, code, "writing failed: No space left on device")


def test_a_device_that_is_full_is_told_in_a_line_that_says_what_saves_memory(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.\nBuffers:"
        )

    monkeypatch.setattr(predictor, "predict_logits", full)
    arguments = ["evaluate", "--model", teacher, "--data", reviews, "--task", "classification"]
    assert tinybert(monkeypatch, *arguments) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("tinybert: error: a device's memory is full: take a smaller --batch-size")
    assert errors[0].endswith("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")


def test_a_test_file_without_labels_gets_predictions_and_nothing_else(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "new.tsv", "text\na lovely bag\nstale chips\n")
    arguments = ["evaluate", "--model", teacher, "--task", "classification", "--test", tmp_path / "new.tsv"]
    assert_refused(capsys, tinybert(monkeypatch, *arguments, "--split", "test"), "only --predictions FILE can be")
    assert tinybert(monkeypatch, *arguments, "--split", "test", "--predictions", tmp_path / "p.tsv") == 0
    assert (tmp_path / "p.tsv").read_text() == "index\tprediction\n0\tgood\n1\tbad\n"
