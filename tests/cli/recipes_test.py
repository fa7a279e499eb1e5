"""A distillation without numbers takes them from a recipe, and says which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_model
from in_process import distill_arguments, tinybert

from tinybert_jax.cli.stages import with_recombined
from tinybert_jax.cli.train import _config
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.settings.choices import Start
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.recipes import FINETUNING, StageRecipe, choose_recipe
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.students.start import copies
from tinybert_jax.training import run

LEAST = "epochs or 300 steps, whichever is more, at learning rate"
NARROW = (
    f"recipe: narrow student (it is new, and at most 384 wide): transformer 20 {LEAST} 0.0005;"
    f" prediction 3 {LEAST} 0.0003"
)


@pytest.mark.parametrize(
    ("student", "more", "line"),
    [
        ("2x16", [], NARROW),
        ("tinybert-4l-312d", [], NARROW),
        ("2x16", ["--prediction-steps", 5], NARROW.replace(f"3 {LEAST}", "5 steps at learning rate")),
        (
            "2x16",
            ["--transformer-epochs", 1],
            NARROW.replace(f"20 {LEAST}", "1 epochs at learning rate"),
        ),
        ("2x16", ["--transformer-learning-rate", 0.002], NARROW.replace("0.0005", "0.002")),
        (
            "2x16",
            ["--stage", "supervised"],
            f"recipe: narrow student (it is new, and at most 384 wide): supervised 3 {LEAST} 0.0003",
        ),
        (
            "tinybert-6l-768d",
            [],
            "recipe: wide student (it is wider than 384, and no other rates were measured): transformer 20"
            f" {LEAST} 5e-05; prediction 3 {LEAST} 3e-05",
        ),
        (
            "2x16",
            ["--start", "copy", "--stage", "prediction"],
            "recipe: copied student (it starts as layers of the teacher, which high rates would spoil): prediction 3"
            f" {LEAST} 3e-05",
        ),
        (
            "some/directory",
            ["--stage", "prediction"],
            "recipe: trained student (it brings its own parameters, which high rates would spoil): prediction 3"
            f" {LEAST} 3e-05",
        ),
        (
            "2x16",
            ["--preset", "paper"],
            "recipe: paper (as preset paper says): transformer 20 epochs at learning rate 5e-05; prediction 3 epochs"
            " at learning rate 3e-05",
        ),
        (
            "2x16",
            ["--stage", "prediction", "--prediction-steps", 5, "--prediction-learning-rate", 0.01],
            "",
        ),
    ],
)
def test_the_recipe_is_printed_where_a_stage_takes_a_number_from_it(
    student: str, more: list[object], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings = []

    def kept(experiments: object, out: object, resume: object, mesh: object, opening: str | None) -> None:
        openings.append(opening)
        raise InputError("far enough")

    monkeypatch.setattr(run, "run_population", kept)
    arguments = distill_arguments(tmp_path / "teacher", Path(student), tmp_path / "data", tmp_path / "run")
    assert tinybert(monkeypatch, *arguments, *more) == 2
    assert openings == [line or None]


def test_no_recipe_is_told_of_a_run_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", Path("2x16"), tmp_path / "data", tmp_path / "run")
    assert tinybert(monkeypatch, *arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("student", "start", "name"),
    [
        ("2x32", "auto", "copied student"),
        ("2x16", "auto", "narrow student"),
        ("2x32x64", "auto", "narrow student"),
        ("2x32x128x2", "auto", "narrow student"),
        ("2x32", "random", "narrow student"),
        ("2x16", "copy", "copied student"),
    ],
)
def test_a_student_of_the_teachers_sizes_starts_as_its_layers(student: str, start: Start, name: str) -> None:
    teacher = BertConfig(hidden_size=32, intermediate_size=128, num_attention_heads=4)
    assert choose_recipe("default", student, get_task("sst2"), copies(start, student, teacher)).name == name


def test_the_teachers_config_is_read_from_the_first_that_is_a_model(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", hidden_size=32)
    config = _config(("labels.jsonl", str(tmp_path / "teacher")))
    assert config is not None
    assert config.hidden_size == 32
    assert _config(("labels.jsonl",)) is None


def test_a_length_that_a_user_names_has_no_floor() -> None:
    recipe = StageRecipe(epochs=3, learning_rate=1e-3, min_steps=100)
    by_default = {"epochs": 3, "max_steps": None, "min_steps": 100, "learning_rate": 1e-3}
    assert recipe.settings(None, None, None) == by_default
    assert recipe.settings(None, None, 0.1) == by_default | {"learning_rate": 0.1}
    assert recipe.settings(1, None, None) == by_default | {"epochs": 1, "min_steps": None}
    assert recipe.settings(None, 7, None) == by_default | {"max_steps": 7, "min_steps": None}


@pytest.mark.parametrize(
    ("more", "makes"),
    [
        ([], True),
        (["--stage", "prediction"], True),
        (["--recombine-to", 0], False),
        (["--recombine-to", 3], True),
        (["--stage", "supervised"], False),
        (["--preset", "paper"], False),
        (["--augmented", "variants"], False),
    ],
)
def test_few_pairs_are_recombined_where_a_teacher_labels_them(
    more: list[object], makes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def kept(experiments: list[Experiment], out: object, resume: object, mesh: object, opening: str) -> None:
        calls.append((experiments[0], opening))
        raise InputError("far enough")

    monkeypatch.setattr(run, "run_population", kept)
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\none\ttwo\tyes\nthree\tfour\tno\n")
    arguments = distill_arguments(tmp_path / "teacher", Path("2x16"), tmp_path, tmp_path / "run")
    assert tinybert(monkeypatch, *arguments, "--text-columns", "a", "b", *more) == 2
    ((experiment, opening),) = calls
    assert bool(experiment.source.recombine_to) == makes
    assert ("from their texts, and the teacher labels them (--recombine-to 0 makes none)" in opening) == makes
    assert ([stage.max_steps for stage in experiment.stages][-1] == 300) == makes
    assert ("transformer 600 steps" in opening) == (makes and more[:1] != ["--stage"])


def test_a_file_of_predictions_labels_no_recombined_pair(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\none\ttwo\tyes\n")
    source = DataSource(data=str(tmp_path), text_columns=("a", "b"))
    task = get_task("classification")
    assert with_recombined(task, source, "default", ["teacher"]).source.recombine_to
    assert with_recombined(task, source, "default", ["teacher", "labels.jsonl"]) == (source, 0, False)
    with pytest.raises(
        InputError, match=r"labels\.jsonl: has no predictions for texts that --recombine-to would make"
    ):
        with_recombined(task, replace(source, recombine_to=9), "default", ["teacher", "labels.jsonl"])


def test_the_presets_of_the_paper_recombine_what_the_option_asks_for(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\none\ttwo\tyes\n")
    source = DataSource(data=str(tmp_path), text_columns=("a", "b"), recombine_to=9)
    assert with_recombined(get_task("classification"), source, "paper", ["teacher"]) == (source, 8, True)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_presets_of_the_paper_keep_its_numbers(preset) -> None:
    for task, epochs in (("mnli", 10), ("cola", 50)):
        recipe = choose_recipe(preset, "tinybert-4l-312d", get_task(task), few_pairs=True)
        assert recipe.layers == StageRecipe(epochs, 5e-5)
        assert recipe.outputs == StageRecipe(3, 3e-5)


def test_fine_tuning_on_few_rows_has_a_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = []
    monkeypatch.setattr("tinybert_jax.cli.train.execute", lambda experiments, *_: taken.append(experiments[0].stages))
    arguments = ["finetune", "--model", "m", "--task", "sst2", "--data", "d", "--out", tmp_path / "run"]
    for more in ([], ["--epochs", 2], ["--learning-rate", 1e-4]):
        assert tinybert(monkeypatch, *arguments, *more) == 0
    lengths = [(stage.epochs, stage.min_steps, stage.learning_rate) for (stage,) in taken]
    assert lengths == [(3, FINETUNING.min_steps, 3e-5), (2, None, 3e-5), (3, FINETUNING.min_steps, 1e-4)]
