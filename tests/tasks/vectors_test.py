"""The task of embeddings: single texts to learn from, pairs with a similarity to score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import make_tokenizer

import tinybert_jax as tb
from tinybert_jax.data.augmentation.build import build
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.split import Split
from tinybert_jax.tasks.vectors import cosines

PAIRS = "sentence1\tsentence2\tscore\nthe film\ta film\t5.0\ngood plot\tbad plot\t1.5\nso dull\tvery fine\t0.0\n"


def load(tmp_path: Path, source: tb.DataSource, split: str) -> Split:
    return load_split(TASKS["embedding"], source, split, make_tokenizer(tmp_path), 16)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "dev.tsv").write_text(PAIRS)
    (tmp_path / "more.txt").write_text("the film was good\n\nvery dull\n")
    (tmp_path / "train.csv").write_text("text,label\na fine film,1\n")
    return tmp_path


def test_training_rows_are_single_texts_without_labels(files: Path) -> None:
    source = tb.DataSource(
        train=str(files / "train.csv"), unlabelled=(str(files / "more.txt"),), dev=str(files / "dev.tsv")
    )
    train = load(files, source, "train")
    assert train.rows is not None
    assert train.rows.texts == [("a fine film",), ("the film was good",), ("very dull",)]
    assert not train.labelled
    assert not train.tokens.has_pairs
    alone = load(files, tb.DataSource(unlabelled=(str(files / "more.txt"),), dev=str(files / "dev.tsv")), "train")
    assert len(alone.tokens) == 2
    assert alone.tokens.fingerprint != train.tokens.fingerprint


def test_a_dev_set_is_scored_by_the_rank_of_cosines(files: Path) -> None:
    dev = load(files, tb.DataSource(dev=str(files / "dev.tsv")), "dev")
    assert len(dev.tokens) == 6
    assert not dev.tokens.has_pairs
    assert dev.rows is not None
    assert dev.rows.texts[:4] == [("the film",), ("good plot",), ("so dull",), ("a film",)]
    angles = np.radians([0, 0, 0, 10, 80, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1], [2], [3], [4], [5], [6]])
    expected = scipy.stats.spearmanr(np.cos(angles[3:]), [5, 1.5, 0]).statistic
    assert dev.score(vectors) == pytest.approx({"spearman": expected})
    assert dev.selection == "spearman"
    written = dev.predictions(vectors).splitlines()
    assert written[0] == "index\tprediction"
    np.testing.assert_allclose([float(line.split("\t")[1]) for line in written[1:]], np.cos(angles[3:]), rtol=1e-6)
    assert dev.reading is not None
    reading = dev.reading(vectors)
    assert [row.text for row in reading.rows] == ["the film / a film", "good plot / bad plot", "so dull / very fine"]
    assert [row.said for row in reading.rows] == ["0.985", "0.174", "0.766"]
    assert [row.score for row in reading.rows] == pytest.approx([0, -1 / 3, -1 / 3])


def test_a_zero_vector_has_no_cosine() -> None:
    assert cosines(np.zeros((4, 3))).tolist() == [0.0, 0.0]


def test_named_columns_are_of_training_rows_or_of_pairs_by_their_number(files: Path) -> None:
    (files / "train.csv").write_text("body\na fine film\n")
    (files / "dev.csv").write_text("left,right,alike\na film,the film,3\na plot,so good,1\n")
    paths = {"train": str(files / "train.csv"), "dev": str(files / "dev.tsv")}
    one = tb.DataSource(**paths, text_columns=("body",))
    assert load(files, one, "train").tokens.lengths.tolist() == [5]
    assert len(load(files, one, "dev").tokens) == 6
    two = tb.DataSource(dev=str(files / "dev.csv"), text_columns=("left", "right"), label_column="alike")
    assert len(load(files, two, "dev").tokens) == 4


def test_a_test_set_needs_no_similarities(files: Path) -> None:
    (files / "test.tsv").write_text("sentence1\tsentence2\nthe film\ta film\n")
    test = load(files, tb.DataSource(test=str(files / "test.tsv")), "test")
    assert not test.labelled
    assert test.predictions(np.ones((2, 3))).splitlines()[1].startswith("0\t1.0")


def test_what_the_task_cannot_read_is_refused(files: Path) -> None:
    with pytest.raises(tb.InputError, match=r"scored on pairs of texts, .* sentence1, sentence2 and score: add --dev"):
        load(files, tb.DataSource(train=str(files / "train.csv")), "dev")
    with pytest.raises(tb.InputError, match="leave out --dev-share, and add --dev FILE"):
        load(files, tb.DataSource(train=str(files / "train.csv"), dev_share=0.5), "train")
    with pytest.raises(tb.InputError, match="reads files: give --train and --dev instead of --tfds"):
        load(files, tb.DataSource(tfds="glue/stsb"), "dev")
    (files / "bad.tsv").write_text(PAIRS.replace("1.5", "alike"))
    with pytest.raises(tb.InputError, match=r"bad\.tsv:3: label 'alike' is not a number"):
        load(files, tb.DataSource(dev=str(files / "bad.tsv")), "dev")
    with pytest.raises(tb.InputError, match=r"train\.csv:1: no column 'body'"):
        load(files, tb.DataSource(train=str(files / "train.csv"), dev="x", text_columns=("body",)), "train")
    with pytest.raises(tb.InputError, match="augmentation is for texts"):
        build("no model", "embedding", tb.DataSource(train=str(files / "train.csv")), files / "out")
