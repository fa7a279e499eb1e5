"""A run refuses models that do not fit its rows, and keeps what fits."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rewrite_reviews, write_model, write_scored_reviews

import tinybert_jax as tb
from tinybert_jax.data.augmentation import build
from tinybert_jax.inference import evaluate
from tinybert_jax.tasks import kinds
from tinybert_jax.training import material
from tinybert_jax.training.inputs import initial_params, load_inputs, load_population

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
REFUSED = r"has 1 token type, but the rows are pairs of texts: take a model with two$"


@pytest.fixture
def of_one_type(tmp_path: Path) -> Path:
    """A classifier of good and bad whose type table has one row: beyond it jax looks NaN up."""
    path = write_model(
        tmp_path / "model", hidden_size=16, num_hidden_layers=2, intermediate_size=32, type_vocab_size=1
    )
    config, _ = tb.load_hf(path)
    config = dataclasses.replace(config, id2label=("bad", "good"))
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    tb.save_hf(path, config, params, tb.load_tokenizer(path, config))
    return path


@pytest.fixture
def pairs(reviews: Path, tmp_path: Path) -> tb.DataSource:
    """The reviews, each with a second text."""
    rewrite_reviews(tmp_path, reviews, "first\tsecond\tlabel", lambda text, label: f"{text}\tthe bag\t{label}")
    files = {name: str(tmp_path / f"{name}.tsv") for name in ("train", "dev")}
    return tb.DataSource(**files, text_columns=("first", "second"), label_column="label")


@pytest.mark.parametrize("role", ["model", "teacher"])
def test_a_run_on_pairs_needs_two_token_types(
    role: str, of_one_type: Path, pairs: tb.DataSource, pretrained: Path
) -> None:
    models = (
        {"model": str(of_one_type)} if role == "model" else {"model": str(pretrained), "teacher": str(of_one_type)}
    )
    stage = tb.Stage("supervised" if role == "model" else "prediction")
    experiment = tb.Experiment(task="classification", source=pairs, stages=(stage,), max_length=16, **models)
    with pytest.raises(tb.InputError, match=f"^{of_one_type}: {REFUSED}"):
        load_inputs(experiment)


def test_a_corpus_of_pairs_needs_two_token_types(of_one_type: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("we bought a bag of chips .\nit was very tasty .\n\nthe chips burnt .\nwe was awful .\n" * 8)
    source = tb.CorpusSource(files=(str(text),), pairs=True)
    stages = (tb.Stage("masked_lm"),)
    experiment = tb.Experiment("corpus", source, str(of_one_type), stages, max_length=16)
    with pytest.raises(tb.InputError, match=f"^{of_one_type}: {REFUSED}"):
        load_inputs(experiment)


def test_predictions_of_pairs_need_two_token_types(of_one_type: Path, pairs: tb.DataSource) -> None:
    with pytest.raises(tb.InputError, match=f"^{of_one_type}: {REFUSED}"):
        tb.load_predictor(of_one_type, max_length=16)([("a lovely bag", "it was tasty")])
    with pytest.raises(tb.InputError, match=f"^{of_one_type}: {REFUSED}"):
        evaluate.evaluate(str(of_one_type), "classification", pairs, max_length=16)


def test_a_regression_head_is_kept_whatever_its_output_is_called(
    of_one_type: Path, reviews: Path, tmp_path: Path
) -> None:
    config, params = tb.load_hf(of_one_type)
    one = dataclasses.replace(config, id2label=("score",), problem_type="regression")
    params["classifier"] = jax.tree.map(lambda leaf: leaf[..., :1], params["classifier"])
    tb.save_hf(of_one_type, one, params, tb.load_tokenizer(of_one_type, one))
    assert json.loads((of_one_type / "config.json").read_text())["id2label"] == {"0": "score"}
    write_scored_reviews(tmp_path, reviews)
    source, stages = tb.DataSource(data=str(tmp_path)), (tb.Stage("supervised"),)
    loaded = load_inputs(tb.Experiment("regression", source, str(of_one_type), stages, max_length=16))
    assert loaded.keep_head
    assert loaded.config.id2label == ("score",)


def test_members_of_a_regression_may_call_their_output_differently(
    of_one_type: Path, reviews: Path, tmp_path: Path
) -> None:
    config, params = tb.load_hf(of_one_type)
    params["classifier"] = jax.tree.map(lambda leaf: leaf[..., :1], params["classifier"])
    write_scored_reviews(tmp_path, reviews)
    members = []
    for seed, name in enumerate(("score", "rating")):
        one = dataclasses.replace(config, id2label=(name,), problem_type="regression")
        tb.save_hf(tmp_path / name, one, params, tb.load_tokenizer(of_one_type, config))
        source, stages = tb.DataSource(data=str(tmp_path)), (tb.Stage("supervised"),)
        members.append(
            tb.Experiment("regression", source, str(tmp_path / name), stages, max_length=16, seed=seed, data_seed=0)
        )
    assert [loaded.config.id2label for loaded in load_population(members)] == [("score",)] * 2


def test_a_path_names_a_model_as_its_words_do() -> None:
    """In a process of its own: here the type checker refuses a path."""
    code = (
        "from pathlib import Path; import tinybert_jax as tb\n"
        "def made(path):\n"
        "    teachers = tb.Ensemble((path('a/t'), path('a/u')), layer_teacher=path('a/u'))\n"
        "    source = tb.DataSource(train=path('~/t.csv'), dev=path('d.csv'), unlabelled=(path('u.txt'),))\n"
        "    return tb.Experiment('sst2', source, path('a/m'), (tb.Stage('prediction'),), teachers)\n"
        "assert made(Path) == made(str)\n"
        "assert isinstance(made(Path).model, str)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("task", "several", "message"),
    [
        (
            "classification",
            True,
            r"\('bad', 'good'\), any number of them a text: the rows have the labels \('bad', 'goo",
        ),
        ("regression", False, r"whose labels are \('bad', 'good'\): the rows have numbers as labels"),
    ],
)
def test_a_note_says_why_a_classifier_is_new(
    task: str, several: bool, message: str, of_one_type: Path, reviews: Path, tmp_path: Path, capsys
) -> None:
    config, params = tb.load_hf(of_one_type)
    if several:
        config = dataclasses.replace(config, problem_type="multi_label_classification")
    other = tmp_path / "other"
    tb.save_hf(other, config, params, tb.load_tokenizer(of_one_type, config))
    (tmp_path / "scored").mkdir()
    write_scored_reviews(tmp_path / "scored", reviews)
    data = reviews if task == "classification" else tmp_path / "scored"
    stages = (tb.Stage("supervised"),)
    assert not load_inputs(
        tb.Experiment(task, tb.DataSource(data=str(data)), str(other), stages, max_length=16)
    ).keep_head
    assert re.search(message, capsys.readouterr().err)


def test_a_teacher_of_other_words_is_refused_only_where_a_stage_reads_it(blank_student: Path, tmp_path: Path) -> None:
    student, text = write_model(tmp_path / "student", words=("zzz",), **SIZES), tmp_path / "text.txt"
    text.write_text("the bag was fine .\nwe bought it .\n\n" * 20)
    source = tb.CorpusSource((str(text),))
    masked, layers = (
        tb.Experiment("corpus", source, str(student), (tb.Stage(name),), str(blank_student), max_length=16)
        for name in ("masked_lm", "transformer")
    )
    load_inputs(masked)
    with pytest.raises(
        tb.InputError, match="raw text is learnt token by token: take a student with the teacher's voc"
    ):
        load_inputs(layers)


def test_what_to_leave_out_is_what_was_given(of_one_type: Path, reviews: Path, tmp_path: Path) -> None:
    """The preset of the authors' code learns numbers from labels alone."""
    config, params = tb.load_hf(of_one_type)
    params["classifier"] = jax.tree.map(lambda leaf: leaf[..., :1], params["classifier"])
    one = dataclasses.replace(config, id2label=("score",), problem_type="regression")
    for name in ("one", "other"):
        tb.save_hf(tmp_path / name, one, params, tb.load_tokenizer(of_one_type, config))
    (tmp_path / "data").mkdir()
    write_scored_reviews(tmp_path / "data", reviews)
    stages, teachers = (tb.Stage("prediction"),), tb.Ensemble((str(tmp_path / "one"), str(tmp_path / "other")))
    source = tb.DataSource(data=str(tmp_path / "data"))
    experiment = tb.Experiment(
        "regression", source, str(tmp_path / "one"), stages, teachers, preset="official", max_length=16
    )
    with pytest.raises(
        tb.InputError, match="from labels alone: take one model as --teacher, or take another --preset"
    ):
        load_inputs(experiment)


