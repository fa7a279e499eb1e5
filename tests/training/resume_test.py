"""A run that is stopped ends in order and resumes to the same bits, and no other run takes its place."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from conftest import SHORT, distillation, logged, run_here

import tinybert_jax as tb
from tinybert_jax.training.run import Result


def command(teacher: Path, student: Path, reviews: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tinybert_jax.cli", "distill", "--teacher", str(teacher), "--student", str(student)),
        *("--task", "classification", "--data", str(reviews), "--out", str(out), "--max-length", "16"),
        *("--checkpoint-every", "7", *SHORT, *more),
    ]


def run_until(stage: str, step: int, number: int, arguments: list[str], out: Path) -> subprocess.Popen:
    """Start the command, and send it a signal once its log holds the step of the stage."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not any(line["stage"] == stage and line["step"] >= step for line in logged_so_far(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    return process


@pytest.mark.long
def test_a_second_signal_ends_the_program_at_once(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    """Python's own end, which XLA's threads may not survive, is left out: what is registered for it is not called."""
    out = tmp_path / "run"
    program = (
        "import atexit; from tinybert_jax.cli.entry import main; atexit.register(print, 'an orderly end'); main()"
    )
    arguments = ["finetune", "--model", str(teacher), "--task", "classification", "--data", str(reviews)]
    arguments += ["--max-length", "16", "--epochs", "500", "--out", str(out)]
    process = run_until("1-supervised", 10, signal.SIGTERM, [sys.executable, "-c", program, *arguments], out)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode in (130, 143), errors  # of two that come together, Python may take either for the second
    assert errors.endswith("tinybert: interrupted; the same command with --resume continues\n")
    assert "an orderly end" not in printed


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="how a terminal closes is the system's")
def test_a_run_whose_terminal_closes_is_saved(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    """It gets SIGHUP, twice as from a shell, and can print no more."""
    out = tmp_path / "run"
    arguments = ["finetune", "--model", str(teacher), "--task", "classification", "--data", str(reviews)]
    arguments += ["--max-length", "16", "--epochs", "500", "--out", str(out), "--evaluate-every", "3000"]
    terminal, slave = pty.openpty()
    command = [sys.executable, "-m", "tinybert_jax.cli", *arguments]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 240
    while not any(line["step"] >= 20 for line in logged_so_far(out)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.02)
    os.close(slave)
    os.close(terminal)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert [int(step.name) > 20 for step in (out / "checkpoints" / "1-supervised").iterdir()] == [True]


def test_nohup_is_left_to_ignore_a_terminal_that_closes() -> None:
    program = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from tinybert_jax.devices import processes, sharding
with processes.stop_requests(sharding.make_mesh()) as stop:
    for number in (signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
        print(stop.agreed(last=True))
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["0", str(int(signal.SIGTERM))]


def test_a_signal_before_the_first_step_ends_the_program_in_order(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    """SIGTERM's own action would leave the others waiting and temporary files behind."""
    program = """
import os, signal, tempfile
from tinybert_jax.cli.entry import main
from tinybert_jax.training import run
def load(experiments):
    with tempfile.TemporaryDirectory(dir="."):
        os.kill(os.getpid(), signal.SIGTERM)
run.load_population = load
main()
"""
    arguments = [
        "finetune",
        "--model",
        str(teacher),
        "--task",
        "classification",
        "--data",
        str(reviews),
        "--out",
        "run",
    ]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        128 + signal.SIGTERM,
        "tinybert: interrupted",  # there is no directory of --out
    )
    assert not list(tmp_path.iterdir())


def logged_so_far(out: Path) -> list[dict]:
    if not (out / "metrics.jsonl").is_file():
        return []
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize(
    ("number", "stage", "step"),
    [
        pytest.param(signal.SIGINT, "1-transformer", 20, marks=pytest.mark.long),
        (signal.SIGTERM, "2-prediction", 10),
        pytest.param(signal.SIGKILL, "2-prediction", 20, marks=pytest.mark.long),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    number: int,
    stage: str,
    step: int,
    unbroken: bytes,
    teacher: Path,
    blank_student: Path,
    reviews: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    process = run_until(stage, step, number, command(teacher, blank_student, reviews, out), out)
    printed, errors = process.communicate(timeout=120)
    assert not (out / "student").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, errors
        assert "continue with the same command and --resume" in printed
    run_here(command(teacher, blank_student, reviews, out, "--resume"))
    assert (out / "student" / "model.safetensors").read_bytes() == unbroken
    steps = [line["step"] for line in logged(out) if line["stage"] == "1-transformer"]
    assert steps == sorted(set(steps)), "no step is logged twice"


@pytest.mark.long
def test_resuming_with_another_teacher_in_the_same_place_is_refused_and_without_its_cache_is_warned_about(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    stages = (tb.Stage("prediction", max_steps=2),)
    tb.run(distillation(moved, blank_student, reviews, stages=stages), tmp_path / "run")
    uncached = distillation(moved, blank_student, reviews, stages=stages, teacher_cache_gb=0.0)
    tb.run(uncached, tmp_path / "run", resume=True)
    assert "warning: experiment.teacher_cache_gb was 20.0 when the run started and is 0.0" in capsys.readouterr().err
    sparser = distillation(moved, blank_student, reviews, stages=stages, checkpoint_every=7)
    tb.run(sparser, tmp_path / "run", resume=True)
    assert "checkpoint_every" not in capsys.readouterr().err, "the result does not depend on it"
    config, params = tb.load_hf(moved)
    tb.save_hf(moved, config, jax.tree.map(lambda x: x + 1e-3, params))
    with pytest.raises(tb.InputError, match=rf"cannot resume: the teacher {moved} changed since the run"):
        tb.run(distillation(moved, blank_student, reviews, stages=stages), tmp_path / "run", resume=True)


def test_resuming_another_experiment_is_refused_by_the_fields_name(
    teacher_result: Result, pretrained: Path, reviews: Path, tmp_path: Path
) -> None:
    out = teacher_result.directory.parent
    described = json.loads((out / "experiment.json").read_text())
    stages = (tb.Stage("supervised", epochs=12, learning_rate=1e-3, evaluate_every=24),)
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


@pytest.mark.long
def test_a_run_resumes_where_its_rows_and_its_model_have_moved_and_names_what_changed(
    pretrained: Path, reviews: Path, tmp_path: Path
) -> None:
    def experiment(model: Path, **source: str) -> tb.Experiment:
        stages = (tb.Stage("supervised", max_steps=1),)
        return tb.Experiment("classification", tb.DataSource(**source), str(model), stages, max_length=16)

    out = tmp_path / "run"
    before = tb.run(experiment(pretrained, data=str(reviews)), out)
    data, model = Path(shutil.copytree(reviews, tmp_path / "data")), shutil.copytree(pretrained, tmp_path / "model")
    train, dev = data / "train.tsv", data / "dev.tsv"
    moved = experiment(model, train=str(train), dev=str(dev))
    assert tb.run(moved, out, resume=True).scores == before.scores
    dev.write_text(dev.read_text() + "a fine bag\tgood\n")
    with pytest.raises(tb.InputError, match=rf"cannot resume: the rows of {dev} changed since the run started: give "):
        tb.run(moved, out, resume=True)
    train.write_text(train.read_text() + "a fine bag\tgood\n")
    with pytest.raises(tb.InputError, match=rf"the rows of {dev}, {train}, or the tokenizer of {model}, changed"):
        tb.run(experiment(model, data=str(data)), out, resume=True)
    config, params = tb.load_hf(model)
    tb.save_hf(model, config, jax.tree.map(lambda x: x + 1e-3, params))
    with pytest.raises(tb.InputError, match=rf"cannot resume: the model {model} changed since the run started"):
        tb.run(moved, out, resume=True)
