"""The task of rerankers: its metrics by hand, its rows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_tokenizer

import tinybert_jax as tb
from tinybert_jax.data.augmentation.build import build
from tinybert_jax.settings.tasks import TASKS
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.metrics import ndcg, pairs_in_order, reciprocal_rank
from tinybert_jax.tasks.split import Split

# of three queries, the second without a relevant passage, the rows of the third apart
ROWS = [
    ("good film", "the film", "0"),
    ("good film", "a good film", "2"),
    ("good film", "a fine plot", "1"),
    ("dull", "very fine", "0"),
    ("plot", "was good", "0"),
    ("dull", "so bad", "0"),
    ("plot", "the plot", "1"),
]
LOG3 = float(np.log2(3))


def write(path: Path, rows: list[tuple[str, str, str]] = ROWS) -> str:
    path.write_text("\n".join("\t".join(row) for row in [("query", "passage", "label"), *rows]) + "\n")
    return str(path)


def load(tmp_path: Path, source: tb.DataSource, split: str = "dev") -> Split:
    return load_split(TASKS["ranking"], source, split, make_tokenizer(tmp_path), 16)  # type: ignore[arg-type]


def logits(*scores: float) -> np.ndarray:
    return np.array(scores, np.float32)[:, None]


@pytest.mark.parametrize(
    ("scores", "relevance", "reciprocal", "gain"),
    [
        ([3, 2, 1], [1, 0, 0], 1, 1),
        ([1, 2, 3], [1, 0, 0], 1 / 3, 1 / 2),
        ([3, 2, 1], [0, 3, 1], 1 / 2, (3 / LOG3 + 1 / 2) / (3 + 1 / LOG3)),
        ([3, 2, 1], [0, 0, 0], 0, 0),
        ([5], [2], 1, 1),
        # of equal scores, the less relevant comes first, wherever it stands
        ([1, 1], [1, 0], 1 / 2, 1 / LOG3),
        ([1, 1], [0, 1], 1 / 2, 1 / LOG3),
        ([2, 1, 1], [1, 2, 0], 1, (1 + 2 / 2) / (2 + 1 / LOG3)),
        # ten ranks count
        (range(11, 0, -1), [0] * 9 + [1, 0], 1 / 10, 1 / float(np.log2(11))),
        (range(11, 0, -1), [0] * 10 + [1], 0, 0),
        (range(11), [1] * 11, 1, 1),
    ],
)
def test_metrics_of_a_query_by_hand(scores, relevance: list[int], reciprocal: float, gain: float) -> None:
    arrays = np.array(scores, np.float32), np.array(relevance, np.float32)
    assert reciprocal_rank(*arrays) == pytest.approx(reciprocal)
    assert ndcg(*arrays) == pytest.approx(gain)


def test_pairs_in_order_by_hand() -> None:
    relevance = np.array([2, 1, 0, 0], np.float32)
    for scores, expected in (([4, 3, 2, 1], 1), ([1, 2, 3, 4], -1), ([1, 1, 1, 1], 0), ([4, 2, 2, 3], 2 / 5)):
        assert pairs_in_order(np.array(scores), relevance) == pytest.approx(expected)
    assert pairs_in_order(np.array([1, 2]), np.array([1, 1])) == 0


def test_scores_are_means_over_the_queries_with_a_relevant_passage(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "dev.tsv")
    split = load(tmp_path, tb.DataSource(dev=path))
    note = f"note: {path}: 1 of 3 queries have no relevant passage, and are left out of the scores"
    assert note in capsys.readouterr().err.splitlines()
    assert split.selection == "ndcg_at_10"
    outputs = logits(3, 2, 1, 9, 0, 9, 5)  # the first query's best passage is second, the third's first
    first = (2 / LOG3 + 1 / 2) / (2 + 1 / LOG3)
    assert split.score(outputs) == pytest.approx({"ndcg_at_10": (first + 1) / 2, "mrr_at_10": 3 / 4})
    assert split.skill(outputs) == pytest.approx((-1 / 3 + 1) / 2)
    assert split.failure(logits(1, 1, 1, 1, 1, 1, 1)).startswith("it is no better than chance (pairs of passages")
    assert split.predictions(outputs).splitlines()[:2] == ["index\tprediction", "0\t3.0"]
    assert split.reading is not None
    judged = split.reading(outputs).rows
    assert [(row.text, row.label, row.said) for row in judged] == [
        ("good film", "a good film", "the film"),
        ("plot", "the plot", "the plot"),
    ]
    assert [row.score for row in judged] == pytest.approx([first, 1])


def test_training_rows_are_grouped_by_query_with_or_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv")
    write(tmp_path / "more.tsv", [("dull", "a film", "?"), ("new", "a plot", "?"), ("new", "bad", "?")])
    source = tb.DataSource(train=str(tmp_path / "train.tsv"), unlabelled=(str(tmp_path / "more.tsv"),))
    split = load(tmp_path, source, "train")
    assert split.passages is not None
    assert split.passages.groups(3).tolist() == [[1, 0, -1], [2, 0, -1], [3, 5, 7], [6, 4, -1], [8, 9, -1]]
    assert split.tokens.has_pairs


def test_a_dev_set_that_is_split_off_has_whole_queries(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", [*ROWS, *[(f"q{i}", "so fine", str(i % 2)) for i in range(20) for _ in "ab"]])
    source = tb.DataSource(train=path, dev_share=0.2)
    train, dev = (load(tmp_path, source, split) for split in ("train", "dev"))
    assert train.rows is not None
    assert dev.rows is not None
    queries = [{query for query, _ in split.rows.texts} for split in (train, dev) if split.rows is not None]
    assert not queries[0] & queries[1]
    assert len(train.rows.texts) + len(dev.rows.texts) == len(ROWS) + 40


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        (
            [("a", "b", "1"), ("a", "c", "-2")],
            {},
            r"dev\.tsv:3: label -2 is negative: relevance is 0 for none, and more",
        ),
        ([("a", "b", "0"), ("a", "c", "0")], {}, r"dev\.tsv: no query has a relevant passage, labelled above 0"),
        ([("a", "b", "yes")], {}, r"dev\.tsv:2: label 'yes' is not a number"),
        (ROWS, {"text_columns": ("passage",)}, "task 'ranking' reads a query and a passage: name the columns of both"),
        (ROWS, {"text_columns": ("question", "passage")}, "no column 'question'"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(
    rows: list[tuple[str, str, str]], source: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(tb.InputError, match=message):
        load(tmp_path, tb.DataSource(dev=write(tmp_path / "dev.tsv", rows), **source))


def test_what_the_task_has_not_is_refused(tmp_path: Path) -> None:
    source = tb.DataSource(train=write(tmp_path / "train.tsv"), dev=write(tmp_path / "dev.tsv"))
    with pytest.raises(tb.InputError, match="task 'ranking' reads files: give --train and --dev instead of --tfds"):
        load(tmp_path, tb.DataSource(tfds="glue/stsb"))
    with pytest.raises(tb.InputError, match="task 'ranking' is trained on its own rows"):
        build("no model", "ranking", source, tmp_path / "out")