@pytest.mark.parametrize(("labels", "readings"), [(("bad", "good"), 1), (("good", "bad"), 2)])
def test_the_training_rows_are_read_again_only_for_a_model_with_another_order_of_labels(
    labels: tuple[str, str], readings: int, of_one_type: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = tb.load_hf(of_one_type)
    config = dataclasses.replace(config, id2label=labels)
    tb.save_hf(of_one_type, config, params, tb.load_tokenizer(of_one_type, config))
    splits: list[str] = []

    def load_split(task: object, source: object, split: str, *args: object) -> object:
        splits.append(split)
        return kinds.load_split(task, source, split, *args)

    monkeypatch.setattr(material, "load_split", load_split)
    source, stages = tb.DataSource(data=str(reviews)), (tb.Stage("supervised"),)
    inputs = load_inputs(tb.Experiment("classification", source, str(of_one_type), stages, max_length=16))
    assert splits.count("train") == readings
    assert inputs.config.id2label == labels
    assert inputs.keep_head


def test_a_model_whose_outputs_are_not_finite_is_not_scored(of_one_type: Path, reviews: Path) -> None:
    config, params = tb.load_hf(of_one_type)
    params["classifier"]["kernel"] = jnp.full_like(params["classifier"]["kernel"], 3e38)  # two of them overflow
    tb.save_hf(of_one_type, config, params, tb.load_tokenizer(of_one_type, config))
    with pytest.raises(tb.InputError, match=f"^{of_one_type}: its outputs on the dev split are not finite"):
        evaluate.evaluate(str(of_one_type), "classification", tb.DataSource(data=str(reviews)), max_length=16)


def test_a_seed_of_the_augmentation_is_checked_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(tb.InputError, match=r"seed is -1; it must be a whole number in \[0, 2\*\*32\)"):
        build.build("no model", "sst2", tb.DataSource(data="d"), tmp_path / "out", seed=-1)


@pytest.mark.parametrize("wrong", ["vocabulary", "layer map"])
def test_a_corpus_is_built_when_all_else_fits(
    wrong: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of gigabytes takes hours to build."""
    monkeypatch.setattr("tinybert_jax.data.corpus.corpus.prepare", None)
    (tmp_path / "text.txt").write_text("we bought a bag of chips .\n")
    words = ("tea",) if wrong == "vocabulary" else ()
    other = write_model(tmp_path / "other", words=words, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    experiment = tb.Experiment(
        "corpus",
        tb.CorpusSource(files=(str(tmp_path / "text.txt"),)),
        str(other),
        (tb.Stage("transformer"),),
        teacher=str(pretrained),
        layer_map="uniform" if wrong == "vocabulary" else (3, 5),
        max_length=16,
    )
    with pytest.raises(tb.InputError, match="different vocabularies" if wrong == "vocabulary" else "layer"):
        load_inputs(experiment)


@pytest.mark.parametrize("model", [None, "tinybert-3l-192d"], ids=["directory", "preset"])
def test_parameters_wait_on_the_host(
    model: str | None, pretrained: Path, teacher_result: tb.Result, reviews: Path
) -> None:
    source, stages, teacher = (
        tb.DataSource(data=str(reviews)),
        (tb.Stage("prediction"),),
        str(teacher_result.directory),
    )
    described = tb.Experiment(
        "classification", source, model or str(pretrained), stages, teacher=teacher, max_length=16
    )
    (loaded,) = load_population([described])
    assert loaded.teacher_model is not None
    assert (loaded.loaded is None) == (model is not None)
    for params in (loaded.teacher_model.params, loaded.loaded, initial_params([described], [loaded])):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params)), "a second copy on a device"
