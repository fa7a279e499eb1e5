"""The command `tinybert benchmark`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinybert_jax.errors import InputError, check_parent
from tinybert_jax.reports.tables import print_table


def benchmark(
    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]", help_behavior_hint="")
    ],
    /,
    batch_size: tuple[int, ...] = (1, 32),
    max_length: tuple[int, ...] = (32, 128),
    input: Path | None = None,
    from_: Annotated[Literal["txt", "tsv", "csv", "jsonl"] | None, tyro.conf.arg(name="from")] = None,
    text_columns: tuple[str, ...] = (),
    text_template: tuple[str, ...] = (),
    threads: int | None = None,
    memory: bool = True,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare the speed, size and memory of models, in JAX and, if installed, in ONNX Runtime and PyTorch.

    All models are loaded into one process and take turns. The time is that of one call, from token ids to logits, in
    milliseconds: the median, and with at least 20 calls the 95th percentile. For example:

    tinybert benchmark runs/teacher/student runs/tiny/student runs/export --input reviews.csv --threads 1

    Args:
        models: Hugging Face directories or hub ids of fine-tuned models, directories that `tinybert export` wrote, or
            files in them. Speed-ups are relative to the first.
        batch_size: batch sizes to time, in texts.
        max_length: lengths of the random texts to time, in tokens.
        input: a .tsv, .csv, .jsonl or .txt file. Up to 128 of its texts are also timed, at their real lengths.
        from_: format of --input. Default: by its suffix.
        text_columns: column (or JSON key) of the texts in --input, or two columns for pairs. Default: text.
        text_template: template that joins columns of --input to a text, such as '{title}: {body}'; two templates for
            pairs.
        threads: number of processor cores to use. Default: all.
        memory: also measure the memory that each model needs, in a separate process that loads it and computes the
            largest batch. This takes some seconds per model.
        json_file: also write all figures to this file, as JSON.
    """
    if json_file is not None:
        check_parent(json_file)
        if json_file.is_dir():
            raise InputError(f"{json_file}: a directory; --json takes a file")
    if input is None and (from_ or text_columns or text_template):
        raise InputError("--from, --text-columns and --text-template are about --input: give --input FILE too")
    if threads is not None:
        _limit(threads)
    from tinybert_jax.inference.benchmark import benchmark
    from tinybert_jax.reports.benchmark import as_json, latency_tables, machine_lines, size_table

    texts = [] if input is None else _texts(input, from_, text_columns, text_template)
    result = benchmark(models, batch_size, max_length, texts, memory)
    print("\n".join(machine_lines(result.machine)))
    print_table(*size_table(result))
    for shape, table in latency_tables(result):
        print(f"\n{shape}")
        print_table(*table)
    for note in result.notes:
        print(f"note: {note}")
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(result), indent=2) + "\n", "utf-8")


def _limit(threads: int) -> None:
    """Restrict this process to that many processors. All libraries then start as many threads."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("--threads: this system cannot limit a process to some of its processors: leave it out")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise InputError(f"--threads {threads}: give a number from 1 to {len(allowed)}, as many as there are")
    os.sched_setaffinity(0, allowed[:threads])


def _texts(
    path: Path, form: str | None, columns: tuple[str, ...], templates: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """The texts of a file; words of a list are joined."""
    from tinybert_jax.data.stream import SUFFIXES, stream_rows, table_form
    from tinybert_jax.data.suspects import unknown_kind
    from tinybert_jax.settings.sources import TextForm

    form = form or SUFFIXES.get(path.suffix.lower())
    if not path.is_file():
        raise InputError(f"{path}: no such file: give --input FILE")
    if form is None:
        raise unknown_kind(path, "add --from txt, tsv, csv or jsonl")
    texts = TextForm.of(columns, templates, ("text",))
    with path.open("rb") as lines:
        rows = [row.texts for row in stream_rows(path, lines, table_form(path, form), texts, takes_words=True)]
    return [tuple(text if isinstance(text, str) else " ".join(text) for text in row) for row in rows]
