"""Families beside BERT through every task and objective, by the real program, as teachers and as students."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    BAD,
    GOOD,
    NER_WORDS,
    NEUTRAL,
    QA_WORDS,
    logged,
    rewrite_reviews,
    write_conll,
    write_model,
    write_scored_reviews,
    write_squad,
)

import tinybert_jax as tb
from tinybert_jax.data.augmentation import build
from tinybert_jax.inference import evaluate
from tinybert_jax.training.run import Result

LENGTH = 24
MIDDLE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
LEARNING = {"batch_size": 32, "learning_rate": 5e-3, "evaluate_every": 10**6}
ARCHITECTURES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}
ARCHITECTURES |= {"electra": "Electra", "mpnet": "MPNet"}
TITLES = {"roberta": "A RoBERTa", "xlm-roberta": "An XLM-R", "distilbert": "A DistilBERT"}
TITLES |= {"electra": "An ELECTRA", "mpnet": "An MPNet"}
# XLM-R is RoBERTa with another tokenizer, whose windows, tags and sequences have tests of their own
ROBERTA = pytest.mark.parametrize("family", ["roberta"], indirect=True)
NARROWER = pytest.mark.parametrize("family", ["distilbert", "electra", "mpnet"], indirect=True)
LATEST = pytest.mark.parametrize("family", ["electra", "mpnet"], indirect=True)


def trained(
    out: Path,
    model: Path | str,
    task: str,
    source: Any,
    *stages: tb.Stage,
    teacher: Path | None = None,
    **settings: Any,
) -> Result:
    # of preset paper, batches have one length, and are compiled once
    settings = {"preset": "paper", "max_length": LENGTH} | settings
    named = None if teacher is None else str(teacher)
    return tb.run(tb.Experiment(task, source, str(model), stages, named, **settings), out)


@pytest.fixture(scope="module")
def pairs(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> tb.DataSource:
    """The reviews; the first text of each pair says nothing."""
    path = tmp_path_factory.mktemp("pairs")
    rewrite_reviews(path, reviews, "first\tsecond\tlabel", lambda text, label: f"the bag\twe {text}\t{label}")
    files = {name: str(path / f"{name}.tsv") for name in ("train", "dev")}
    return tb.DataSource(**files, text_columns=("first", "second"), label_column="label")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tb.CorpusSource:
    """Documents of short sentences out of three."""
    random = np.random.default_rng(0)
    words = [*NEUTRAL, *GOOD, *BAD]
    documents = ["\n".join(" ".join(np.roll(words, -i)[:6]) for i in random.integers(3, size=4)) for _ in range(30)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return tb.CorpusSource((str(path),), pairs=True)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def teacher(family: str, pairs: tb.DataSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is fine-tuned on the pairs."""
    path = tmp_path_factory.mktemp(family)
    model = write_model(path / "model", family=family, words=("!",), **MIDDLE)
    result = trained(path / "run", model, "classification", pairs, tb.Stage("supervised", epochs=12, **LEARNING))
    assert result.scores["accuracy"] > 0.9
    return result.directory


@pytest.mark.long
def test_a_classifier_of_pairs_is_described_evaluated_and_asked(
    family: str, teacher: Path, pairs: tb.DataSource
) -> None:
    config = json.loads((teacher / "config.json").read_text())
    assert config["architectures"] == [f"{ARCHITECTURES[family]}ForSequenceClassification"]
    assert config["model_type"] == family
    assert f"{TITLES[family]} of 2 layers" in (teacher / "README.md").read_text()
    types = {"roberta": 1, "xlm-roberta": 1, "distilbert": None, "electra": 2, "mpnet": None}
    assert config.get("type_vocab_size") == types[family]
    assert evaluate.evaluate(str(teacher), "classification", pairs)["accuracy"] > 0.9
    answers = tb.load_predictor(teacher)([("the bag", "we bought lovely chips"), ("the bag", "we bought awful chips")])
    assert [answer.label for answer in answers] == ["good", "bad"]


@pytest.mark.long
@ROBERTA
def test_masked_words_are_learnt_and_propose_the_variants_that_a_student_learns_from(
    family: str, teacher: Path, pairs: tb.DataSource, corpus: tb.CorpusSource, tmp_path: Path
) -> None:
    stage = tb.Stage("masked_lm", epochs=12, batch_size=16, learning_rate=1e-2)
    model = trained(tmp_path / "lm", teacher, "corpus", corpus, stage).directory
    losses = [line["loss"] for line in logged(tmp_path / "lm")]
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == [f"{ARCHITECTURES[family]}ForMaskedLM"]
    table = tmp_path / "table"
    samples = build.build(str(model), "classification", pairs, table, variants=3, max_length=LENGTH)
    assert any(row[0] != variant for row in samples for variant in row[1:])
    # general distillation from a spectral start, then the task, on the variants
    general = tb.Stage("transformer", epochs=6, batch_size=16, learning_rate=1e-2)
    student = trained(
        tmp_path / "general", "2x16", "corpus", corpus, general, teacher=model, start="spectral"
    ).directory
    lines = logged(tmp_path / "general")
    for term in ("embedding", "attention/1", "hidden/2"):
        assert lines[-1][term] < lines[0][term], term
    stages = (
        tb.Stage("transformer", epochs=1, learning_rate=1e-2),
        tb.Stage("prediction", epochs=6, learning_rate=1e-2, evaluate_every=10**6),
    )
    settings = {"teacher": teacher, "augmented": str(table)}
    result = trained(tmp_path / "run", student, "classification", pairs, *stages, **settings)
    assert result.scores["accuracy"] > 0.9


