"""Rerankers: passages for queries, scored by the ranks of the relevant ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows, read_rows, split_path
from tinybert_jax.data.tokens import tokenize
from tinybert_jax.errors import InputError, note
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import reading
from tinybert_jax.tasks.metrics import RANKING_METRICS, pairs_in_order
from tinybert_jax.tasks.split import Split, chance_level, predictions_file

IN_ORDER = "pairs of passages in order, less those out of it"  # what `Split.skill` is


def load_passages(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of queries with their passages; arguments and errors as in `tasks.kinds.load_split`.

    Only queries with a relevant passage are scored; a note counts the others.
    """
    rows = read_rows(task, source, split)
    if len(rows.texts[0]) != 2:
        raise InputError(f"task {task.name!r} reads a query and a passage: name the columns of both in --text-columns")
    check_relevance(task, source, split, rows)
    passages, tokens = Passages.of(rows), tokenize(rows, tokenizer, max_length)
    scored = scored_queries(task, source, split, rows, passages)

    def mean(metric: Any, logits: np.ndarray) -> float:
        return float(np.mean([metric(logits[group, 0], passages.relevance[group]) for group in scored]))

    return Split(
        tokens,
        (),
        rows.labels is not None,
        lambda logits: {name: mean(RANKING_METRICS[name], logits) for name in task.metrics},
        lambda logits: mean(pairs_in_order, logits),
        lambda logits: predictions_file(logits[:, 0]),
        task.selection,
        IN_ORDER,
        chance_level(len(scored)),  # guesses reach it in fewer than 1 of 40 cases
        rows=rows,
        reading=lambda logits: reading.of_queries(
            [
                (
                    rows.texts[group[0]][0],
                    [rows.texts[i][1] for i in group],
                    logits[group, 0],
                    passages.relevance[group],
                )
                for group in scored
            ]
        ),
        passages=passages,
    )


def scored_queries(
    task: Task, source: DataSource, split: SplitName, rows: Rows, passages: Passages
) -> list[np.ndarray]:
    """The row numbers of each query with a relevant passage. A note counts the other queries of a dev or test split.

    Raises:
        InputError: a labelled dev or test split has no such query.
    """
    groups = passages.by_query()
    scored = [group for group in groups if (passages.relevance[group] > 0).any()]
    if split != "train" and rows.labels is not None and len(scored) < len(groups):
        path = split_path(task, source, split) if source.dev_share is None or split == "test" else "the dev set"
        if not scored:
            raise InputError(f"{path}: no query has a relevant passage, labelled above 0: there is nothing to score")
        count = f"{len(groups) - len(scored)} of {len(groups)} queries have no relevant passage"
        note(f"{path}: {count}, and are left out of the scores")
    return scored


def check_relevance(task: Task, source: DataSource, split: SplitName, rows: Rows) -> None:
    """Refuse a negative label.

    Raises:
        InputError: a label is negative. The message names the row.
    """
    negative = np.flatnonzero(rows.labels_or_zeros < 0)
    if len(negative):
        row = negative[0]
        where = f"{split_path(task, source, 'train' if source.dev_share is not None else split)}:{rows.lines[row]}"
        raise InputError(
            f"{where}: label {rows.labels_or_zeros[row]:g} is negative: relevance is 0 for none, and more for more"
        )
