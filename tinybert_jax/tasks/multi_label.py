"""Multi-label classification: texts and pairs of texts with any number of classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinybert_jax.data.labels import written_labels
from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.tokens import tokenize
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import metrics, reading
from tinybert_jax.tasks.classes import class_rows
from tinybert_jax.tasks.split import Split, Table, chance_level, predictions_file

DELIMITER = ";"  # between labels in a predictions file, unless the source names another


def load_label_sets(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of texts with any number of classes; arguments and errors as in `tasks.kinds.load_split`.

    A class is predicted if its probability is above 0.5.
    """
    rows = read_rows(task, source, split, labels)
    tokens = tokenize(rows, tokenizer, max_length)

    def score(logits: np.ndarray) -> dict[str, float]:
        scores = {name: metrics.SET_METRICS[name](logits > 0, tokens.labels) for name in task.metrics}
        return scores | {task.selection: sum(scores.values()) / len(scores)}

    def skill(logits: np.ndarray) -> float:
        """The mean over classes of the correlation of logits and labels: it needs no threshold."""
        varied = [c for c in range(logits.shape[1]) if len(np.unique(tokens.labels[:, c])) > 1]
        return float(np.mean([metrics.pearson(logits[:, c], tokens.labels[:, c]) for c in varied])) if varied else 0.0

    def predictions(logits: np.ndarray) -> str:
        written = written_labels(task, rows.label_names)
        delimiter = source.label_delimiter or DELIMITER
        return predictions_file(delimiter.join(written[c] for c in np.flatnonzero(row > 0)) for row in logits)

    def tables(logits: np.ndarray) -> list[Table]:
        header, table = class_rows(rows.label_names, logits > 0, tokens.labels)
        best = [_best_threshold(logits[:, c], tokens.labels[:, c]) for c in range(logits.shape[1])]
        pairs = zip(table, best, strict=True)
        return [([*header, "best threshold", "its F1"], [[*row, f"{at:.2f}", f"{f1:.3f}"] for row, (at, f1) in pairs])]

    return Split(
        tokens,
        rows.label_names,
        rows.labels is not None,
        score,
        skill,
        predictions,
        task.selection,
        "correlation with the labels",
        chance_level(len(tokens)),  # a mean over classes varies less
        rows=rows,
        tables=tables,
        reading=lambda logits: reading.of_label_sets(rows, logits),
    )


def _best_threshold(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The threshold on a class's probability that gives the highest F1 on these rows, and this F1."""
    thresholds = np.arange(5, 100, 5) / 100
    scores = [metrics.f1((logits > math.log(t / (1 - t))).astype(int), labels) for t in thresholds]
    best = max(range(len(scores)), key=lambda i: (scores[i], -abs(thresholds[i] - 0.5)))
    return float(thresholds[best]), scores[best]
