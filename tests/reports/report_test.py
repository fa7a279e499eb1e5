"""`tinybert report`: the page of every kind of task says what the models score, and stands without network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    NER_WORDS,
    QA_WORDS,
    distillation,
    logged,
    write_conll,
    write_model,
    write_reviews,
    write_scored_reviews,
    write_squad,
)
from in_process import assert_refused, tinybert
from pages import check_page

import tinybert_jax as tb
from tinybert_jax.reports import models, report
from tinybert_jax.settings.compression import Prune
from tinybert_jax.training.run import Result

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}


def supervised(steps: int = 2) -> tb.Stage:
    return tb.Stage("supervised", max_steps=steps, learning_rate=1e-3)


@pytest.fixture(scope="module")
def rows(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reviews, with a dev row whose text is markup."""
    data = Path(shutil.copytree(reviews, tmp_path_factory.mktemp("rows") / "data"))
    with (data / "dev.tsv").open("a") as dev:
        dev.write("<script>alert(1)</script> awful\tgood\n")
    return data


@pytest.fixture(scope="module")
def pruned(teacher: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Half of the teacher, trained on behind it."""
    stages = (tb.Stage("transformer", max_steps=20), tb.Stage("prediction", max_steps=2, learning_rate=1e-6))
    experiment = distillation(teacher, teacher, rows, stages=stages, compression=(Prune(0.5, uniform=True),))
    return tb.run(experiment, tmp_path_factory.mktemp("pruned") / "run")


@pytest.fixture(scope="module")
def alone(teacher: Path, blank_student: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A small model on the labels alone."""
    experiment = distillation(teacher, blank_student, rows, stages=(supervised(20),))
    return tb.run(experiment, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.long
def test_the_page_says_what_the_models_score_lose_and_cost(
    teacher: Path,
    teacher_result: Result,
    pruned: Result,
    alone: Result,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(models, "SECONDS", 0.0)
    runs = [pruned.directory.parent, alone.directory.parent]
    assert tinybert(monkeypatch, "report", *runs, "--out", tmp_path / "out") == 0
    assert f"written to {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    source = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = check_page(source)
    assert page.texts["h2"] == [
        *("Quality, size and speed", "Classes", "Calibration", "Rows lost and won", "Layers", "Training"),
        *("Compression", "Settings, seeds and versions"),
    ]
    lines = (tmp_path / "out" / "report.md").read_text("utf-8").splitlines()
    header, _, *table = lines[lines.index("**Scores on the dev set, size and speed**") + 2 :][:5]
    assert header.split(" | ")[1:] == [
        *("accuracy", "MB on disk", "ms a text, alone", "ms a text, 32 together"),
        *("parameters", "multiply-adds", "MB as int8 |"),
    ]
    cells = [row.strip("| ").split(" | ") for row in table]
    scores = [pruned.teacher_scores, pruned.scores, alone.scores]
    assert [row[0].rpartition(" (")[2] for row in cells] == ["teacher)", "student)", "labels alone)"]
    assert [row[1] for row in cells] == [f"{(score or {})['accuracy']:.4f}" for score in scores]
    assert all(float(row[3]) > 0 for row in cells)

    texts, labels = zip(*[line.split("\t") for line in (rows / "dev.tsv").read_text().splitlines()[1:]], strict=True)
    right = [
        np.array([x.label for x in tb.load_predictor(path)(texts)]) == np.array(labels)
        for path in (teacher, pruned.directory, alone.directory)
    ]
    for student in (1, 2):
        lost, won = int((right[0] & ~right[student]).sum()), int((right[student] & ~right[0]).sum())
        name, taught = ("/".join(path.parts[-2:]) for path in (runs[student - 1], teacher.parent))
        for title in (
            f"Lost by {name}: {lost} of {len(texts)} dev rows, which {taught} has right",
            f"Won by {name}: {won} of {len(texts)} dev rows, which {taught} has wrong",
        ):
            assert title in page.texts["summary"] or f"{title}." in page.texts["p"]
    assert any("the methods" not in line and line.startswith("| prune |") for line in lines)
    flops = [sum(line["flops"] for line in logged(run, "speed.jsonl")) for run in runs]
    assert all(any(f" and {count:.2g} FLOPs" in title for title in page.texts["summary"]) for count in flops)


@pytest.mark.long
def test_what_the_teacher_alone_learnt_is_shown_in_its_layers(pruned: Result) -> None:
    runs, others = report.read_all([str(pruned.directory.parent)])
    built = report.make_report(runs, others, measure=False)
    [layers] = [section for section in built.sections if section.title == "Layers"]
    _, fold = layers.blocks
    _, hidden, attention = fold.blocks
    assert (len(hidden.rows), len(attention.rows)) == (5, 4)
    diagonal = [float(row[1 + i].rstrip("*")) for i, row in enumerate(attention.rows)]
    assert min(diagonal) > 0.8
    assert all(row[1 + i].endswith("*") for i, row in enumerate(hidden.rows))


def regression(folder: Path) -> tuple[Path, tuple[str, ...]]:
    (folder / "data").mkdir()
    write_scored_reviews(folder / "data", write_reviews(folder / "plain"))
    return folder / "data", ()


def label_sets(folder: Path) -> tuple[Path, tuple[str, ...]]:
    plain = write_reviews(folder / "plain")
    (folder / "data").mkdir()
    for name in ("train", "dev"):
        lines = (plain / f"{name}.tsv").read_text().splitlines()[1:]
        both = [[*line.split("\t"), "the" if " the " in line else "other"] for line in lines]
        written = [f"{text}\t{label};{more}" for text, label, more in both]
        (folder / "data" / f"{name}.tsv").write_text("\n".join(["text\tlabels", *written]) + "\n")
    return folder / "data", ()


KINDS: dict[str, tuple[Callable[[Path], tuple[Path, tuple[str, ...]]], set[str]]] = {
    "regression": (regression, set()),
    "multi_label": (label_sets, {"Classes", "Calibration"}),
    "ner": (lambda folder: (write_conll(folder / "data"), NER_WORDS), {"Classes", "Calibration"}),
    "squad": (lambda folder: (write_squad(folder / "data"), QA_WORDS), {"Calibration"}),
}


@pytest.mark.long
@pytest.mark.parametrize("task", KINDS)
def test_every_kind_of_task_has_a_page_with_the_sections_that_make_sense(task: str, tmp_path: Path) -> None:
    make, more = KINDS[task]
    data, words = make(tmp_path)
    delimiter = ";" if task == "multi_label" else None
    source = tb.DataSource(data=str(data), label_delimiter=delimiter)
    model = str(write_model(tmp_path / "model", words=words, **SMALL))
    common: dict[str, Any] = {"task": task, "source": source, "max_length": 32}
    taught = tb.run(tb.Experiment(model=model, stages=(supervised(),), **common), tmp_path / "taught")
    stage = tb.Stage("prediction", max_steps=2, learning_rate=1e-3)
    teacher = str(taught.directory)
    student = tb.run(tb.Experiment(model=model, teacher=teacher, stages=(stage,), **common), tmp_path / "student")
    files = report.write_report([str(tmp_path / "student"), str(tmp_path / "taught")], measure=False)
    assert files == [tmp_path / "student" / "report.html", tmp_path / "student" / "report.md"]
    page = check_page(files[0].read_text("utf-8"))
    always = {"Quality, size and speed", "Rows lost and won", "Layers", "Training", "Settings, seeds and versions"}
    assert set(page.texts["h2"]) == always | more
    text = files[1].read_text("utf-8")
    for result, role in ((taught, "teacher"), (student, "student")):
        scores = " | ".join(f"{value:.4f}" for value in result.scores.values())
        rows_of_role = [line for line in text.splitlines() if f"{role}) | " in line or f" {role} | " in line]
        assert any(f" | {scores} | " in line for line in rows_of_role)


@pytest.mark.long
def test_a_file_of_predictions_is_a_teacher_without_layers(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    lines = []
    for name in ("train", "dev"):
        for line in (reviews / f"{name}.tsv").read_text().splitlines()[1:]:
            text, label = line.split("\t")
            lines.append(json.dumps({"text": text, "label": label, "confidence": 0.9}))
    path = tmp_path / "said.jsonl"
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    stage = tb.Stage("prediction", max_steps=2)
    tb.run(distillation(str(path), blank_student, reviews, stages=(stage,)), tmp_path / "run")
    report.write_report([str(tmp_path / "run")], measure=False)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "(teacher) | 1.0000 | - | - | - | - |" in text
    assert "is a file of predictions, which has no layers" in text.replace("\\", "")
    assert "dev rows, which said.jsonl has right" in text.replace("\\", "")


@pytest.mark.long
def test_an_unfinished_run_shows_its_training_alone_and_broken_lines_are_passed_over(
    alone: Result, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(alone.directory.parent, tmp_path / "student"))
    shutil.rmtree(run / "student")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "1-sup')
    report.write_report([str(run)], measure=False)
    text = (run / "report.md").read_text()
    assert "student is not finished: it has no model yet" in text
    assert "#### Stage 1: supervised" in text


@pytest.mark.parametrize(
    ("described", "line"),
    [
        ("moved/teacher", "teacher is left out: "),
        ({"name": "function", "fingerprint": "v1", "labels": []}, "was a function, which no run keeps"),
        pytest.param(
            {"name": "ensemble", "members": ["{teacher}", "{teacher}"]},
            "was the mean of several",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_teacher_that_cannot_be_shown_is_told_in_a_line(
    described: Any, line: str, teacher_result: Result, alone: Result, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(alone.directory.parent, tmp_path / "run"))
    record = json.loads((run / "experiment.json").read_text())
    named = json.dumps(described).replace("{teacher}", str(teacher_result.directory))
    record["experiment"]["teacher"] = json.loads(named)
    (run / "experiment.json").write_text(json.dumps(record))
    report.write_report([str(run)], measure=False)
    page = check_page((run / "report.html").read_text("utf-8"))
    assert any(line in item for item in page.texts["li"])
    assert any(name.endswith("run (labels alone)") for name in page.texts["th"])
    assert f"{alone.scores['accuracy']:.4f}" in page.texts["td"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run is named"),
        (["nowhere"], "nowhere: holds neither a run (experiment.json) nor a model (config.json)"),
        (["{teacher}"], "no directory of a run among them"),
        (["{run}", "--out", "{file}"], "is a file; --out takes a directory"),
        (["{broken}"], "experiment.json: is no record of a run"),
    ],
)
def test_what_is_no_run_is_told_in_a_line(
    arguments: list[str],
    message: str,
    teacher: Path,
    alone: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.json").write_text("[1]")
    names = {
        "teacher": teacher,
        "run": alone.directory.parent,
        "file": tmp_path / "file",
        "broken": tmp_path / "broken",
    }
    code = tinybert(monkeypatch, "report", *(argument.format(**names) for argument in arguments))
    assert_refused(capsys, code, message)


def test_runs_of_two_tasks_have_no_page(
    alone: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    other = Path(shutil.copytree(alone.directory.parent, tmp_path / "other"))
    record = json.loads((other / "experiment.json").read_text())
    record["experiment"]["task"] = "regression"
    (other / "experiment.json").write_text(json.dumps(record))
    code = tinybert(monkeypatch, "report", alone.directory.parent, other)
    assert_refused(capsys, code, "the runs are of the tasks classification and regression")


@pytest.mark.long
def test_a_page_is_titled_by_the_population_and_not_by_the_text_of_a_name(alone: Result, tmp_path: Path) -> None:
    one, other = ("a member of none", "eight")
    single, many = (Path(shutil.copytree(alone.directory.parent, tmp_path / name)) for name in (one, other))
    record = json.loads((many / "experiment.json").read_text())
    record["experiment"] = [record["experiment"]] * 2
    (many / "experiment.json").write_text(json.dumps(record))
    for number in range(2):
        shutil.copytree(single / "student", many / f"member{number}" / "student")
    runs, others = report.read_all([str(single), str(many)])
    assert [Path(run.population).name for run in runs] == ["", "eight", "eight"]
    built = report.make_report(runs, others, measure=False)
    assert built.title == "Report of a member of none, eight (classification)"
