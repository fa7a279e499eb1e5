"""Every kind of task, start and teacher through the real program, on synthetic data that a small model can learn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD, GOOD, NEUTRAL, write_model

import tinybert_jax as tb
from tinybert_jax import evaluation
from tinybert_jax.train import Result

LENGTH = 16  # one bucket, so one compilation
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of short sentences."""
    random = np.random.default_rng(0)
    documents = []
    for _ in range(30):
        words = GOOD if random.random() < 0.5 else BAD
        documents.append("\n".join(" ".join(random.choice([*NEUTRAL, *words], 6)) + " ." for _ in range(4)))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def general(text: Path, pretrained: Path, blank_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of general distillation."""
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(blank_student),
        teacher=str(pretrained),
        stages=(tb.Stage("transformer", epochs=8, batch_size=8, accumulation_steps=2, learning_rate=1e-2),),
        max_length=LENGTH,
    )
    out = tmp_path_factory.mktemp("general") / "run"
    assert tb.run(experiment, out).scores == {}
    return out


def test_general_distillation_lowers_every_term_and_its_student_starts_a_task(
    general: Path, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    lines = logged(general)
    for term in ("embedding", "attention/1", "attention/2", "hidden/1", "hidden/2"):
        assert lines[-1][term] < lines[0][term], term
    assert not any("bert" not in name for name in tb.load_hf(general / "student")[1])
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(general / "student"),
        teacher=str(teacher),
        stages=(tb.Stage("prediction", max_steps=2),),
        max_length=LENGTH,
    )
    assert "accuracy" in tb.run(experiment, tmp_path / "run").scores


def test_the_cost_is_printed_before_general_distillation_starts(
    text: Path, pretrained: Path, blank_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(blank_student),
        teacher=str(pretrained),
        stages=(tb.Stage("transformer", max_steps=3, batch_size=8),),
        max_length=LENGTH,
    )
    tb.run(experiment, tmp_path / "run")
    assert "1-transformer: 3 steps, " in (printed := capsys.readouterr().out)
    assert "FLOPs; at the measured" in printed


def test_masked_lm_training_gives_a_checkpoint_its_head(text: Path, pretrained: Path, tmp_path: Path) -> None:
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(pretrained),
        stages=(tb.Stage("masked_lm", epochs=20, batch_size=8, learning_rate=1e-2),),
        max_length=LENGTH,
    )
    directory = tb.run(experiment, tmp_path / "run").directory
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]
    assert "cls" in tb.load_hf(directory)[1]
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


MNLI = ("entailment", "neutral", "contradiction")


def write_mnli(directory: Path) -> Path:
    """Rows whose second sentence tells the label; the mismatched ones are labelled the other way round."""
    random = np.random.default_rng(0)
    telling = dict(zip(MNLI, ("lovely", "bag", "awful"), strict=True))
    directory.mkdir(parents=True)
    for name, n in (("train", 96), ("dev_matched", 24), ("dev_mismatched", 24), ("test_matched", 4)):
        lines = ["sentence1\tsentence2" + ("" if name.startswith("test") else "\tgold_label")]
        for i in range(n):
            label = MNLI[i % 3]
            first, second = (" ".join(random.choice(["the", "was", "very", "we"], 2)) for _ in range(2))
            written = MNLI[(i + 1) % 3] if name == "dev_mismatched" else label
            gold = "" if name.startswith("test") else f"\t{written}"
            lines.append(f"{first}\t{second} {telling[label]}{gold}")
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (directory / "test_mismatched.tsv").write_text((directory / "test_matched.tsv").read_text())
    return directory


@pytest.fixture(scope="module")
def mnli(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[tb.DataSource, Path, Result]:
    """MNLI in the GLUE layout, the directory of a run on it, and its result."""
    path = tmp_path_factory.mktemp("mnli")
    source = tb.DataSource(data=str(write_mnli(path / "MNLI")))
    experiment = tb.Experiment(
        task="mnli",
        source=source,
        model=str(pretrained),
        stages=(tb.Stage("supervised", epochs=16, batch_size=16, learning_rate=3e-3),),
        max_length=LENGTH,
    )
    return source, path / "run", tb.run(experiment, path / "run")


def test_mnli_selects_on_the_matched_set_scores_both_and_writes_both_submissions(
    mnli: tuple[tb.DataSource, Path, Result], tmp_path: Path
) -> None:
    source, out, result = mnli
    assert result.scores["accuracy"] > 0.9
    assert result.scores["accuracy_mismatched"] < 0.1
    assert result.scores["accuracy"] == max(line.get("dev/accuracy", 0) for line in logged(out))
    assert evaluation.evaluate(str(result.directory), "mnli", source) == result.scores
    assert not evaluation.evaluate(
        str(result.directory), "mnli", source, "test", predictions=tmp_path, needs_scores=False
    )
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        lines = (tmp_path / name).read_text().splitlines()
        assert lines == ["index\tprediction", *(f"{i}\t{MNLI[i % 3]}" for i in range(4))]


def test_a_checkpoint_with_labels_in_another_order_is_matched_by_name(
    mnli: tuple[tb.DataSource, Path, Result], tmp_path: Path
) -> None:
    """The original code took ids as they came: its users saw 10 to 44 % on MNLI."""
    source, _, result = mnli
    config, params = tb.load_hf(result.directory)
    order = np.array([2, 0, 1])
    head = params["classifier"]
    params["classifier"] = {"kernel": head["kernel"][:, order], "bias": head["bias"][order]}
    config = dataclasses.replace(config, id2label=tuple(MNLI[i].upper() for i in order))
    tb.save_hf(tmp_path / "hub", config, params, tb.load_tokenizer(result.directory, config))
    assert evaluation.evaluate(str(tmp_path / "hub"), "mnli", source) == result.scores


def distilled(teacher: Path, student: str, reviews: Path, out: Path, **changes: object) -> Result:
    settings = {
        "stages": (
            tb.Stage("transformer", epochs=4, learning_rate=1e-2, schedule="constant"),
            tb.Stage("prediction", epochs=8, learning_rate=1e-2),
        ),
    } | changes
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=student,
        teacher=str(teacher),
        max_length=LENGTH,
        **settings,
    )
    return tb.run(experiment, out)


def test_a_teacher_of_another_vocabulary_teaches_its_predictions_and_no_more(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    student = write_model(tmp_path / "other", words=("tea", "rice"), **SMALL)
    prediction = (tb.Stage("prediction", epochs=12, learning_rate=1e-2),)
    result = distilled(teacher, str(student), reviews, tmp_path / "run", stages=prediction)
    assert result.scores["accuracy"] > 0.9
    with pytest.raises(tb.InputError, match=r"different vocabularies, .* only a sequence task's predictions"):
        distilled(teacher, str(student), reviews, tmp_path / "both")
