"""Embedding tasks: vectors are learnt from single texts, and scored on pairs of texts with a similarity."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tinybert_jax.data.rows import Rows, read_rows, read_texts
from tinybert_jax.data.tokens import Tokens, tokenize
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.tokenizer import prompt_of
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import metrics, reading
from tinybert_jax.tasks.metrics import METRICS
from tinybert_jax.tasks.split import Split, chance_level, predictions_file

TRAINING_COLUMNS = ("text",)  # the default


def load_vectors(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of single texts, for training, or of pairs with a similarity; arguments and errors as in
    `tasks.kinds.load_split`.

    For n pairs there are 2 n rows of single texts: first the first texts of all pairs, then the second ones. So logits
    are [2 n, d]. If the source names one column or template, it is for training rows; if it names two, they are for
    pairs.
    """
    check_has_dev(task, source, split)
    if split == "train":
        task = dataclasses.replace(task, text_columns=TRAINING_COLUMNS)
        rows = read_texts(task, with_texts(source, 1))
    else:
        pairs = read_rows(task, with_texts(source, 2), split)
        rows = _apart(pairs)
    tokens = prompted_tokens(rows, tokenizer, max_length)

    def score(logits: np.ndarray) -> dict[str, float]:
        return {name: METRICS[name](cosines(logits), pairs.labels_or_zeros) for name in task.metrics}

    def skill(logits: np.ndarray) -> float:
        return metrics.spearman(cosines(logits), pairs.labels_or_zeros)

    return Split(
        tokens,
        (),
        rows.labels is not None,
        score,
        skill,
        lambda logits: predictions_file(cosines(logits)),
        task.selection,
        "correlation with the similarities",
        chance_level(len(tokens) // 2),
        rows=rows,
        reading=lambda logits: reading.of_pairs(pairs, cosines(logits)),
    )


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of the two vectors of each pair [n], from vectors [2 n, d]; 0 if one of them is zero.

    >>> cosines(np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 2.0], [1.0, 0.0]])).round(3).tolist()
    [0.707, 0.0]
    """
    first, second = np.split(normalized(vectors), 2)
    return np.sum(first * second, axis=1)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] divided by their lengths. A zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def prompted_tokens(rows: Rows, tokenizer: Any, max_length: int) -> Tokens:
    """The tokens of single texts, with the model's default prompt before each, if it has one."""
    prompt = prompt_of(tokenizer)  # is part of the tokenizer's fingerprint, and so of the tokens'
    prompted = dataclasses.replace(rows, texts=[(f"{prompt}{text}",) for (text,) in rows.texts]) if prompt else rows
    return tokenize(prompted, tokenizer, max_length)


def check_has_dev(task: Task, source: DataSource, split: SplitName) -> None:
    """Refuse a source without a dev set of pairs, because none can be taken from single texts.

    Raises:
        InputError: there is no dev set. The message names the columns of pairs.
    """
    if source.dev_share is not None or (split == "dev" and source.data is None and source.dev is None):
        instead = "leave out --dev-share, and " if source.dev_share is not None else ""
        raise InputError(
            f"task {task.name!r} is scored on pairs of texts, in the columns {', '.join(task.text_columns)} and"
            f" {task.label_column}: {instead}add --dev FILE"
        )


def with_texts(source: DataSource, count: int) -> DataSource:
    """The source, without its columns or templates unless there are `count` of them."""
    named = source.text_template or source.text_columns
    return source if len(named) == count else dataclasses.replace(source, text_columns=(), text_template=())


def _apart(pairs: Rows) -> Rows:
    """The texts of pairs as rows: first the first texts of all pairs, then the second ones."""
    texts = [(text[side],) for side in (0, 1) for text in pairs.texts]
    labels = None if pairs.labels is None else np.tile(pairs.labels, 2)
    digest = hashlib.sha256(f"{pairs.fingerprint} apart".encode()).hexdigest()
    return Rows(texts, labels, (), digest, [*pairs.lines] * 2)
