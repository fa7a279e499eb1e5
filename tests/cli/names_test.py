"""A command or an option that does not exist is refused in one line with the nearest; `~` is the home directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import TINY
from in_process import assert_refused, tinybert, write

from tinybert_jax.cli import entry
from tinybert_jax.cli.names import HELP, option_names
from tinybert_jax.settings.sources import CorpusSource, DataSource

COMMON = ["--model", "m", "--task", "sst2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil", "--teacher", "t"], "no command 'distil'; did you mean distill?; there are run, students, "),
        (["xyz"], "no command 'xyz'; there are run, students, "),
        (["--task", "sst2", "finetune"], "--task: the command comes first, and is one of run, students, "),
        (["evaluate", *COMMON, "--dta", "d"], "tinybert evaluate has no option --dta; did you mean --data?; all "),
        (["finetune", *COMMON, "--bacth-size=4"], "tinybert finetune has no option --bacth-size; did you mean --bat"),
        (["finetune", *COMMON, "--learning_rat", "1"], "no option --learning-rat; did you mean --learning-rate?"),
        (["finetune", *COMMON, "--no-resum"], "no option --no-resum; did you mean --no-resume?"),
        (["evaluate", *COMMON, "--jsn", "f"], "no option --jsn; did you mean --json?"),
        (["run", "file.py", "--sed", "1"], "tinybert run has no option --sed; did you mean --seed?"),
        (["finetune", *COMMON, "--temperature", "2"], "tinybert finetune has no option --temperature, but distill"),
        (["finetune", *COMMON, "--qqqq"], "tinybert finetune has no option --qqqq; all are in: "),
        (["finetune", *COMMON, "-batch-size", "4"], "tinybert finetune has no option -batch-size; did you mean --"),
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert_refused(capsys, tinybert(monkeypatch, *arguments), message)


OUT = [*COMMON, "--data", "d", "--out", "o"]
DISTIL = ["distill", *OUT[2:], "--teacher", "t", "--student", "s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give a command: run, students, finetune, pretrain, "),
        (["distill"], "tinybert distill needs --teacher, --student, --task and --out; all are in: tinybert distill"),
        (["evaluate", "--model=m"], "tinybert evaluate needs --task; all are in: tinybert evaluate --help"),
        (["run", "--out", "o"], "tinybert run needs a file (EXPERIMENT); all are in: "),
        (["run", "a.py", "--seed", "1", "b.py"], "tinybert run: 'b.py' is the value of no option; all are in: "),
        (["finetune", *OUT, "--resume", "yes"], "tinybert finetune: 'yes' is the value of no option; all are in: "),
        (["finetune", *OUT, "--seed", "1", "2"], "tinybert finetune: '2' is the value of no option; all are in: "),
        (["finetune", *COMMON, "--data", "d", "--out"], "--out has no value; all are in: tinybert finetune --help"),
        (["finetune", *OUT, "--resume=yes"], "--resume takes no value; all are in: tinybert finetune --help"),
        (["finetune", *OUT, "--batch-size", "4.5"], "--batch-size 4.5: give a whole number"),
        (["finetune", *OUT, "--learning_rate=fast"], "--learning-rate fast: give a number"),
        (["finetune", *OUT, "--compute-dtype", "float16"], "give one of float32, bfloat16; did you mean bfloat16?"),
        ([*DISTIL, "--preset", "foo"], "--preset foo: give one of default, paper, official"),
        ([*DISTIL, "--stage", "predictions"], "--stage predictions: give one of both, transformer, prediction, "),
        ([*DISTIL, "--layer-map", "1", "upper"], "--layer-map upper: give one of uniform, top, bottom or a whole n"),
        ([*DISTIL, "--teacher-weights", "1", "x"], "--teacher-weights x: give a number"),
        ([*DISTIL, "--teacher", "u"], "--teacher is there twice: give it once, followed by all its values; "),
        ([*DISTIL, "--temperature-squared", "yes"], "tinybert distill: 'yes' is the value of no option"),
        (["predict", "--model", "m", "--from", "xlsx"], "--from xlsx: give one of txt, tsv, csv, jsonl"),
        (["export", "--model", "m", "--out", "o", "--to", "onnx", "onx"], "stablehlo-int8; did you mean onnx?"),
    ],
)  # fmt: skip
def test_what_is_missing_or_no_value_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert_refused(capsys, tinybert(monkeypatch, *arguments), message)


@pytest.mark.parametrize(
    "more",
    [
        ["--prediction-steps", "5", "--layer-map", "top"],
        ["--layer-map", "1", "3", "--text-columns", "a", "b", "--hard-weight", "2e-1"],
        ["--no-temperature-squared", "--no-resume", "--temperature", "4:1"],
    ],
)
def test_values_that_an_option_takes_are_left_to_the_command(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = tinybert(monkeypatch, *DISTIL, *more)
    assert_refused(capsys, code, "no such directory")


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_the_help_leaves_it_to_the_texts_to_say_what_no_value_means(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tinybert(monkeypatch, command, "--help")
    assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_the_known_options_are_those_of_the_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert tinybert(monkeypatch, command, "--help") == 0
    first_column = re.findall(r"(?m)^[│ ]{1,4}((?:--?[a-z][a-z0-9-]*(?:, )?)+)", capsys.readouterr().out)
    listed = {name for names in first_column for name in names.split(", ")} - {"", *HELP}
    assert listed
    assert set(option_names(entry.COMMANDS[command])) >= listed
    assert {name for name in option_names(entry.COMMANDS[command]) if not name.startswith("--no-")} <= listed


def test_a_value_is_no_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    code = tinybert(monkeypatch, "finetune", *COMMON, "--data", "d", "--out", "o", "--learning-rate", "-1")
    assert_refused(capsys, code, "learning_rate is -1.0; it must be finite and greater than 0")


def test_a_source_reads_a_tilde_as_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    source = DataSource(train="~/a.csv", dev="b~.csv", unlabelled=("~/c.txt",))
    assert (source.train, source.dev, source.unlabelled) == ("/home/anna/a.csv", "b~.csv", ("/home/anna/c.txt",))
    assert CorpusSource(("~/text", "more")).files == ("/home/anna/text", "more")


@pytest.mark.parametrize("data", ["--data=~/data", "--dev=~/data/dev.tsv"])
def test_options_read_a_tilde_as_the_home_directory(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "model").symlink_to(TINY)
    write(tmp_path / "data" / "dev.tsv", "text\tlabel\na film\tpositive\ngood\tnegative\n")
    arguments = ["--model=~/model", "--task=classification", data, "--predictions=~/p.tsv", "--json=~/s.json"]
    assert tinybert(monkeypatch, "evaluate", *arguments) == 0, capsys.readouterr().err
    assert {"p.tsv", "s.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("command", ["report", "benchmark"])
def test_a_command_may_take_any_number_of_arguments_without_names(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert tinybert(monkeypatch, command, "no/first", "no/second") == 2
    assert "no/first" in capsys.readouterr().err
