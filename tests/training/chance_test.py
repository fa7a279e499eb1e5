"""A model that is no better than chance is told so, and as a teacher it is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import distillation, write_conll, write_reviews, write_scored_reviews, write_squad

import tinybert_jax as tb
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.training.teaching import score


@pytest.fixture
def ignorant(pretrained: Path, tmp_path: Path) -> Path:
    """A teacher with a random head."""
    config, params = tb.load_hf(pretrained)
    config = dataclasses.replace(config, id2label=("bad", "good"))
    random = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    random["encoder"] |= params["encoder"]
    tb.save_hf(tmp_path / "ignorant", config, random, tb.load_tokenizer(pretrained, config))
    return tmp_path / "ignorant"


def test_a_teacher_at_chance_is_refused_before_the_run_begins(
    ignorant: Path, blank_student: Path, tmp_path: Path
) -> None:
    data = write_reviews(tmp_path / "data", dev=100)
    with pytest.raises(tb.InputError, match=r"no better than chance .* check its label order \('bad', 'good'\)"):
        tb.run(distillation(ignorant, blank_student, data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "write", "refused"),
    [("classification", write_reviews, True), ("ner", write_conll, False), ("squad", write_squad, False)],
)
def test_chance_is_nearly_zero_for_the_f1_of_tags_and_answers(
    task: str,
    write: Callable[..., Path],
    refused: bool,
    pretrained: Path,
    tmp_path: Path,
) -> None:
    """A correlation of 0.1 on 200 rows can be luck; an F1 of 0.1 in tagging them is not."""
    config, _ = tb.load_hf(pretrained)
    source = tb.DataSource(data=str(write(tmp_path / "data", train=16, dev=200)))
    dev = load_split(get_task(task), source, "dev", tb.load_tokenizer(pretrained, config), 32)
    dev = dataclasses.replace(dev, skill=lambda logits: 0.1, score=lambda logits: {"f1": 0.1})
    refusal = pytest.raises(tb.InputError, match=r"no better than chance .* or for longer$")
    with refusal if refused else contextlib.nullcontext():
        assert score("t", {"dev": dev}, {"dev": np.zeros((200, 2), np.float32)}, ()) == {"f1": 0.1}


@pytest.mark.parametrize(
    ("task", "seed"),
    [
        ("classification", 0),
        pytest.param("regression", 0, marks=pytest.mark.long),
        pytest.param("ner", 1, marks=pytest.mark.long),
    ],
)
def test_a_model_that_learnt_nothing_is_told_so_at_the_end(
    task: str, seed: int, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The learning rate is next to nothing, and the head is new; that of tags gives all words one tag."""
    if task == "ner":
        data = write_conll(tmp_path / "data", train=16, dev=16)  # of words that the model does not know
    else:
        data = write_reviews(tmp_path / "data", train=32, dev=100)
        if task == "regression":
            write_scored_reviews(data, data)
    experiment = tb.Experiment(
        task=task,
        source=tb.DataSource(data=str(data)),
        model=str(pretrained),
        stages=(tb.Stage("supervised", max_steps=2, learning_rate=1e-9),),
        max_length=16,
        seed=seed,
    )
    result = tb.run(experiment, tmp_path / "run")
    warnings = re.findall("^warning: .*$", capsys.readouterr().err, re.MULTILINE)
    measure = {"ner": r"F1 0\.\d+; guesses at random reach 0\.050"}.get(
        task, r"correlation with the labels -?0\.\d+; guesses at random reach 0\.200"
    )
    majority = r"; accuracy 0\.\d+; always the largest class gives 0\.\d+" if task == "classification" else ""
    assert len(warnings) == 1
    assert re.fullmatch(
        rf"warning: {result.directory}: on the dev set it is no better than chance \({measure}{majority}\);"
        " try more epochs or steps, or a higher learning rate",
        warnings[0],
    )


@pytest.mark.parametrize(
    ("predicted", "selection", "told"),
    [
        (90 * [0] + 10 * [0], "accuracy", "random reach 0.200; accuracy 0.900; always the largest class gives 0.900)"),
        (90 * [0] + 10 * [0], "matthews", "random reach 0.200; accuracy 0.900; always the largest class gives 0.900)"),
        (
            85 * [0] + 5 * [1] + 5 * [1] + 5 * [0],
            "accuracy",
            "chance (accuracy 0.900; always the largest class gives 0.900)",
        ),
        (85 * [0] + 5 * [1] + 5 * [1] + 5 * [0], "matthews", ""),
        (89 * [0] + 1 * [1] + 5 * [1] + 5 * [0], "accuracy", ""),
    ],
)
def test_a_model_of_skewed_classes_is_measured_by_the_score_that_selects(
    predicted: list[int], selection: str, told: str, pretrained: Path, tmp_path: Path
) -> None:
    """90 rows are bad, 10 good. With ten of them wrong, a model has no more right than the majority class."""
    rows = 90 * ["a bag\tbad"] + 10 * ["chips\tgood"]
    (tmp_path / "dev.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    tokenizer = tb.load_tokenizer(pretrained, tb.load_hf(pretrained)[0])
    source = tb.DataSource(data=str(tmp_path))
    split = load_split(get_task("classification"), source, "dev", tokenizer, 16, ("bad", "good"))
    failure = dataclasses.replace(split, selection=selection).failure(np.eye(2, dtype=np.float32)[predicted])
    assert failure.endswith(told)
    assert bool(failure) == bool(told)


@pytest.mark.long
def test_of_few_rows_a_teacher_at_chance_gives_a_warning(
    ignorant: Path, blank_student: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WNLI is such a set: BERT's best guess is the larger class."""
    experiment = distillation(ignorant, blank_student, reviews, stages=(tb.Stage("prediction", epochs=1),))
    result = tb.run(experiment, tmp_path / "run")
    warning = rf"^warning: {ignorant}: its predictions on the dev set are no better than chance"
    assert re.search(warning, capsys.readouterr().err, re.MULTILINE)
    assert result.directory.is_dir()
