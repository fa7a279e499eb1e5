"""The command: bad input is one line and exit code 2, before anything is compiled or written."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import write_model, write_reviews

import tinybert_jax as tb
from tinybert_jax.cli import main
from tinybert_jax.devices import processes
from tinybert_jax.inference import predictor
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.training import loop, run
from tinybert_jax.training.loop import Stopped
from tinybert_jax.training.run import Result


def tinybert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `tinybert ARGUMENTS`, run in this process."""
    monkeypatch.setattr("sys.argv", ["tinybert", *map(str, arguments)])
    try:
        main.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def set_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BAD_DATA = {
    "short row": (lambda d: write(d / "train.tsv", "text\tlabel\na bag\tgood\nno label\n"), "train.tsv:3: "),
    "unknown label": (lambda d: write(d / "dev.tsv", "text\tlabel\na bag\tugly\n"), "dev.tsv:2: "),
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
        "train.tsv:",
    ),
}


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("bad input must be found before the first compilation")

    for module, name in ((run, "make_predict_step"), (run, "initial_params"), (loop, "make_train_step")):
        monkeypatch.setattr(module, name, refuse)


def distill_arguments(teacher: Path, student: Path, data: Path, out: Path) -> list[object]:
    return [
        *("distill", "--teacher", teacher, "--student", student, "--task", "classification"),
        *("--data", data, "--max-length", "16", "--out", out),
    ]


def assert_refused(capsys: pytest.CaptureFixture, code: int, message: str) -> None:
    printed = capsys.readouterr()
    assert code == 2, printed
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("tinybert: error: ")
    assert message in lines[0]


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
        (["--task", "sst3", "--data", "d"], "unknown task 'sst3'; known are cola"),
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


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert tinybert(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{tb.__version__}\n"


@pytest.mark.parametrize("command", ["finetune", "distill", "augment", "evaluate"])
def test_the_help_of_a_command_lists_the_tasks_that_it_takes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert tinybert(monkeypatch, command, "--help") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "--task TASK" in line]
    listed = set(line.replace(",", " ").split()) & set(TASKS)
    assert listed == {task.name for task in TASKS.values() if command != "augment" or task.kind.has_columns}


def test_the_end_of_the_program_finds_the_processes_that_it_joined() -> None:
    assert main._processes() is processes


def test_an_options_help_breaks_at_the_terminals_width_alone() -> None:
    program = [sys.executable, "-m", "tinybert_jax.cli", "distill", "--help"]  # as the shape checks' wrappers hide it
    printed = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"COLUMNS": "1000"}, check=True)
    assert '"supervised", the baseline that learns from the labels alone' in printed.stdout


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


@pytest.mark.parametrize(
    ("stage", "option", "named"),
    [
        ("transformer", "--prediction-steps", "--prediction-..."),
        ("prediction", "--transformer-epochs", "--transformer-..."),
        ("supervised", "--transformer-steps", "--transformer-..."),
        ("transformer", "--temperature", "--temperature"),
        ("supervised", "--temperature", "--temperature"),
        ("transformer", "--evaluate-every", "--evaluate-every"),
    ],
)
def test_options_that_no_stage_reads_are_refused(
    stage: str, option: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", tmp_path / "student", tmp_path / "data", tmp_path / "run")
    code = tinybert(monkeypatch, *arguments, "--stage", stage, option, 5)
    assert_refused(capsys, code, f"--stage {stage} does not read {named}: leave it out")


@pytest.mark.parametrize(
    ("stage", "more", "refused"),
    [
        ("prediction", [], False),
        ("prediction", ["--preset", "paper"], True),
        ("prediction", ["--start", "random"], True),
        ("prediction", ["--student", "some/directory"], True),
        ("supervised", [], True),
        ("supervised", ["--start", "copy"], False),
    ],
)
def test_a_layer_map_is_read_where_the_student_may_start_from_layers(
    stage: str, more: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", Path("2x16"), tmp_path / "data", tmp_path / "run")
    code = tinybert(monkeypatch, *arguments, "--stage", stage, "--layer-map", "top", *more)
    unread = "layer_map is 'top', but no stage and no start reads it: leave it out"
    assert_refused(capsys, code, unread if refused else "teacher: no such directory")


@pytest.mark.parametrize(
    ("stage", "option", "value", "message"),
    [
        (
            "transformer",
            "--masking-probability",
            0.1,
            "transformer does not read --masking-probability: leave it",
        ),
        ("masked_lm", "--layer-map", "top", "layer_map is 'top', but no stage and no start reads it: leave it out"),
    ],
)
def test_options_that_no_stage_on_text_reads_are_refused(
    stage: str, option: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = ["pretrain", "--corpus", tmp_path / "text", "--student", tmp_path / "student", "--out", tmp_path / "o"]
    code = tinybert(monkeypatch, *arguments, "--stage", stage, option, value)
    assert_refused(capsys, code, message)


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
        raise Stopped(os.environ["XLA_FLAGS"])

    monkeypatch.setattr(run, "run_population", stopped)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        arguments = distill_arguments(tmp_path / "t", tmp_path / "s", tmp_path / "d", tmp_path / "run")
        assert tinybert(monkeypatch, *arguments, "--deterministic") == 0
    assert printed.getvalue().startswith("--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true\n")


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
    program = "import os, sys; from tinybert_jax.cli.main import prepare_process; print('start'); sys.stdout.flush();"
    program += "prepare_process(); print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:])"
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
    printed = subprocess.run(
        [sys.executable, "-c", program, "a b", "--c"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert printed.splitlines() == ["start", "start", "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1 a b --c"]
