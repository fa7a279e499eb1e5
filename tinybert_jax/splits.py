"""One split of any task, ready for a model: its tokens, and what the model's logits on them mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinybert_jax import data, metrics, ner, spans, squad, tasks
from tinybert_jax.config import InputError
from tinybert_jax.data import Tokens
from tinybert_jax.experiment import DataSource
from tinybert_jax.rows import Rows, read_rows, split_path
from tinybert_jax.tasks import Task

STRIDE = 128  # tokens that two windows over a context share, at most


@dataclass(frozen=True, eq=False)
class Split:
    """Tokens, and pure functions of a model's logits on them, in the order of the rows.

    `score` gives the task's metrics, `skill` how far the model is above chance (0) on the way to perfection (1), and
    `predictions` the content of a predictions file.
    """

    tokens: Tokens
    label_names: tuple[str, ...]  # by id; () in regression and for answers
    labelled: bool
    score: Callable[[np.ndarray], dict[str, float]]
    skill: Callable[[np.ndarray], float]
    predictions: Callable[[np.ndarray], str]
    rows: Rows | None = None  # what the tokens were made of, where it was rows


def load_split(
    task: Task,
    source: DataSource,
    split: tasks.SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None = None,
) -> Split:
    """Read, check and tokenise a split.

    Args:
        task: a row of the task table.
        source: where the split is.
        split: train, dev or test.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens a row.
        labels: the class names by id that are authoritative, say a teacher's; None: the task's, or those that
            the training file holds.

    Raises:
        InputError: something is missing, malformed (`path:line: reason`) or unknown.
    """
    if task.head != "sequence" and (source.text_columns or source.label_column):
        raise InputError(f"task {task.name!r} has files of one layout: leave out --text-columns and --label-column")
    if task.head == "span":
        return _answers(task, source, split, tokenizer, max_length)
    if task.head == "tokens":
        return _tags(task, source, split, tokenizer, max_length, labels)
    return _sequences(task, source, split, tokenizer, max_length, labels)


def _sequences(
    task: Task,
    source: DataSource,
    split: tasks.SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    rows = read_rows(task, source, split, labels)
    tokens = data.tokenize(rows, tokenizer, max_length)

    def skill(logits: np.ndarray) -> float:
        if task.is_regression:
            return metrics.pearson(logits[:, 0], tokens.labels)
        return metrics.matthews(logits.argmax(axis=1), tokens.labels)

    def predictions(logits: np.ndarray) -> str:
        if task.is_regression:
            values = [str(x) for x in logits[:, 0]]
        else:
            written = tasks.written_labels(task, rows.label_names)
            values = [written[i] for i in logits.argmax(axis=1)]
        # of a set whose rows are numbered, those numbers: some rows may have been left out
        numbers = range(len(values)) if source.tfds is None else rows.lines
        lines = (f"{i}\t{value}" for i, value in zip(numbers, values, strict=True))
        return "\n".join(["index\tprediction", *lines]) + "\n"

    return Split(
        tokens,
        rows.label_names,
        rows.labels is not None,
        lambda logits: tasks.score(task, logits, tokens.labels, rows.label_names),
        skill,
        predictions,
        rows,
    )


def _answers(task: Task, source: DataSource, split: tasks.SplitName, tokenizer: Any, max_length: int) -> Split:
    if source.tfds is not None:
        questions = squad.from_tfds(source.tfds, split)
    else:
        questions = squad.read_squad(split_path(task, source, split))
    # a window must go forward: of short ones, less is shared
    tokens, windows = spans.windows(questions, tokenizer, max_length, min(STRIDE, max_length // 4))

    def answers(logits: np.ndarray) -> list[str]:
        return spans.answers(questions, windows, tokens, logits)

    def score(logits: np.ndarray) -> dict[str, float]:
        return squad.score(questions, answers(logits))

    return Split(
        tokens,
        (),
        questions.labelled,
        score,
        lambda logits: score(logits)["f1"],
        lambda logits: squad.write(questions, answers(logits)),
    )


def _tags(
    task: Task,
    source: DataSource,
    split: tasks.SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    if source.tfds is not None:
        raise InputError("task 'ner' reads CoNLL files: give --data DIR, or --train FILE --dev FILE")
    sentences = ner.read_conll(split_path(task, source, split))
    if labels is None:
        train = sentences if split == "train" else ner.read_conll(split_path(task, source, "train"))
        labels = ner.discover_labels(train)
    tokens = ner.align(sentences, tokenizer, max_length, labels)

    def tags(logits: np.ndarray) -> list[list[str]]:
        return ner.tags(sentences, tokens, logits, labels)

    def score(logits: np.ndarray) -> dict[str, float]:
        return ner.score(sentences, tags(logits))

    return Split(
        tokens,
        labels,
        sentences.labelled,
        score,
        lambda logits: score(logits)["f1"],
        lambda logits: ner.write(sentences, tags(logits)),
    )
