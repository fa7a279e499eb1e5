"""Bad input to the command ends it with one line and exit code 2, before anything is compiled or written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_model, write_reviews
from in_process import assert_refused, distill_arguments, tinybert, write

import tinybert_jax as tb
from tinybert_jax.cli import entry
from tinybert_jax.cli.execute import write_page
from tinybert_jax.devices import processes
from tinybert_jax.errors import InputError
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.training import chain, loop, run
from tinybert_jax.training.loop import Stopped


def set_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BAD_DATA = {
    "short row": (lambda d: write(d / "train.tsv", "text\tlabel\na bag\tgood\nno label\n"), "train.tsv:3: "),
    "unknown label": (
        lambda d: write(d / "dev.tsv", "text\tlabel\na bag\tugly\n"),
        "/data/train.tsv has 'bad', 'good'",
    ),
    "empty file": (lambda d: write(d / "train.tsv", ""), "train.tsv"),
    "not UTF-8": (lambda d: write(d / "train.tsv", b"text\tlabel\ncaf\xe9\tgood\n"), "train.tsv:2: "),
    "missing column": (lambda d: write(d / "train.tsv", "sentence\tlabel\na bag\tgood\n"), "train.tsv:1: "),
    "missing directory": (lambda d: shutil.rmtree(d), "data"),
}
BAD_MODEL = {
    "truncated weights": (
        lambda t, s: write(t / "model.safetensors", (t / "model.safetensors").read_bytes()[:-9]),
        "model.safetensors: damaged or truncated",
    ),
    "head count": (
        lambda t, s: set_config(t, num_attention_heads=5),
        "num_attention_heads 5 does not divide hidden_size 32",
    ),
    "other vocabulary": (
        lambda t, s: (
            shutil.rmtree(s),
            write_model(s, words=("tea", "rice"), hidden_size=16, num_hidden_layers=2, intermediate_size=32),
        ),
        "different vocabularies",
    ),
    "no classifier": (lambda t, s: (shutil.rmtree(t), shutil.copytree(s, t)), "holds no sequence classifier"),
    "other labels": (
        lambda t, s: set_config(t, id2label={"0": "negative", "1": "positive"}),
        "/teacher has 'negative', 'positive'",
    ),
}


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("bad input must be found before the first compilation")

    for module, name in ((chain, "make_predict_step"), (run, "initial_params"), (loop, "make_train_step")):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_with_file_and_line(
    case: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = write_reviews(tmp_path / "data", 8, 8)
    damage, message = BAD_DATA[case]
    damage(data)
    arguments = ["finetune", "--model", pretrained, "--task", "classification", "--data", data]
    code = tinybert(monkeypatch, *arguments, "--out", tmp_path / "run", "--max-length", 16)
    assert_refused(capsys, code, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("case", BAD_MODEL)
def test_bad_models_are_refused(
    case: str,
    teacher: Path,
    blank_student: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    own_teacher = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    own_student = Path(shutil.copytree(blank_student, tmp_path / "student"))
    damage, message = BAD_MODEL[case]
    damage(own_teacher, own_student)
    code = tinybert(monkeypatch, *distill_arguments(own_teacher, own_student, reviews, tmp_path / "run"))
    assert_refused(capsys, code, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_an_output_directory_that_is_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "run", "kept")
    arguments = distill_arguments(tmp_path / "teacher", tmp_path / "student", tmp_path / "data", tmp_path / "run")
    assert_refused(capsys, tinybert(monkeypatch, *arguments), "is a file; --out takes a directory")


@pytest.mark.usefixtures("nothing_compiles")
def test_an_existing_output_directory_is_refused_and_left_alone(
    teacher: Path,
    blank_student: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "precious.txt", "kept")
    code = tinybert(monkeypatch, *distill_arguments(teacher, blank_student, reviews, tmp_path / "run"))
    assert_refused(capsys, code, "exists already; choose another --out, or continue that run with --resume")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sst3", "--data", "d"], "unknown task 'sst3'; did you mean sst2?; known are cola"),
        (["--task", "sst2"], "--data DIR, or --train FILE --dev FILE, or --tfds NAME"),
        (["--task", "sst2", "--data", "d", "--resume"], "holds no run to resume"),
        (["--task", "sst2", "--data", "d", "--model", "tinybert-4l-312d"], "takes its vocabulary from a teacher"),
        (["--task", "sst2", "--data", "d", "--epochs", "0"], "epochs is 0"),
        (["--task", "sst2", "--data", "d", "--max-length", "0"], "max_length is 0"),
        (["--task", "sst2", "--data", "d", "--max-length", "64"], "has 32 positions, fewer than max_length 64"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str],
    message: str,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = [] if "--model" in arguments else ["--model", str(pretrained)]
    assert_refused(capsys, tinybert(monkeypatch, "finetune", *model, *arguments, "--out", tmp_path / "run"), message)


@pytest.mark.parametrize(
    "command",
    [
        ["augment", "--out", "o", "--tsv"],
        ["evaluate", "--predictions"],
        ["evaluate", "--json"],
    ],
)
def test_a_file_in_a_missing_directory_is_refused_alike_by_all_commands(
    command: list[str], reviews: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rest = ["no/such/file", "--model", "m", "--task", "classification", "--data", reviews]
    code = tinybert(monkeypatch, *command, *rest)
    assert_refused(capsys, code, "no/such/file: not in an existing directory: make it first")


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert tinybert(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{tb.__version__}\n"


@pytest.mark.parametrize("command", ["finetune", "distill", "augment", "evaluate"])
def test_the_help_of_a_command_lists_the_tasks_that_it_takes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # wider, there are boxes side by side
    assert tinybert(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out.replace("│", " ").partition("--task TASK")[2].partition("(required)")[0]
    listed = set(text.replace(",", " ").split()) & set(TASKS)
    assert listed == {task.name for task in TASKS.values() if command != "augment" or task.kind.has_variants}


def test_the_end_of_the_program_finds_the_processes_that_it_joined() -> None:
    assert entry._processes() is processes


def test_an_options_help_breaks_at_the_terminals_width_alone() -> None:
    program = [sys.executable, "-m", "tinybert_jax.cli", "distill", "--help"]  # as the shape checks' wrappers hide it
    printed = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"COLUMNS": "1000"}, check=True)
    assert "rises linearly over the first 10 % of the steps" in printed.stdout


def test_run_takes_an_experiment_file(
    pretrained: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    file = tmp_path / "small.py"
    file.write_text(f"""
