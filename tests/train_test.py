"""Whole runs on real files: they learn, stop, resume and repeat bit for bit, and refuse what would not work."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tinybert_jax as tb
from tinybert_jax import train


def distillation(teacher: Path, student: Path, reviews: Path, **changes) -> tb.Experiment:
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(student),
        teacher=str(teacher),
        stages=(
            tb.Stage("transformer", epochs=8, learning_rate=3e-3, schedule="constant"),
            tb.Stage("prediction", epochs=8, learning_rate=3e-3),
        ),
        max_length=16,
    )
    return dataclasses.replace(experiment, **changes)


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_finetuning_learns_and_writes_a_whole_run_directory(teacher_result: train.Result) -> None:
    assert teacher_result.scores["accuracy"] > 0.9
    out = teacher_result.directory.parent
    assert {path.name for path in out.iterdir()} == {
        "experiment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "student",
    }
    assert {path.name for path in teacher_result.directory.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    card = (teacher_result.directory / "README.md").read_text()
    assert f"| accuracy | {teacher_result.scores['accuracy']:.4f} |" in card
    config, _ = tb.load_hf(teacher_result.directory)
    assert config.id2label == ("bad", "good")
    assert config.problem_type == "single_label_classification"
    scores = [line["dev/accuracy"] for line in logged(out) if "dev/accuracy" in line]
    assert max(scores) == teacher_result.scores["accuracy"], "the best state is kept"


def test_distillation_learns_from_the_teacher_and_logs_every_term(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    result = tb.run(distillation(teacher, blank_student, reviews), tmp_path / "run")
    assert result.teacher_scores is not None
    assert result.scores["accuracy"] > 0.8
    first = [line for line in logged(tmp_path / "run") if line["stage"] == "1-transformer"]
    assert {"loss", "embedding", "attention/1", "attention/2", "hidden/1", "hidden/2"} <= first[0].keys()
    assert first[-1]["loss"] < 0.7 * first[0]["loss"]
    terms = first[-1]
    names = ("embedding", "attention/1", "attention/2", "hidden/1", "hidden/2")
    assert terms["loss"] == pytest.approx(sum(terms[name] for name in names), rel=1e-5)


def command(teacher: Path, student: Path, reviews: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tinybert_jax.cli", "distill", "--teacher", str(teacher), "--student", str(student)),
        *("--task", "classification", "--data", str(reviews), "--out", str(out), "--max-length", "16"),
        *("--transformer-epochs", "60", "--prediction-epochs", "2", "--checkpoint-every", "7", "--seed", "5", *more),
    ]


def run_until(step: int, number: int, arguments: list[str], out: Path) -> subprocess.Popen:
    """Start the command, and send it a signal once its log holds the step."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").is_file() or not any(line["step"] >= step for line in logged_so_far(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    return process


def logged_so_far(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def unbroken(teacher: Path, blank_student: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that the command gives in a fresh process, when nothing disturbs it."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(command(teacher, blank_student, reviews, out), check=True, capture_output=True)
    return (out / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bits(
    number: int, unbroken: bytes, teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = run_until(20, number, command(teacher, blank_student, reviews, out), out)
    printed, errors = process.communicate(timeout=120)
    assert not (out / "student").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, errors
        assert "continue with the same command and --resume" in printed
    arguments = command(teacher, blank_student, reviews, out, "--resume")
    subprocess.run(arguments, check=True, capture_output=True)
    assert (out / "student" / "model.safetensors").read_bytes() == unbroken
    steps = [line["step"] for line in logged(out) if line["stage"] == "1-transformer"]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    stage = tb.Stage("supervised", epochs=20, learning_rate=1e30, evaluate_every=1)
    experiment = distillation(teacher, blank_student, reviews, stages=(stage,))
    with pytest.raises(train.Diverged, match=r"the checkpoints before it are sound. Lower the learning rate"):
        tb.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "student").exists()


def test_resuming_another_experiment_is_refused_by_the_fields_name(
    teacher_result: train.Result, pretrained: Path, reviews: Path, tmp_path: Path
) -> None:
    out = teacher_result.directory.parent
    described = json.loads((out / "experiment.json").read_text())
    stages = (tb.Stage("supervised", epochs=12, learning_rate=1e-3),)
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(pretrained),
        stages=stages,
        max_length=16,
    )
    assert described["experiment"]["stages"][0]["learning_rate"] == 3e-3
    with pytest.raises(tb.InputError, match=r"experiment\.stages\.0\.learning_rate was 0\.003 and is 0\.001"):
        tb.run(experiment, out, resume=True)


def test_a_teacher_at_chance_is_refused_before_the_run_begins(
    pretrained: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    import jax

    config, params = tb.load_hf(pretrained)
    config = dataclasses.replace(config, id2label=("bad", "good"))
    random = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    random["bert"] |= params["bert"]
    tb.save_hf(tmp_path / "teacher", config, random, tb.load_tokenizer(pretrained, config))
    with pytest.raises(tb.InputError, match="no better than chance"):
        tb.run(distillation(tmp_path / "teacher", blank_student, reviews), tmp_path / "run")
    assert not (tmp_path / "run").exists()
