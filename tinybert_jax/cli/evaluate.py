"""The command `tinybert evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinybert_jax.cli.options import Source, TaskName
from tinybert_jax.errors import InputError, check_parent
from tinybert_jax.reports.tables import print_table
from tinybert_jax.settings.choices import EVAL_BATCH_SIZE


def evaluate(
    model: str,
    task: TaskName,
    source: Source,
    split: Literal["dev", "test", "train"] = "dev",
    max_length: int | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    predictions: Path | None = None,
    int8: bool = False,
    truncate_dim: int | None = None,
) -> None:
    """Score a fine-tuned or distilled model on a task's rows, and optionally write its predictions.

    Args:
        model: Hugging Face directory or hub id, or what `tinybert export` wrote.
        task: the task.
        source: where the rows are.
        split: the rows to score. A test split without labels needs --predictions.
        max_length: tokens per row; longer rows are truncated. Default: the length that the model was trained with.
        batch_size: rows per compiled call.
        json_file: also write the scores to this file, as JSON.
        predictions: write the predictions to this file: a TSV with the columns index and prediction; for squad the
            official JSON; for ner tokens and tags. For a GLUE task, an existing directory gets the file that GLUE's
            server takes.
        int8: multiply in 8 bits, if a short measurement shows that this processor is faster with it.
        truncate_dim: with embedding models: score only the first TRUNCATE_DIM numbers of each vector. Default: all.
    """
    for path in (json_file, predictions):
        if path is not None:
            check_parent(path)
    if json_file is not None and json_file.is_dir():
        raise InputError(f"{json_file}: a directory; --json takes a file")
    from tinybert_jax.inference import evaluate

    needs_scores = predictions is None or json_file is not None
    arguments = (model, task, source, split, max_length, batch_size, predictions, needs_scores, int8)
    scores = evaluate.evaluate(*arguments, show=print_table, truncate_dim=truncate_dim)
    if scores:
        print_table(["metric", split], [[name, f"{value:.4f}"] for name, value in scores.items()])
        if json_file is not None:
            json_file.write_text(json.dumps({"split": split} | scores, indent=2) + "\n")
