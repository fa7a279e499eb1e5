"""Whole runs on real files learn, log what they do, and refuse what would not work."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import distillation, logged
from safetensors.numpy import load_file

import tinybert_jax as tb
from tinybert_jax.devices import processes
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.parameters import forward_flops
from tinybert_jax.training import chain, record, run
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.run import Result


def test_finetuning_learns_and_writes_a_whole_run_directory(teacher_result: Result) -> None:
    assert teacher_result.scores["accuracy"] > 0.9
    out = teacher_result.directory.parent
    assert {path.name for path in out.iterdir()} == {
        "experiment.json",
        "metrics.jsonl",
        "speed.jsonl",
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
    assert "parameters, trained on labels, with tinybert_jax." in card
    config, _ = tb.load_hf(teacher_result.directory)
    assert config.id2label == ("bad", "good")
    assert config.problem_type == "single_label_classification"
    scores = [line["dev/accuracy"] for line in logged(out) if "dev/accuracy" in line]
    assert max(scores) == teacher_result.scores["accuracy"], "the best state is kept"


@pytest.mark.long
def test_a_number_of_steps_is_the_length_of_a_stage_also_past_its_epochs(
    pretrained: Path, reviews: Path, tmp_path: Path
) -> None:
    """192 rows are 6 steps an epoch."""
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(pretrained),
        stages=(tb.Stage("supervised", epochs=1, max_steps=8),),
        max_length=16,
    )
    tb.run(experiment, tmp_path / "run")
    assert [line["step"] for line in logged(tmp_path / "run") if "dev/accuracy" in line] == [6, 8]


@pytest.mark.long
def test_a_run_of_another_length_compiles_nothing_anew(pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    """It finds the programs of the first run in the compilation cache."""

    def train(steps: int) -> None:
        stages = (tb.Stage("supervised", max_steps=steps),)
        source = tb.DataSource(data=str(reviews))
        experiment = tb.Experiment("classification", source, str(pretrained), stages, max_length=16)
        tb.run(experiment, tmp_path / f"{steps}-steps")

    events: list[str] = []
    train(3)
    jax.clear_caches()
    jax.monitoring.register_event_listener(listener := lambda event, **_: events.append(event))
    try:
        train(2)
    finally:
        jax.monitoring.unregister_event_listener(listener)
    assert "/jax/compilation_cache/cache_hits" in events
    assert "/jax/compilation_cache/cache_misses" not in events


@pytest.mark.long
def test_a_run_of_one_step_learns(pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    stages = (tb.Stage("supervised", max_steps=1, learning_rate=1e-3),)
    source = tb.DataSource(data=str(reviews))
    result = tb.run(tb.Experiment("classification", source, str(pretrained), stages, max_length=16), tmp_path / "run")
    before, after = (load_file(model / "model.safetensors") for model in (pretrained, result.directory))
    name = "encoder.layer.0.output.dense.weight"
    assert np.abs(after[f"bert.{name}"] - before[name]).max() > 1e-4


@pytest.mark.long
def test_a_run_without_a_start_names_and_keeps_the_one_that_it_takes(
    teacher: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stages = (tb.Stage("transformer", max_steps=1),)
    losses = {}
    for start in ("auto", "spectral"):
        experiment = distillation(teacher, Path("2x16"), reviews, stages=stages, start=start)
        tb.run(experiment, tmp_path / start)
        printed = re.findall("^start: .*$", capsys.readouterr().out, re.MULTILINE)
        assert (
            printed
            == ["start: spectral (the teacher projected on the principal directions of its hidden states)"][
                : start == "auto"
            ]
        )
        losses[start] = logged(tmp_path / start)[0]["loss"]
    assert losses["auto"] == losses["spectral"]
    assert json.loads((tmp_path / "auto" / "experiment.json").read_text())["experiment"]["start"] == "spectral"
    tb.run(distillation(teacher, Path("2x16"), reviews, stages=stages), tmp_path / "auto", resume=True)
    again = distillation(teacher, Path("2x16"), reviews, stages=stages, start="random")
    with pytest.raises(tb.InputError, match="start was 'spectral' and is 'random'"):
        tb.run(again, tmp_path / "auto", resume=True)


@pytest.mark.long
def test_too_little_text_for_a_spectral_start_is_no_obstacle(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two rows of seven tokens, where a spectral start needs 32."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\nwe bought a bag tasty\tgood\nwe bought a bag stale\tbad\n")
    stages = (tb.Stage("prediction", max_steps=1),)
    tb.run(distillation(teacher, Path("2x16"), tmp_path, stages=stages), tmp_path / "run")
    assert "start: random (start 'spectral' needs 32 tokens of text, and there are 14)" in capsys.readouterr().out


def test_a_model_with_parameters_has_no_start(teacher_result: Result) -> None:
    """Runs of earlier versions were described so, and can be resumed."""
    described = json.loads((teacher_result.directory.parent / "experiment.json").read_text())
    assert described["experiment"]["start"] == "random"


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
    for stage, has_best in (("1-transformer", False), ("2-prediction", True)):
        saved = [path.read_text() for path in (tmp_path / "run/checkpoints" / stage).glob("*/checksums/metadata")]
        assert saved
        assert {".best_params" in names for names in saved} == {has_best}, "where nothing is evaluated, none is best"


def test_a_run_logs_its_speed_its_operations_and_the_share_of_real_tokens(teacher_result: Result) -> None:
    """The words of the reviews, [CLS] and [SEP] fill part of the 16 positions; each epoch has all of them once."""
    config, _ = load_hf(teacher_result.directory)
    a_step = 32 * 3 * forward_flops(config, 16)  # backward computes twice what forward does
    out = teacher_result.directory.parent
    speeds = logged(out, "speed.jsonl")
    steps = [line for line in logged(out) if "loss" in line]
    assert [line["step"] for line in speeds] == [line["step"] for line in steps]
    for line, before in zip(speeds, [0, *(line["step"] for line in speeds)], strict=False):
        assert 0.3 < line["real_tokens"] < 1
        assert line["flops"] == pytest.approx((line["step"] - before) * a_step)
        assert line["tokens"] / line["seconds"] == pytest.approx(line["tokens_per_second"], rel=0.01)
    assert all(0.3 < line["real_tokens"] <= 1 for line in steps)


def test_what_no_stage_can_train_is_refused_before_the_run_is_made(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projections, initial_params = {"fit_dense": {"kernel": np.zeros((16, 7)), "bias": np.zeros(7)}}, run.initial_params
    monkeypatch.setattr(
        run, "initial_params", lambda *args: [params | projections for params in initial_params(*args)]
    )
    with pytest.raises(tb.InputError, match="fit_dense leads from width 16 to 7, but the teacher is 32 wide"):
        tb.run(distillation(teacher, blank_student, reviews), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_process_whose_run_is_not_process_0s_is_refused_before_anything_is_computed(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "from_primary", lambda text: text.replace('y": 500', 'y": 7'))
    monkeypatch.setattr(chain, "make_predict_step", None)
    with pytest.raises(tb.InputError, match="checkpoint_every is 500 in process 0, and 7 in process 0: give all"):
        tb.run(distillation(teacher, blank_student, reviews), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_devices_that_stay_idle_are_named(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def far_enough(*args: object) -> None:
        raise tb.InputError("far enough")

    monkeypatch.setattr(jax, "device_count", lambda: 3)
    monkeypatch.setattr(chain, "predict_logits", far_enough)
    stages = (tb.Stage("transformer", accumulation_steps=4), tb.Stage("prediction"))
    with pytest.raises(tb.InputError, match="far enough"):
        tb.run(distillation(teacher, blank_student, reviews, stages=stages), tmp_path / "run")
    assert "1 of 3 devices take part: more do not share 8 and 32 rows (a batch" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_start_leaves_nothing_in_the_way(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(teacher),
        stages=(tb.Stage("supervised", max_steps=1),),
        max_length=16,
    )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(tb.InputError, match="No space left on device"):
            tb.run(experiment, tmp_path / "run")
    record.check_out(tmp_path / "run", resume=False)


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(
    pretrained: Path, reviews: Path, tmp_path: Path
) -> None:
    stage = tb.Stage("supervised", epochs=20, learning_rate=1e30, evaluate_every=1)
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(pretrained),
        stages=(stage,),
        max_length=16,
    )
    with pytest.raises(Diverged, match="are sound. Start a new --out with a lower learning rate"):  # noqa: RUF043
        tb.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "student").exists()
    saved = [path for path in (tmp_path / "run" / "checkpoints" / "1-supervised").iterdir() if path.name.isdigit()]
    for path in saved:
        state = ocp.StandardCheckpointer().restore(path / "state")
        assert all(np.isfinite(leaf).all() and np.abs(leaf).max() < 1e3 for leaf in jax.tree.leaves(state["params"]))
    assert saved, "the first step's update is zero, so its state is sound and saved"


PAIRS = ["a bag of chips", "it was stale", "the tasty bag", "we bought it", "very bitter", "quite fine and crisp"]


@pytest.fixture(scope="module")
def similarities(tmp_path_factory: pytest.TempPathFactory) -> tb.DataSource:
    """Pairs of texts, scored 5 if they are equal and 0 if not, as CSV and JSON lines with columns of their own."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [(a, b, 5.0 if a == b else 0.0) for a in PAIRS for b in PAIRS if a == b or hash_free(a, b)] * 4
    csv = ["left,right,score", *(f'"{a}","{b}",{score}' for a, b, score in pairs)]
    (folder / "train.csv").write_text("\n".join(csv))
    rows = [json.dumps({"left": a, "right": b, "score": score}) for a, b, score in pairs[:12]]
    (folder / "dev.jsonl").write_text("\n".join(rows))
    return tb.DataSource(
        train=str(folder / "train.csv"),
        dev=str(folder / "dev.jsonl"),
        text_columns=("left", "right"),
        label_column="score",
    )


