"""The task of retrieval: every passage of the file is a candidate for every query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_tokenizer

import tinybert_jax as tb
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.metrics import pairs_in_order
from tinybert_jax.tasks.split import Split

# the passage "the plot" is named beside one query, and is a candidate for both; "dull" has no relevant passage
ROWS = (
    "good film\ta good film\t2\nplot\tthe plot\t1\ngood film\tso bad\t0\ndull\tso bad\t0\ngood film\ta fine plot\t1\n"
)
# of the queries good film, plot and dull, and the passages a good film, the plot, so bad and a fine plot
ANGLES = np.radians([0, 90, 45, 30, 60, 5, 20])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) * np.arange(1, 8)[:, None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "dev.tsv").write_text(f"query\tpassage\tlabel\n{ROWS}")
    return tmp_path


def load(path: Path, source: tb.DataSource, split: str = "dev") -> Split:
    return load_split(TASKS["retrieval"], source, split, make_tokenizer(path), 16)  # type: ignore[arg-type]


def test_a_query_ranks_all_passages_of_the_file(path: Path, capsys: pytest.CaptureFixture) -> None:
    dev = load(path, tb.DataSource(dev=str(path / "dev.tsv")))
    assert dev.rows is not None
    texts = [text for (text,) in dev.rows.texts]
    assert texts == ["good film", "plot", "dull", "a good film", "the plot", "so bad", "a fine plot"]
    assert len(dev.tokens) == 7
    assert not dev.tokens.has_pairs
    assert "1 of 3 queries have no relevant passage, and are left out" in capsys.readouterr().err
    # good film: so bad (0), a fine plot (1), a good film (2), the plot (0); plot: the plot (1) first
    gain = (1 / np.log2(3) + 2 / np.log2(4)) / (2 + 1 / np.log2(3))
    assert dev.score(VECTORS) == pytest.approx({"ndcg_at_10": (gain + 1) / 2, "mrr_at_10": (1 / 2 + 1) / 2})
    # good film: of 2 x 2 pairs with an irrelevant passage 2 are in order, and 1 of 2 relevant ones is not
    assert dev.skill(VECTORS) == pytest.approx(((2 - 3) / 5 + 1) / 2)
    assert dev.selection == "ndcg_at_10"
    written = dev.predictions(VECTORS).splitlines()
    assert written[0] == "index\tprediction"
    angles = np.radians([30, 30, 5, 40, 20])  # between the query and the passage of each row
    np.testing.assert_allclose([float(line.split("\t")[1]) for line in written[1:]], np.cos(angles), rtol=1e-6)
    assert dev.reading is not None
    first, second = dev.reading(VECTORS).rows
    assert (first.text, first.label, first.said) == ("good film", "a good film", "so bad")
    assert (second.text, second.label, second.said, second.score) == ("plot", "the plot", "the plot", 1.0)
    assert not dev.is_constant


def test_training_rows_are_single_texts(path: Path) -> None:
    (path / "more.txt").write_text("the film was good\nvery dull\n")
    train = load(path, tb.DataSource(unlabelled=(str(path / "more.txt"),), dev=str(path / "dev.tsv")), "train")
    assert train.rows is not None
    assert train.rows.texts == [("the film was good",), ("very dull",)]


def test_what_cannot_be_scored_is_refused(path: Path) -> None:
    with pytest.raises(
        tb.InputError, match="scored on pairs of texts, in the columns query, passage and label: leave"
    ):
        load(path, tb.DataSource(train="more.tsv", dev_share=0.1), "train")
    (path / "dev.tsv").write_text("query\tpassage\tlabel\na\tb\t0\na\tc\t0\n")
    with pytest.raises(tb.InputError, match="no query has a relevant passage, labelled above 0: there is nothing"):
        load(path, tb.DataSource(dev=str(path / "dev.tsv")))
    (path / "dev.tsv").write_text("query\tpassage\tlabel\na\tb\t-1\n")
    with pytest.raises(tb.InputError, match=r"dev.tsv:2: label -1 is negative: relevance is 0 for none"):
        load(path, tb.DataSource(dev=str(path / "dev.tsv")))


def test_many_irrelevant_passages_need_no_table_of_all_pairs() -> None:
    random, relevance = np.random.default_rng(0), np.zeros(200_000, np.float32)
    scores = random.random(200_000)
    relevance[:2] = 1
    expected = np.mean([np.mean(np.sign(scores[i] - scores[2:])) for i in (0, 1)])
    assert pairs_in_order(scores, relevance) == pytest.approx(expected)
