"""The command `tinybert predict`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import tyro

from tinybert_jax.errors import InputError, check_parent, note

STANDARD_INPUT = Path("standard input")  # as messages call it


def predict(
    model: str,
    input: Path | None = None,
    from_: Annotated[Literal["txt", "tsv", "csv", "jsonl"] | None, tyro.conf.arg(name="from")] = None,
    text_columns: tuple[str, ...] = (),
    text_template: tuple[str, ...] = (),
    out: Path | None = None,
    to: Literal["tsv", "csv", "jsonl"] | None = None,
    unanswerable: bool = False,
    threshold: float | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    int8: bool = False,
    truncate_dim: int | None = None,
) -> None:
    """Write a model's prediction for each row of a file or of standard input. The row's columns are kept.

    A classifier writes the most probable class and the probabilities of all classes, a regression model a number, a
    token classifier words with their tags, a question answering model an answer, an embedding model a vector. Two
    examples:

    tinybert predict --model runs/tiny/student --input reviews.csv --text-columns review --out predicted.csv

    head -5 texts.txt | tinybert predict --model runs/tiny/student

    Probabilities and numbers are soft labels: `tinybert distill --teacher predicted.csv` learns from them.

    Args:
        model: Hugging Face directory or hub id of a fine-tuned model, or what `tinybert export` wrote.
        input: a .tsv, .csv or .jsonl file, or a .txt with a text a line. Default: standard input.
        from_: format of the input. Default: by the suffix of --input; txt for standard input.
        text_columns: column (or JSON key) of the texts, or two columns for pairs. Default: those of the template that
            the model was trained with; else question and context for a question answering model; else text.
        text_template: template that joins columns to a text, such as '{title}: {body}'; two templates for pairs.
            Default: the one that the model was trained with.
        out: the file to write, which must not exist. Default: standard output.
        to: format of the output. Default: by the suffix of --out; else the format of the input, with tsv for txt.
        unanswerable: for question answering models of SQuAD 2.0: a question may have no answer.
        threshold: for models of the task multi_label: a class is predicted if its probability is above this. Default:
            0.5.
        max_length: tokens per row; longer rows are truncated, or read in parts for tags and answers. Default: the
            length that the model was trained with.
        batch_size: rows per compiled call.
        int8: multiply in 8 bits, if a short measurement shows that this processor is faster with it.
        truncate_dim: for embedding models: write only the first TRUNCATE_DIM numbers of each vector. Default: all.
    """
    path = STANDARD_INPUT if input is None else input
    if input is not None and not input.exists():
        raise InputError(f"{input}: no such file: give --input FILE, or pipe rows into the command")
    if input is not None and input.is_dir():
        raise InputError(f"{input}: a directory, not a file: give --input FILE")
    if out is not None:
        check_parent(out)
        if out.exists():
            raise InputError(f"{out}: exists already; choose another --out")
    from tqdm import tqdm

    from tinybert_jax.data.batches import PROGRESS_FROM
    from tinybert_jax.data.stream import SUFFIXES, Row, stream_rows, table_form
    from tinybert_jax.data.suspects import unknown_kind
    from tinybert_jax.inference.predict import (
        ROWS_AT_ONCE,
        Writer,
        as_they_come,
        in_chunks,
        predict_rows,
        prediction_of,
    )
    from tinybert_jax.inference.predictor import THRESHOLD, load_predictor
    from tinybert_jax.models.files.tokenizer import trained_template
    from tinybert_jax.settings.sources import TextForm

    form = from_ or ("txt" if input is None else SUFFIXES.get(path.suffix.lower()))
    if form is None:
        raise unknown_kind(path, "add --from txt, tsv, csv or jsonl")
    if to is None and out is not None and out.suffix and out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: predictions are written as .tsv, .csv or .jsonl: name such a file, or add --to")
    written = to or (None if out is None else SUFFIXES.get(out.suffix.lower())) or form
    predictor = load_predictor(model, max_length, batch_size, int8=int8, truncate_dim=truncate_dim)
    if threshold is not None and not (predictor.config.is_multi_label and 0 < threshold < 1):
        raise InputError(f"--threshold is {threshold}; it is from 0 to 1, for models that give a text several classes")
    head = prediction_of(predictor.head)
    if form != "txt" and not (text_columns or text_template):
        text_template = trained_template(predictor.tokenizer)
    texts = TextForm.of(text_columns, text_template, head.columns)
    if unanswerable and not head.has_answers:
        raise InputError(f"--unanswerable is for models that answer questions, and {model} does not: leave it out")
    if len(texts.names) not in head.widths:
        counts = " or ".join(map(str, head.widths))
        raise InputError(f"{texts.option} {' '.join(texts.names)}: {model} reads {counts} of them")

    is_file = input is not None and input.is_file()
    read_as = table_form(path, form) if is_file else form

    def rows() -> Iterator[Row]:
        return stream_rows(path, _read(input), read_as, texts, head.takes_words, is_guess=from_ is None)

    total = sum(1 for _ in rows()) if is_file else None  # a mistake in the last row is told before the work
    chunks = (in_chunks if is_file else as_they_come)(rows(), max(ROWS_AT_ONCE, batch_size))
    with _writing(out) as stream:
        writer = Writer("tsv" if written == "txt" else written, str(path))
        silent = (total is not None and total < PROGRESS_FROM) or (out is None and sys.stdout.isatty())
        delay = 60 if total is None else 0  # seconds before the bar appears; the length of a pipe is unknown
        with tqdm(total=total, desc="predict", unit="row", disable=silent, delay=delay) as bar:
            count = 0
            for predicted in predict_rows(predictor, chunks, str(path), unanswerable, threshold or THRESHOLD):
                text = "".join(writer.lines(row, prediction) for row, prediction in predicted)
                stream.write(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, in JSON
                stream.flush()
                count += len(predicted)
                bar.update(len(predicted))
    if out is not None:
        print(f"{count} rows written to {out}")


def _read(input: Path | None) -> Iterator[bytes]:
    """The lines of a file or of standard input, with their line ends."""
    if input is not None:
        with input.open("rb") as lines:
            yield from lines
        return
    if sys.stdin is None:
        raise InputError("standard input is closed: give --input FILE")
    if sys.stdin.isatty():
        note("reading texts from the terminal, one a line; end with Ctrl-D")
    # a separate stream: at its end, the interpreter waits for a thread that reads from sys.stdin
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as lines:
        yield from lines


@contextlib.contextmanager
def _writing(out: Path | None) -> Iterator[BinaryIO]:
    """A stream to `out`, which appears when all is written; or standard output, which a reader may close early."""
    if out is not None:
        part = out.with_name(out.name + ".part")
        try:
            stream = part.open("xb")
        except FileExistsError:
            raise InputError(
                f"{part}: another run writes it, or was killed: remove it, or name another --out"
            ) from None
        try:
            with stream:
                yield stream
        except InputError:  # the corrected command may write it again
            part.unlink()
            raise
        part.rename(out)
        return
    try:
        yield sys.stdout.buffer
    except BrokenPipeError:
        # at its end, the interpreter flushes the rest into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