import tinybert_jax as tb
experiment = tb.Experiment(
    task="classification", source=tb.DataSource(data={str(reviews)!r}), model={str(pretrained)!r},
    stages=(tb.Stage("supervised", max_steps=2),), max_length=16,
)
""")
    assert tinybert(monkeypatch, "run", file, "--out", tmp_path / "run", "--seed", 3) == 0
    printed = capsys.readouterr()
    assert f"written to {tmp_path / 'run' / 'student'}" in printed.out
    assert "0/2" in printed.err
    assert "compiling" in printed.err, "why the bar stands still at first"
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]["seed"] == 3


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("start", ["copy", "spectral"])
def test_a_start_that_the_teacher_cannot_give_is_refused(
    start: str, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = distill_arguments(teacher, Path("tinybert-4l-312d"), reviews, tmp_path / "run")
    assert_refused(capsys, tinybert(monkeypatch, *arguments, "--start", start), f"start '{start}' needs ")


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("option", ["--transformer-learning-rate", "--prediction-learning-rate"])
def test_a_learning_rate_of_0_is_refused_and_not_taken_for_the_default(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", tmp_path / "student", tmp_path / "data", tmp_path / "run")
    assert_refused(
        capsys,
        tinybert(monkeypatch, *arguments, option, "0"),
        "learning_rate is 0.0; it must be finite and greater than 0",
    )


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "data"], "--mesh data: give sizes of data, fsdp, model, member, for example data=4,model=2"),
        (["--mesh", "data=2,rows=2"], "--mesh data=2,rows=2: give sizes of data, fsdp, model, member"),
        (["--mesh", "data=0"], "--mesh data=0: give sizes of data, fsdp, model, member"),
        (["--mesh", "data=64"], "--mesh data=64 needs 64 devices, and there are "),
        (["--population", "0"], "--population 0: a population has at least 1 member"),
        (["--accumulation-steps", "3"], "accumulation_steps 3 does not divide the batch size 32"),
        (["--process-id", "1"], "--num-processes and --process-id go with --coordinator HOST:PORT"),
        (["--coordinator", "host:1234"], "--coordinator HOST:PORT needs --num-processes N and a --process-id from 0"),
        (
            ["--coordinator", "host:1234", "--num-processes", "2", "--process-id", "2"],
            "--coordinator HOST:PORT needs --num-processes N and a --process-id from 0 to N - 1",
        ),
        (
            ["--coordinator", "host", "--num-processes", "2", "--process-id", "1"],
            "--coordinator 'host': give HOST:PORT, the address of process 0, or auto",
        ),
    ],
)
def test_numbers_and_devices_that_do_not_fit_are_refused(
    options: list[str],
    message: str,
    teacher: Path,
    blank_student: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = distill_arguments(teacher, blank_student, reviews, tmp_path / "run")
    assert_refused(capsys, tinybert(monkeypatch, *arguments, *options), message)
    assert not (tmp_path / "run").exists()


def test_deterministic_sets_the_flag_of_gpus_before_the_devices_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")

    def stopped(*arguments: object) -> None:
        raise Stopped(os.environ["XLA_FLAGS"], signal.SIGTERM)

    monkeypatch.setattr(run, "run_population", stopped)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        arguments = distill_arguments(tmp_path / "t", tmp_path / "s", tmp_path / "d", tmp_path / "run")
        assert tinybert(monkeypatch, *arguments, "--deterministic") == 128 + signal.SIGTERM
    flags = "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    assert flags in printed.getvalue().splitlines()


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("place", ["file/run", "locked/run"])
def test_an_output_directory_that_cannot_be_made_is_refused_first(
    place: str,
    pretrained: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    write(tmp_path / "file", "")
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setattr("os.access", lambda path, mode: "locked" not in str(path))  # root may write anywhere
    arguments = ["finetune", "--model", pretrained, "--task", "classification", "--data", reviews]
    code = tinybert(monkeypatch, *arguments, "--out", tmp_path / place, "--max-length", 16)
    assert_refused(capsys, code, "cannot be written: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("x = 1", "defines no `experiment ="),
        ("x = (\n", "e.py:1: '(' was never closed"),
        ("import nowhere", "ModuleNotFoundError"),
    ],
    ids=["missing", "empty", "syntax", "import"],
)
def test_run_refuses_a_file_without_an_experiment(
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    if content is not None:
        (tmp_path / "e.py").write_text(content)
    assert_refused(capsys, tinybert(monkeypatch, "run", tmp_path / "e.py"), message)


@pytest.mark.long
def test_a_population_prints_its_members_their_mean_and_where_they_are(
    teacher: Path,
    blank_student: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = distill_arguments(teacher, blank_student, reviews, tmp_path / "run")
    code = tinybert(monkeypatch, *arguments, "--stage", "prediction", "--prediction-steps", 2, "--population", 2)
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[-4].split() == "dev set mean sd member 0 member 1 teacher".split()
    name, mean, _, *members, _ = lines[-3].split()
    assert name == "accuracy"
    assert abs(float(mean) - sum(map(float, members)) / 2) < 1e-4
    assert lines[-2:] == [f"written to {tmp_path}/run/member{i}/student" for i in (0, 1)]
    for i in (0, 1):
        assert f'"seed": {i}' in (tmp_path / "run" / f"member{i}" / "student" / "README.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_program_starts_anew_once_with_huge_pages_and_its_own_arguments() -> None:
    program = "import os, sys; from tinybert_jax.cli.entry import prepare_process; print('start'); sys.stdout.flush();"
    program += "prepare_process(); print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:])"
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
    printed = subprocess.run(
        [sys.executable, "-c", program, "a b", "--c"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert printed.splitlines() == ["start", "start", "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1 a b --c"]


def test_a_page_that_cannot_be_written_leaves_the_model_and_says_why(
    capsys: pytest.CaptureFixture,
) -> None:
    def refused() -> list[Path]:
        raise InputError("the rows are gone")

    write_page(refused)
    assert capsys.readouterr().err == "note: no page is written: the rows are gone\n"