@pytest.mark.long
@ROBERTA
def test_a_copy_attends_as_its_teacher(teacher: Path, pairs: tb.DataSource, tmp_path: Path) -> None:
    one = tb.Stage("transformer", max_steps=1, learning_rate=1e-9)
    for start in ("random", "copy"):
        trained(tmp_path / start, "2x32", "classification", pairs, one, teacher=teacher, start=start)
    random, copy = (logged(tmp_path / start)[0] for start in ("random", "copy"))
    for term in ("attention/1", "attention/2"):
        assert copy[term] < 0.5 * random[term]


@pytest.mark.long
@ROBERTA
@pytest.mark.parametrize(
    ("task", "write", "words"), [("squad", write_squad, QA_WORDS), ("ner", write_conll, NER_WORDS)]
)
def test_answers_and_tags_are_learnt_on_the_right_words(
    family: str, task: str, write: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    source = tb.DataSource(data=str(write(tmp_path / "data")))
    model = write_model(tmp_path / "model", family=family, words=words, **MIDDLE)
    stage = tb.Stage("supervised", epochs=20, **LEARNING | {"batch_size": 16})
    result = trained(tmp_path / "run", model, task, source, stage, max_length=32)
    assert result.scores["f1"] > 0.8
    predictions = tmp_path / "predictions"
    assert evaluate.evaluate(str(result.directory), task, source, predictions=predictions) == result.scores


@pytest.mark.long
@pytest.mark.parametrize("family", ["roberta", "distilbert"], indirect=True)
def test_a_number_is_learnt(family: str, reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_scored_reviews(tmp_path / "data", reviews)
    model = write_model(tmp_path / "model", family=family, **MIDDLE)
    source = tb.DataSource(data=str(tmp_path / "data"))
    stage = tb.Stage("supervised", epochs=12, **LEARNING)
    assert trained(tmp_path / "run", model, "regression", source, stage).scores["pearson"] > 0.8


@pytest.mark.long
@ROBERTA
def test_a_bert_learns_from_another_family_predictions_and_in_one_vocabulary_layers(
    teacher: Path, pairs: tb.DataSource, tmp_path: Path
) -> None:
    bert = write_model(tmp_path / "bert", hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    stage = tb.Stage("prediction", epochs=12, learning_rate=1e-2, evaluate_every=10**6)
    result = trained(tmp_path / "run", bert, "classification", pairs, stage, teacher=teacher)
    assert result.scores["accuracy"] > 0.9
    layers = tb.Stage("transformer", epochs=2, learning_rate=1e-2)
    with pytest.raises(tb.InputError, match=r"different vocabularies, .*\(--stage prediction\)"):
        trained(tmp_path / "no", bert, "classification", pairs, layers, teacher=teacher)
    config, _ = tb.load_hf(bert)
    tokenizer = tb.load_tokenizer(teacher, tb.load_hf(teacher)[0])
    config = dataclasses.replace(config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    params = {"encoder": tb.init_params(tb.BertModel(config), jax.random.key(0))}
    tb.save_hf(tmp_path / "same", config, params, tokenizer)
    trained(tmp_path / "layers", tmp_path / "same", "classification", pairs, layers, teacher=teacher)
    lines = logged(tmp_path / "layers")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert json.loads((tmp_path / "layers/student/config.json").read_text())["model_type"] == "bert"


@pytest.fixture(scope="module")
def masked_lm(corpus: tb.CorpusSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a masked-LM head."""
    path = tmp_path_factory.mktemp("bert")
    model = write_model(path / "model", words=("!",), **MIDDLE)
    stage = tb.Stage("masked_lm", epochs=12, batch_size=16, learning_rate=1e-2)
    return trained(path / "lm", model, "corpus", corpus, stage).directory


@pytest.mark.long
def test_the_recipe_of_distilbert_makes_a_distilbert_that_learns_a_task(
    masked_lm: Path, corpus: tb.CorpusSource, pairs: tb.DataSource, tmp_path: Path
) -> None:
    recipe = tb.Stage("distilbert", epochs=6, batch_size=16, learning_rate=5e-3)
    settings = {"teacher": masked_lm, "preset": "default", "layer_map": "top"}
    general = trained(tmp_path / "general", "1x32", "corpus", corpus, recipe, **settings).directory
    lines = logged(tmp_path / "general")
    for term in ("soft", "hard", "cosine"):
        assert np.mean([line[term] for line in lines[-5:]]) < lines[0][term], term
    config = json.loads((general / "config.json").read_text())
    assert (config["architectures"], config["n_layers"]) == (["DistilBertForMaskedLM"], 1)
    assert config["seq_classif_dropout"] == 0.2
    tokenizer = tb.load_tokenizer(general, tb.load_hf(general)[0])
    assert "token_type_ids" not in tokenizer("a bag", "a film")
    assert "[DistilBERT](https://arxiv.org/abs/1910.01108)" in (general / "README.md").read_text()
    teacher = trained(
        tmp_path / "teacher", masked_lm, "classification", pairs, tb.Stage("supervised", epochs=12, **LEARNING)
    )
    stages = (
        tb.Stage("transformer", epochs=1, learning_rate=1e-2),
        tb.Stage("prediction", epochs=6, learning_rate=1e-2, evaluate_every=10**6),
    )
    settings = {"teacher": teacher.directory, "preset": "default"}
    result = trained(tmp_path / "run", general, "classification", pairs, *stages, **settings)
    assert result.scores["accuracy"] > 0.9
    config = json.loads((result.directory / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    answers = tb.load_predictor(result.directory)([("the bag", "we bought awful chips")])
    assert answers[0].label == "bad"


@pytest.mark.long
def test_a_distilbert_starts_with_the_function_of_its_teacher_on_single_texts(
    masked_lm: Path, corpus: tb.CorpusSource, tmp_path: Path
) -> None:
    stage = tb.Stage("distilbert", max_steps=1, batch_size=16, learning_rate=1e-12)
    single = dataclasses.replace(corpus, pairs=False)
    student = trained(
        tmp_path / "run", "2x32", "corpus", single, stage, teacher=masked_lm, preset="default", start="copy"
    ).directory
    ids = jnp.array([[2, 6, 7, 8, 9, 3]])
    outputs = []
    for path in (masked_lm, student):
        config, params = tb.load_hf(path)
        outputs.append(np.asarray(tb.BertForMaskedLM(config).apply({"params": params}, ids).logits))
    np.testing.assert_allclose(*outputs, atol=1e-5)


@pytest.mark.long
@NARROWER
def test_a_model_teaches_a_narrower_one_from_a_spectral_start(
    family: str, teacher: Path, pairs: tb.DataSource, tmp_path: Path
) -> None:
    stage = tb.Stage("transformer", max_steps=2)
    for start in ("spectral", "random"):
        trained(tmp_path / start, "2x16", "classification", pairs, stage, teacher=teacher, start=start)
    spectral, random = (logged(tmp_path / start)[0] for start in ("spectral", "random"))
    assert spectral["hidden/2"] < 0.5 * random["hidden/2"]
    assert json.loads((tmp_path / "spectral/student/config.json").read_text())["model_type"] == family


@pytest.mark.long
@LATEST
def test_layers_and_then_predictions_are_learnt_of_a_teacher_of_the_same_family(
    family: str, teacher: Path, pairs: tb.DataSource, tmp_path: Path
) -> None:
    stages = (
        tb.Stage("transformer", epochs=16, learning_rate=5e-3),
        tb.Stage("prediction", epochs=6, learning_rate=1e-2, evaluate_every=10**6),
    )
    result = trained(tmp_path / "run", "1x16", "classification", pairs, *stages, teacher=teacher, preset="default")
    assert result.scores["accuracy"] > 0.9
    lines = [line for line in logged(tmp_path / "run") if line["stage"] == "1-transformer" and "loss" in line]
    assert lines[-1]["attention/1"] < lines[0]["attention/1"]
    config = json.loads((result.directory / "config.json").read_text())
    assert config["architectures"] == [f"{ARCHITECTURES[family]}ForSequenceClassification"]


@pytest.mark.long
def test_the_recipe_of_distilbert_asks_for_a_masked_lm_of_its_width(
    masked_lm: Path, pretrained: Path, corpus: tb.CorpusSource, tmp_path: Path
) -> None:
    stage = tb.Stage("distilbert", max_steps=1)
    with pytest.raises(tb.InputError, match="holds no masked-LM head; train one first: tinybert pretrain --recipe"):
        trained(tmp_path / "run", "1x32", "corpus", corpus, stage, teacher=pretrained)
    with pytest.raises(tb.InputError, match="equal hidden_size: the student has 16, the teacher 32; the recipe 'tr"):
        trained(tmp_path / "run", "1x16", "corpus", corpus, stage, teacher=masked_lm)