def hash_free(a: str, b: str) -> bool:
    """A fixed third of the unequal pairs."""
    return (len(a) + 2 * len(b)) % 3 == 0


@pytest.mark.long
def test_regression_on_pairs_learns_under_the_official_preset(
    similarities: tb.DataSource, pretrained: Path, blank_student: Path, tmp_path: Path
) -> None:
    common = {"task": "regression", "source": similarities, "max_length": 24}
    finetuned = tb.run(
        tb.Experiment(
            **common,
            model=str(pretrained),
            stages=(tb.Stage("supervised", epochs=60, learning_rate=3e-3, evaluate_every=60),),
        ),
        tmp_path / "teacher",
    )
    assert finetuned.scores["pearson"] > 0.5
    distilled = tb.run(
        tb.Experiment(
            **common,
            model=str(blank_student),
            teacher=str(finetuned.directory),
            preset="official",
            layer_map=(1, 4),
            stages=(tb.Stage("transformer", epochs=2, schedule="constant"), tb.Stage("prediction", epochs=2)),
        ),
        tmp_path / "student",
    )
    config, _ = tb.load_hf(distilled.directory)
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    assert set(distilled.scores) == {"pearson", "spearman", "mean_pearson_spearman"}


def test_a_temperature_is_refused_where_there_are_no_classes(
    similarities: tb.DataSource, pretrained: Path, tmp_path: Path
) -> None:
    config, _ = tb.load_hf(pretrained)
    number = dataclasses.replace(config, id2label=("LABEL_0",))
    head = tb.init_params(tb.BertForSequenceClassification(number), jax.random.key(0))
    tokenizer = tb.load_tokenizer(pretrained, config)
    tb.save_hf(tmp_path / "teacher", number, head, tokenizer)
    experiment = tb.Experiment(
        task="regression",
        source=similarities,
        model=str(pretrained),
        teacher=str(tmp_path / "teacher"),
        stages=(tb.Stage(tb.Prediction(temperature=2.0)),),
        max_length=24,
    )
    with pytest.raises(tb.InputError, match=r"temperature is 2\.0; it is for classes, and a number has none"):
        tb.run(experiment, tmp_path / "run")


