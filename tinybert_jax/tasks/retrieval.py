"""Retrieval by vectors: queries, each with a ranking of all passages."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows, read_rows
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import reading
from tinybert_jax.tasks.metrics import RANKING_METRICS, pairs_in_order
from tinybert_jax.tasks.ranking import IN_ORDER, check_relevance, scored_queries
from tinybert_jax.tasks.split import Split, chance_level, predictions_file
from tinybert_jax.tasks.vectors import check_has_dev, load_vectors, normalized, prompted_tokens, with_texts


def load_retrieval(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of single texts, for training, or of queries with passages; arguments and errors as in
    `tasks.kinds.load_split`.

    A query is compared with all passages of the file. A passage without a row with this query has relevance 0 for it.
    Each query and each passage is computed once: logits are [q + p, d], first the queries, then the passages, in the
    order in which they first appear.
    """
    if split == "train":
        return load_vectors(task, source, split, tokenizer, max_length, labels)
    check_has_dev(task, source, split)
    pairs = read_rows(task, with_texts(source, 2), split)
    check_relevance(task, source, split, pairs)
    queries = Passages.of(pairs)
    numbers: dict[str, int] = {}
    passage = np.array([numbers.setdefault(text, len(numbers)) for _, text in pairs.texts])
    groups = scored_queries(task, source, split, pairs, queries)
    texts = [*dict.fromkeys(query for query, _ in pairs.texts)]
    count = len(texts)
    highest = np.zeros(count + len(numbers), np.float32)  # for each text; 0 for a query
    np.maximum.at(highest, count + passage, pairs.labels_or_zeros)
    rows = Rows(
        [(text,) for text in (*texts, *numbers)],
        None if pairs.labels is None else highest,
        (),
        hashlib.sha256(f"{pairs.fingerprint} once".encode()).hexdigest(),
        [0] * len(highest),
    )

    def ranked(vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query that is scored, the cosines and the relevance of all passages."""
        unit = normalized(vectors)
        result = []
        for group in groups:
            relevance = np.zeros(len(numbers), np.float32)
            np.maximum.at(relevance, passage[group], pairs.labels_or_zeros[group])
            result.append((unit[count:] @ unit[queries.queries[group[0]]], relevance))
        return result

    def score(vectors: np.ndarray) -> dict[str, float]:
        each = ranked(vectors)
        return {name: float(np.mean([RANKING_METRICS[name](*one) for one in each])) for name in task.metrics}

    def predictions(vectors: np.ndarray) -> str:
        unit = normalized(vectors)
        cosines = np.sum(unit[queries.queries] * unit[count + passage], axis=1)
        return predictions_file(cosines)

    names = [*numbers]
    return Split(
        prompted_tokens(rows, tokenizer, max_length),
        (),
        pairs.labels is not None,
        score,
        lambda vectors: float(np.mean([pairs_in_order(*one) for one in ranked(vectors)])),
        predictions,
        task.selection,
        IN_ORDER,
        chance_level(len(groups)),  # as in tasks.ranking
        rows=rows,
        reading=lambda vectors: reading.of_queries(
            [(pairs.texts[group[0]][0], names, *one) for group, one in zip(groups, ranked(vectors), strict=True)]
        ),
    )
