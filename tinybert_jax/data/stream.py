"""Rows of texts from a file or a pipe, one at a time, each with all of its columns."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_jax.data.reader import check_width, csv_records, decode, json_object, json_parts, json_text
from tinybert_jax.data.suspects import (
    QUOTES_ARE_NO_PART,
    SAVE_WITH,
    csv_separator,
    has_csv_quotes,
    no_column,
    other_separator,
)
from tinybert_jax.errors import InputError, note
from tinybert_jax.settings.sources import TextForm

SUFFIXES = {".txt": "txt", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}
QUOTED_TSV = "quoted tsv"
QUOTES_IN = 1 << 24  # number of first bytes of a file in which quotes are detected
LONGEST_CELL = 2**31 - 1  # characters; the csv module's default limit is 131,072


class Row(NamedTuple):
    """A row: its first line's number, from 1; all its columns; and its texts, each a string or a list of words."""

    line: int
    cells: dict[str, Any]
    texts: tuple[Any, ...]


def stream_rows(
    path: Path,
    lines: Iterable[bytes],
    form: str,
    text_form: TextForm,
    takes_words: bool = False,
    is_guess: bool = False,
) -> Iterator[Row]:
    """The rows of a file's lines, checked as `reader.read_checked` checks a file.

    A .txt has one text a line, and blank lines are left out. Other formats may have blank lines at the end.

    Args:
        path: the file's name in errors.
        lines: the lines, with line ends.
        form: a value of SUFFIXES, or the result of `table_form`.
        text_form: the columns, or JSON keys, and how texts are made from them; for a .txt, the name of the text.
        takes_words: in JSON lines, a text may also be a list of words.
        is_guess: `form` is a default, so a first line that looks like another format is refused.

    Raises:
        InputError: `path:line: what is wrong and what to do`.
    """
    row = None
    numbered = _decoded(path, lines)
    if is_guess and form == "txt":
        numbered = _with_plain_first(path, numbered, text_form.columns[0])
    for row in _READERS[form](path, numbered, text_form):
        for column, text in zip(text_form.names, row.texts, strict=True):
            if isinstance(text, list) and takes_words:
                if not text or not all(isinstance(word, str) and word and not _has_space(word) for word in text):
                    raise InputError(f"{path}:{row.line}: {column!r} is no list of words: give strings without spaces")
            elif not json_text(path, row.line, column, text).strip():
                raise InputError(f"{path}:{row.line}: the text in {column!r} is empty: fill it or remove the row")
        yield row
    if row is None:
        raise InputError(f"{path}:1: holds no row: give some")


def table_form(path: Path, form: str) -> str:
    """The form of a file. For a .tsv that pandas or another CSV writer quoted, it is QUOTED_TSV, with a note."""
    if form != "tsv":
        return form
    with path.open("rb") as file:
        head = file.read(QUOTES_IN)
    head = head if len(head) < QUOTES_IN else head[: head.rfind(b"\n")]
    if not has_csv_quotes(head.decode("utf-8-sig", "replace")):
        return form
    note(f"{path}: {QUOTES_ARE_NO_PART}")
    return QUOTED_TSV


def _has_space(word: str) -> bool:
    return len(word.split()) != 1


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Numbered lines as text, without the blank ones at the end."""
    blank = []
    for number, line in enumerate(lines, 1):
        text = decode(path, line, number)
        if not text.strip("\r\n"):
            blank.append((number, text))
            continue
        yield from blank
        blank.clear()
        yield number, text


def _with_plain_first(path: Path, lines: Iterator[tuple[int, str]], column: str) -> Iterator[tuple[int, str]]:
    """The lines. Refuses a first line that is a JSON object or a table's header."""
    for number, line in itertools.islice(lines, 1):
        if form := _likely_form(line.strip("\r\n"), column):
            raise InputError(
                f"{path}:{number}: looks like the first line of a .{form}: add --from {form} (or --from txt if it is a"
                " text)"
            )
        yield number, line
    yield from lines


def _likely_form(line: str, column: str) -> str | None:
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return "jsonl" if isinstance(json.loads(line), dict) else None
    if "\t" in line:
        return "tsv"
    is_header = re.fullmatch(r'"?\w+"?([,;]"?\w+"?)+', line)  # single words, without spaces between them
    return "csv" if is_header or column in (cell.strip('"') for cell in line.split(",")) else None


def _text_rows(path: Path, lines: Iterator[tuple[int, str]], form: TextForm) -> Iterator[Row]:
    columns = form.columns
    if form.templates:
        raise InputError(f"{path}: a .txt has one text a line, and no columns for a --text-template: give a .csv")
    if len(columns) > 1:
        raise InputError(f"{path}: a .txt has one text a line, and {', '.join(columns)} are several: give a .csv")
    for number, line in lines:
        text = line.rstrip("\r\n")
        if text.strip():
            yield Row(number, {columns[0]: text}, (text,))


def _table_rows(path: Path, records: Iterator[tuple[int, list[str]]], form: TextForm) -> Iterator[Row]:
    first, header = next(records, (1, []))
    if not header:
        return
    if repeated := [column for column in header if header.count(column) > 1]:
        raise InputError(f"{path}:{first}: the column {repeated[0]!r} occurs more than once: rename one")
    if missing := [column for column in form.columns if column not in header]:
        named = ", ".join(map(repr, header))
        if separated := other_separator(header, ""):
            raise InputError(f"{path}:{first}: {separated} separate the columns ({named}): {SAVE_WITH}")
        raise InputError(f"{path}:{first}: {no_column(missing[0], header)}: name yours with {form.option}")
    for line, values in records:
        check_width(path, line, values, header)
        cells = dict(zip(header, values, strict=True))
        yield Row(line, cells, form.texts(cells))


def _tsv_rows(path: Path, lines: Iterator[tuple[int, str]], form: TextForm) -> Iterator[Row]:
    return _table_rows(path, ((number, line.rstrip("\r\n").split("\t")) for number, line in lines), form)


def _csv_rows(path: Path, lines: Iterator[tuple[int, str]], form: TextForm) -> Iterator[Row]:
    header = next(lines, (1, ""))
    return _quoted_rows(path, itertools.chain([header], lines), form, csv_separator(header[1]))


def _quoted_tsv_rows(path: Path, lines: Iterator[tuple[int, str]], form: TextForm) -> Iterator[Row]:
    return _quoted_rows(path, lines, form, "\t")


def _quoted_rows(path: Path, lines: Iterable[tuple[int, str]], form: TextForm, separator: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    return _table_rows(path, csv_records(path, (line for _, line in lines), separator), form)


def _json_rows(path: Path, lines: Iterator[tuple[int, str]], form: TextForm) -> Iterator[Row]:
    for number, line in lines:
        cells = json_object(path, number, line)
        for column in form.columns:
            if column not in cells:
                keys = ", ".join(map(repr, cells)) or "none"
                raise InputError(
                    f"{path}:{number}: no key {column!r}; the keys are {keys}: name yours with {form.option}"
                )
        yield Row(number, cells, form.texts(json_parts(f"{path}:{number}", cells, form)))


_READERS = {"txt": _text_rows, "tsv": _tsv_rows, QUOTED_TSV: _quoted_tsv_rows, "csv": _csv_rows, "jsonl": _json_rows}