@pytest.mark.long
def test_a_transformer_stage_alone_has_no_score_and_its_student_goes_on_to_the_prediction_stage(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    first, second = distillation(teacher, blank_student, reviews).stages
    alone = tb.run(distillation(teacher, blank_student, reviews, stages=(first,)), tmp_path / "first")
    assert alone.scores == {}
    card = (alone.directory / "README.md").read_text()
    assert "head is not trained yet" in card
    assert f"distilled from `{teacher.parent.name}` by the method of [TinyBERT]" in card
    again = tb.run(distillation(teacher, alone.directory, reviews, stages=(first,)), tmp_path / "again")
    assert again.scores == {}, "the head that it brings was not trained either"
    more = dataclasses.replace(second, epochs=16)
    result = tb.run(distillation(teacher, alone.directory, reviews, stages=(more,)), tmp_path / "second")
    assert result.scores["accuracy"] > 0.8


@pytest.mark.long
def test_bfloat16_distils_with_float32_parameters(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    stages = (tb.Stage("transformer", max_steps=3), tb.Stage("prediction", max_steps=3))
    experiment = distillation(teacher, blank_student, reviews, stages=stages, compute_dtype="bfloat16")
    result = tb.run(experiment, tmp_path / "run")
    tensors = load_file(result.directory / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}


def test_a_dev_set_of_one_class_is_refused(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\na bag\tgood\nstale\tbad\n")
    (tmp_path / "dev.tsv").write_text("text\tlabel\na bag\tgood\nthe chips\tgood\n")
    source = tb.DataSource(data=str(tmp_path))
    stages = (tb.Stage("supervised"),)
    with pytest.raises(tb.InputError, match="every row of the dev set has the same label"):
        tb.run(tb.Experiment("classification", source, str(pretrained), stages, max_length=16), tmp_path / "run")


def test_a_directory_that_cannot_be_made_holds_no_checkpoints(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(tb.InputError, match=r"File name too long$"):
        tb.run(distillation(teacher, blank_student, reviews), tmp_path / ("x" * 300))


def test_64_bits_are_refused(teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    with jax.enable_x64(True), pytest.raises(tb.InputError, match="JAX_ENABLE_X64 is set"):
        tb.run(distillation(teacher, blank_student, reviews), tmp_path / "run")
