"""The README's code runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import tinybert_jax as tb

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)


def test_the_training_loop_runs_and_writes_a_student(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "teacher")
    [loop] = [block for block in BLOCKS if "make_train_step" in block]
    exec(loop, {})
    config, _ = tb.load_hf("student")
    assert (config.num_hidden_layers, config.hidden_size, config.id2label) == (3, 192, ("bad", "good"))


def test_the_three_lines_that_use_a_student_run(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "runs/tiny/student")
    [use] = [block for block in BLOCKS if "load_predictor" in block]
    exec(use, {})
    assert "Prediction(label=" in capsys.readouterr().out


def test_experiment_files_define_an_experiment() -> None:
    import runpy

    described = runpy.run_path(str(README.parent / "experiments" / "sst2.py"))["experiment"]
    assert isinstance(described, tb.Experiment)
