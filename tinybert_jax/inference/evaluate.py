"""A model's scores on a split, and its predictions as a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from tinybert_jax.data.labels import named_by
from tinybert_jax.errors import InputError
from tinybert_jax.inference.predictor import Predictor, load_predictor
from tinybert_jax.models.fit import check_outputs
from tinybert_jax.settings.choices import EVAL_BATCH_SIZE
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.tasks.kinds import load_split, named_scores, second_task, set_name, with_template_of
from tinybert_jax.tasks.split import Split


def evaluate(
    model: str,
    task: str,
    source: DataSource,
    split: Literal["dev", "test", "train"] = "dev",
    max_length: int | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    predictions: Path | None = None,
    needs_scores: bool = True,
    int8: bool = False,
    show: Callable[[list[str], list[list[str]]], None] | None = None,
    truncate_dim: int | None = None,
) -> dict[str, float]:
    """The task's metrics on a split. For MNLI, they include the mismatched set, as `accuracy_mismatched`.

    Args:
        model: a Hugging Face directory or hub id, or an exported model, as in `load_predictor`.
        task: a row of the task table.
        source: where the rows are.
        split: the split to score.
        max_length: tokens per row; default: the length that the model was trained with.
        batch_size: rows per compiled call.
        predictions: a file to write predictions to; or a directory, for the file that the benchmark's server takes.
        needs_scores: refuse a split without labels; otherwise no scores are returned for it.
        int8: as in `load_predictor`.
        truncate_dim: as in `load_predictor`.
        show: is called with header and rows of each table of results by class. With it, a warning is printed where the
            predictions are no better than chance, for example because the model's classes are swapped.

    Raises:
        InputError: the model or the rows cannot be read, do not fit, or have no labels to score; or its outputs are
            not finite.
    """
    row = get_task(task)
    if option := source.adding_option:
        raise InputError(f"rows without labels are no split that can be scored: leave out {option}")
    is_directory = predictions is not None and predictions.is_dir()
    if is_directory and not row.submission:
        raise InputError(f"{predictions}: a directory; task {task!r} has no file of its own: name one")
    if is_directory and split != "test":
        raise InputError(f"{predictions}: a directory takes the test split's file: add --split test, or name a file")
    if predictions is not None and not is_directory:
        _check_new(predictions)
    predictor = load_predictor(model, max_length, batch_size, row.head, int8, truncate_dim)
    scores: dict[str, float] = {}
    for part, loaded, logits in outputs_on(predictor, row, source, split, needs_scores):
        if predictions is not None and (is_directory or part is row):
            path = predictions / part.submission if is_directory else predictions
            _check_new(path)
            path.write_text(loaded.predictions(logits), "utf-8")
            print(f"predictions written to {path}")
        if loaded.labelled:
            scores |= named_scores({set_name(row, part): loaded.score(logits)})
            if show is not None:
                for table in loaded.tables(logits):
                    show(*table)
                labels = predictor.config.id2label
                doubt = "" if loaded.is_constant else loaded.doubt(predictor.name, logits, labels, split)
                if doubt:
                    print(f"warning: {doubt}", file=sys.stderr)
    return scores


def _check_new(path: Path) -> None:
    """Refuse a file for predictions that exists."""
    if path.exists():
        raise InputError(f"{path}: exists already; name another file for the predictions")


def outputs_on(
    predictor: Predictor,
    task: Task,
    source: DataSource,
    split: Literal["dev", "test", "train"] = "dev",
    needs_scores: bool = True,
) -> Iterator[tuple[Task, Split, np.ndarray]]:
    """The split of the task, and the second one if the source has it, each with its task and the model's logits.

    Arguments and errors are as in `evaluate`.
    """
    check_outputs(predictor.name, predictor.config, task)
    source = with_template_of(predictor.tokenizer, task, source)
    second = second_task(task, source, split) if split != "train" else None
    for part in (task, second):
        if part is None:
            continue
        with named_by(predictor.name):
            labels = predictor.config.id2label
            loaded = load_split(part, source, split, predictor.tokenizer, predictor.max_length, labels)
        if not loaded.labelled and needs_scores:
            raise InputError(f"the {split} split has no labels to score; only --predictions FILE can be written")
        logits = predictor.logits(loaded.tokens)
        if not np.isfinite(logits).all():
            raise InputError(f"{predictor.name}: its outputs on the {split} split are not finite")
        yield part, loaded, logits
