"""The experiment on few rows: its messages, and the commands that it runs."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import tinybert_jax as tb
from tinybert_jax.data.rows import read_rows
from tinybert_jax.settings.tasks import get_task

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("few_rows")


def test_the_messages_are_a_csv_of_three_classes(few_rows: ModuleType, tmp_path: Path) -> None:
    made = few_rows.messages(400, seed=0)
    assert made == few_rows.messages(400, seed=0) != few_rows.messages(400, seed=1)
    assert not any("{" in text for text, _ in made)
    assert min(Counter(label for _, label in made).values()) > 100
    few_rows.write_csv(tmp_path / "messages.csv", made)
    source = tb.DataSource(train=str(tmp_path / "messages.csv"), dev_share=0.1)
    read = read_rows(get_task("classification"), source, "train")
    assert read.label_names == ("billing", "delivery", "technical")
    assert len(read.texts) + len(read_rows(get_task("classification"), source, "dev").texts) == 400


def test_some_rows_are_whole_lines_and_the_last_one_ends(few_rows: ModuleType, tmp_path: Path) -> None:
    rows = ["a\x85b\t0", "c\u2028d\t1", "the last\t0"]
    (tmp_path / "all.tsv").write_text("\n".join(["text\tlabel", *rows]))
    few_rows.some_rows(tmp_path / "all.tsv", tmp_path / "some.tsv", 3)
    header, *some, end = (tmp_path / "some.tsv").read_text().split("\n")
    assert (header, sorted(some), end) == ("text\tlabel", sorted(rows), "")


@pytest.mark.long
def test_students_of_few_rows_are_compared_by_their_commands(
    few_rows: ModuleType, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    commands = []

    def record(out: Path, *command: str) -> Path:
        commands.append(command)
        return teacher

    monkeypatch.setattr(few_rows, "tinybert", record)
    options = ["--task", "classification", "--data", str(reviews), "--teacher", str(teacher), "--max-length", "16"]
    more = ["--rows", "20", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["few_rows.py", "task", *options, *more])
    few_rows.main()
    assert len((tmp_path / "out/20-rows/train.tsv").read_text().splitlines()) == 21
    assert len(commands) == 6  # three settings, two seeds
    assert [command[-2:] for command in commands[::2]] == [
        ("--seed", "0"),
        ("--start", "random"),
        ("--stage", "supervised"),
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 20 |")]
    assert len(lines) == 3
    assert all(line.endswith("| 100.0 |") for line in lines)  # each "student" is the teacher
