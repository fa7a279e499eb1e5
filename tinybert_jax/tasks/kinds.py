"""The table of kinds of task: how a split of each is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tinybert_jax.errors import InputError
from tinybert_jax.models.files.tokenizer import trained_template
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import (
    ANSWERS,
    CLASSIFICATION,
    MULTI_LABEL,
    RANKING,
    REGRESSION,
    RETRIEVAL,
    TAGS,
    VECTORS,
    SplitName,
    Task,
    get_task,
)
from tinybert_jax.tasks.classification import load_sequences
from tinybert_jax.tasks.multi_label import load_label_sets
from tinybert_jax.tasks.ner import load_tags
from tinybert_jax.tasks.ranking import load_passages
from tinybert_jax.tasks.retrieval import load_retrieval
from tinybert_jax.tasks.spans import load_answers
from tinybert_jax.tasks.split import Split
from tinybert_jax.tasks.vectors import load_vectors

FIRST = "dev"  # the name of the first dev or test set
LOADERS: dict[str, Callable[..., Split]] = {
    CLASSIFICATION.name: load_sequences,
    MULTI_LABEL.name: load_label_sets,
    REGRESSION.name: load_sequences,
    ANSWERS.name: load_answers,
    TAGS.name: load_tags,
    VECTORS.name: load_vectors,
    RETRIEVAL.name: load_retrieval,
    RANKING.name: load_passages,
}


def load_split(
    task: Task,
    source: DataSource,
    split: SplitName,
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
        labels: a model's class names by id, which tasks without class names ignore; None: the task's, or those in
            the training file.

    Raises:
        InputError: something is missing, malformed (`path:line: reason`) or unknown.
    """
    if not task.kind.has_columns and source.names_columns:
        raise InputError(
            f"task {task.name!r} has files of one layout: leave out --text-columns, --text-template, --label-column"
            " and --id-column"
        )
    if not task.kind.has_columns and (source.unlabelled or source.dev_share is not None):
        raise InputError(f"task {task.name!r} has no texts in columns: leave out --unlabelled and --dev-share")
    if source.recombine_to and not task.kind.has_variants:
        raise InputError(f"task {task.name!r} has no rows that can be recombined: leave out --recombine-to")
    if source.label_delimiter is not None and not task.is_multi_label:
        raise InputError(
            f"task {task.name!r} has one label a row: leave out --label-delimiter, or take --task multi_label"
        )
    if source.tfds is not None and (task.is_multi_label or not task.kind.labels_each_row):
        raise InputError(f"task {task.name!r} reads files: give --train and --dev instead of --tfds")
    names = labels if task.kind.names_classes else None
    return LOADERS[task.kind.name](task, source, split, tokenizer, max_length, names)


def with_template_of(tokenizer: Any, task: Task, source: DataSource) -> DataSource:
    """The source with the text template of a model's tokenizer, unless the source names columns or a template."""
    if source.text_columns or source.text_template or not task.kind.has_columns:
        return source
    return dataclasses.replace(source, text_template=trained_template(tokenizer))


def set_suffix(name: str) -> str:
    """The suffix of the scores on a dev or test set with this name: "" for the first one, "dev".

    >>> mnli, mismatched = get_task("mnli"), get_task("mnli_mismatched")
    >>> [set_suffix(set_name(mnli, part)) for part in (mnli, mismatched)]
    ['', '_mismatched']
    """
    return "" if name == FIRST else f"_{name}"


def set_name(task: Task, part: Task) -> str:
    """The name of a dev or test set of a task, where `part` is the task itself or its second one."""
    return FIRST if part is task else part.name.rpartition("_")[2]


def named_scores(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """The scores of all dev or test sets, by the names of the sets, as one: `accuracy`, `accuracy_mismatched`."""
    return {
        f"{metric}{set_suffix(name)}": value for name, of_set in scores.items() for metric, value in of_set.items()
    }


def second_task(task: Task, source: DataSource, split: Literal["dev", "test"] = "dev") -> Task | None:
    """The task of the second dev or test set (MNLI's mismatched), if the source has it."""
    if not task.second or (source.data is None and source.tfds is None):
        return None
    second = get_task(task.second)
    return second if source.tfds is not None or (Path(source.data or "") / second.file(split)).is_file() else None
