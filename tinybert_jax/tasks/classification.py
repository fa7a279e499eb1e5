"""Classification and regression of texts and pairs of texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinybert_jax.data.labels import positive_class, written_labels
from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.tokens import tokenize
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import metrics, reading
from tinybert_jax.tasks.classes import FEW, class_rows, confusion
from tinybert_jax.tasks.metrics import METRICS
from tinybert_jax.tasks.split import Split, Table, chance_level, predictions_file


def score(task: Task, logits: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...] = ()) -> dict[str, float]:
    """The task's metrics, and under `task.selection` their mean.

    Args:
        task: a row of the task table.
        logits: [n, c]; c is 1 in regression.
        labels: class ids or numbers [n].
        label_names: the classes in the order of the ids; default: the task's.
    """
    if logits.ndim != 2 or len(logits) != len(labels) or (task.is_regression and logits.shape[1] != 1):
        columns = "1" if task.is_regression else "c"
        raise ValueError(f"logits {logits.shape} must be [n, {columns}] and labels {labels.shape} must be [n]")
    predictions = logits[:, 0] if task.is_regression else np.argmax(logits, axis=1)
    scores = {}
    for name in task.metrics:
        if name == "f1":
            positive = positive_class(task, label_names)
            scores[name] = metrics.f1((predictions == positive).astype(int), (labels == positive).astype(int))
        else:
            scores[name] = METRICS[name](predictions, labels)
    return scores | {task.selection: sum(scores.values()) / len(scores)}


def load_sequences(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of texts or pairs of texts; arguments and errors as in `tasks.kinds.load_split`."""
    rows = read_rows(task, source, split, labels)
    tokens = tokenize(rows, tokenizer, max_length)

    def skill(logits: np.ndarray) -> float:
        if task.is_regression:
            return metrics.pearson(logits[:, 0], tokens.labels)
        return metrics.matthews(logits.argmax(axis=1), tokens.labels)

    def majority(logits: np.ndarray) -> tuple[float, float]:
        share = np.bincount(tokens.labels).max() / len(tokens)
        return float(np.mean(logits.argmax(axis=1) == tokens.labels)), float(share)

    def predictions(logits: np.ndarray) -> str:
        if task.is_regression:
            values = [str(x) for x in logits[:, 0]]
        else:
            written = written_labels(task, rows.label_names)
            values = [written[i] for i in logits.argmax(axis=1)]
        # the rows of a TFDS set keep their numbers, because some rows may have been left out
        return predictions_file(values, None if source.tfds is None else rows.lines)

    def tables(logits: np.ndarray) -> list[Table]:
        names = rows.label_names
        if not 1 < len(names) <= FEW:
            return []
        predicted = logits.argmax(axis=1)
        each = (np.eye(len(names), dtype=int)[ids] for ids in (predicted, tokens.labels))
        return [class_rows(names, *each), confusion(names, predicted, tokens.labels)]

    return Split(
        tokens,
        rows.label_names,
        rows.labels is not None,
        lambda logits: score(task, logits, tokens.labels, rows.label_names),
        skill,
        predictions,
        task.selection,
        "correlation with the labels",
        chance_level(len(tokens)),
        None if task.is_regression else majority,
        rows,
        tables,
        lambda logits: reading.of_texts(rows, logits),
    )
