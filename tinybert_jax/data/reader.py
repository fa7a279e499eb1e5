"""The strict reader of local files (.tsv, .csv, JSON lines): every row is right, or an error names its line."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_jax.data.suspects import (
    BITS,
    ONE_LABEL,
    ONE_VALUE,
    QUOTES_ARE_NO_PART,
    SAVE_WITH,
    are_bits,
    bit_columns,
    counts_rows,
    csv_separator,
    has_csv_quotes,
    no_column,
    other_separator,
    refuse_json,
    refuse_one_value,
    unknown_kind,
)
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.files.foreign import HEAD, foreign_kind
from tinybert_jax.settings.sources import TextForm

JSON_SUFFIXES = (".jsonl", ".json")
SUFFIXES = (".tsv", ".csv", *JSON_SUFFIXES)


class RawRows(NamedTuple):
    """Rows as written in their source. `lines` are their numbers, from 1 in a file, from 0 in a TFDS set."""

    texts: list[tuple[str, ...]]
    labels: list[Any] | None  # strings; in multi-label tasks, tuples of strings
    lines: list[int]
    ids: list[str] | None = None  # None if no id column was named


class LabelSets(NamedTuple):
    """How a cell or string holds any number of labels. In JSON, labels may also be a list."""

    delimiter: str | None  # None: none is named


def read_checked(
    path: Path,
    data: bytes,
    form: TextForm,
    label_column: str | None,
    needs_label: bool,
    headerless: tuple[str, ...] = (),
    has_damaged_rows: bool = False,
    id_column: str | None = None,
    label_sets: LabelSets | None = None,
) -> RawRows:
    """Parse the content of a file and check its form. What the labels mean is not checked.

    A .tsv is split at tabs and has no quotes, as in the GLUE files, unless pandas or another CSV writer quoted it
    (`suspects.has_csv_quotes`). A .csv has the usual quotes, and commas or semicolons (`suspects.csv_separator`). A
    byte order mark, CRLF line ends, and blank lines at the end are accepted.

    Args:
        path: its suffix gives the format, and errors name it.
        data: the content.
        form: the columns, or JSON keys, and how texts are made from them.
        label_column: the column, or JSON key, of the label; None: no label is read.
        needs_label: every row must have a label. Otherwise the label column may be absent or its cells empty.
        headerless: the columns of a file without a header.
        has_damaged_rows: leave out table rows that are cut short, with a note, if rows need a label; and accept pairs
            in which one text is empty.
        id_column: the column, or JSON key, of the rows' ids.
        label_sets: in multi-label tasks, how labels are written; None: a row has one label.

    Raises:
        InputError: `path:line: what is wrong and what to do`.
    """
    if (suffix := path.suffix.lower()) not in SUFFIXES:
        unlabelled = "; texts without labels are --unlabelled" if suffix == ".txt" else ""
        raise unknown_kind(path, f"give one of {', '.join(SUFFIXES)}{unlabelled}")
    if not (text := decode(path, data).rstrip("\r\n")).strip():
        raise InputError(f"{path}:1: the file is empty: give one with rows")
    short_lines: list[int] | None = [] if has_damaged_rows and needs_label else None
    if suffix in JSON_SUFFIXES:
        refuse_one_value(path, text)
        records = _json_records(path, text, form, label_column, needs_label, id_column, label_sets is not None)
    else:
        refuse_json(path, text, "a table")
        if is_quoted_tsv(path, text):
            note(f"{path}: {QUOTES_ARE_NO_PART}")
        records = _table_records(path, text, form, label_column, needs_label, headerless, short_lines, id_column)
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    lines: list[int] = []
    ids: dict[str, int] = {}
    for line, cells, label in records:
        row = form.texts(dict(zip(form.columns, cells, strict=False)))
        if id_column is not None:
            if cells[-1] in ids:
                raise InputError(f"{path}:{line}: the id {cells[-1]!r} is that of line {ids[cells[-1]]} too")
            ids[cells[-1]] = line
        for column, value in zip(form.names, row, strict=True):
            if not value.strip() and not (has_damaged_rows and "".join(row).strip()):
                raise InputError(f"{path}:{line}: the text in {column!r} is empty: fill it or remove the row")
        if label_sets is not None and label is not None:
            label = _label_set(path, line, label_column, label, label_sets)
        elif needs_label and not label:
            raise InputError(f"{path}:{line}: the label in {label_column!r} is empty: fill it or remove the row")
        texts.append(row)
        if label is not None:
            labels.append(label)
        lines.append(line)
    if short_lines:
        rows = f"{len(short_lines)} {'row is' if len(short_lines) == 1 else 'rows are'}"
        note(f"{path}: {rows} cut short and left out, first at line {short_lines[0]}")
    if not texts:
        raise InputError(f"{path}:1: there is a header and no row after it: give a file with rows")
    for number, column in enumerate(form.names):
        if counts_rows([row[number] for row in texts]):
            raise InputError(f"{path}: the texts in {column!r} count the rows, as an index: name other {form.option}")
    if label_sets is not None and labels and are_bits(labels):
        raise InputError(f"{path}: the labels in {label_column!r} are {BITS}")
    if label_sets is None and counts_rows(labels, least=5):
        note(f"{path}: the labels in {label_column!r} count the rows, as an index: is it the --label-column?")
    return RawRows(texts, labels or None, lines, list(ids) or None)


def _label_set(path: Path, line: int, column: str | None, label: Any, form: LabelSets) -> tuple[str, ...]:
    if isinstance(label, tuple):
        return tuple(filter(None, label))
    if form.delimiter is not None:
        return tuple(filter(None, (part.strip() for part in label.split(form.delimiter))))
    if path.suffix.lower() in JSON_SUFFIXES:
        return (label,) if label else ()
    raise InputError(
        f"{path}:{line}: {column!r} is {label[:40]!r}, and a row may have several labels: name what stands between"
        " them, for example --label-delimiter ';'"
    )


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or holds a NUL or a lone carriage return.
    """
    return decode(path, read_bytes(path))


def decode(path: Path, data: bytes, first_line: int = 1) -> str:
    """The text of a file's content, or of its lines from `first_line` on; see `read_text`."""
    if first_line == 1:
        if kind := foreign_kind(data[:HEAD]):
            raise InputError(f"{path}: {kind}")
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise InputError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None
    for pattern, message in (
        ("\0", "a NUL byte: remove it"),
        (r"\r(?!\n)", "a lone carriage return: end lines with \\n"),
    ):
        if match := re.search(pattern, text):
            raise InputError(f"{path}:{text.count(chr(10), 0, match.start()) + first_line}: {message}")
    return text


def _table_records(
    path: Path,
    text: str,
    form: TextForm,
    label_column: str | None,
    needs_label: bool,
    headerless: tuple[str, ...],
    short_lines: list[int] | None,
    id_column: str | None,
) -> Iterator[tuple[int, tuple[str, ...], str | None]]:
    """Line, cells and label of each row: the cells of the form's columns, then the id.

    The lines of rows that are cut short go to `short_lines`, if it is a list.
    """
    columns = (*form.columns, *([] if id_column is None else [id_column]))
    lines = table_lines(path, text)
    header = list(headerless) or next(lines)[1]
    for column in (*columns, *([] if label_column is None else [label_column])):
        if header.count(column) > 1:
            raise InputError(f"{path}:1: the column {column!r} occurs {header.count(column)} times: rename one")
        if column not in header and (column != label_column or needs_label):
            named = ", ".join(map(repr, header))
            if separated := other_separator(header, "\t" if path.suffix.lower() == ".tsv" else ","):
                raise InputError(f"{path}:1: {separated} separate the columns ({named}): {SAVE_WITH}")
            if column == label_column and (bits := bit_columns(header, (values for _, values in lines))):
                raise InputError(
                    f"{path}:1: no column {column!r}, but {', '.join(map(repr, bits))} hold 0 and 1, as one column for"
                    " each class: write the names of a row's classes into one column, with --label-delimiter ';' and"
                    " --task multi_label"
                )
            raise InputError(f"{path}:1: {no_column(column, header)}: {form.advice}")
    text_indices = [header.index(column) for column in columns]
    label_index = None if label_column not in header else header.index(label_column)
    for line, values in lines:
        if short_lines is not None and len(values) < len(header):
            short_lines.append(line)
            continue
        check_width(path, line, values, header)
        label = None if label_index is None else values[label_index].strip()
        yield line, tuple(values[i] for i in text_indices), label


def check_width(path: Path, line: int, values: list[str], header: list[str]) -> None:
    """Check that a row of a table has as many cells as the header.

    Raises:
        InputError: it has not.
    """
    if values in ([], [""]) and len(header) > 1:
        raise InputError(f"{path}:{line}: the line is blank: remove it")
    if len(values) != len(header):
        is_short = len(values) < len(header)
        problem, remedy = ("short row", "complete") if is_short else ("extra columns", "repair")
        advice = "" if is_short else " (a comma of a text needs quotes; if all rows are so, the header lacks a name)"
        raise InputError(
            f"{path}:{line}: {problem}: {len(values)} instead of {len(header)} ({', '.join(header)}): {remedy} or"
            f" remove the row{advice if path.suffix.lower() == '.csv' else ''}"
        )


def is_quoted_tsv(path: Path, text: str) -> bool:
    """Whether the text is a .tsv with the quotes of a .csv."""
    return path.suffix.lower() == ".tsv" and has_csv_quotes(text)


def table_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each row of a table; see `read_checked`.

    Raises:
        InputError: the quotes of a .csv are damaged.
    """
    is_csv = path.suffix.lower() == ".csv"
    if not is_csv and not is_quoted_tsv(path, text):
        return _tsv_lines(text)
    # by default the module refuses more than 131,072 characters in a field, and a document may have more
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    separator = csv_separator(text.partition("\n")[0]) if is_csv else "\t"
    return csv_records(path, io.StringIO(text, newline=""), separator)


def _tsv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines(), which also splits at characters that occur inside real sentences (U+0085, U+2028).
    for line, content in enumerate(text.split("\n"), 1):
        yield line, content.removesuffix("\r").split("\t")


def csv_records(path: Path, lines: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each record of lines with the quotes of a .csv.

    Raises:
        InputError: the quotes are damaged.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1  # where the record starts: a quoted text may span several lines
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{line}: {error}: repair the quotes of this row") from None


def _json_records(
    path: Path,
    text: str,
    form: TextForm,
    label_column: str | None,
    needs_label: bool,
    id_column: str | None,
    lists: bool,
) -> Iterator[tuple[int, tuple[str, ...], Any]]:
    """Line, cells and label of each row, as `_table_records`."""
    labelled = needs_label
    for line, content in enumerate(text.split("\n"), 1):
        value = json_object(path, line, content)
        if line == 1:
            labelled = needs_label or label_column in value
        identity = [] if id_column is None else [id_column]
        if not needs_label and (label_column in value) != labelled:
            raise InputError(f"{path}:{line}: only some rows have the label {label_column!r}: give it to all or none")
        for column in (*form.columns, *identity, *([label_column] if needs_label else [])):
            if column not in value:
                keys = ", ".join(map(repr, value)) or "none"
                raise InputError(f"{path}:{line}: no key {column!r}; the keys are {keys}: {form.advice}")
        parts = json_parts(f"{path}:{line}", value, form)
        texts = (json_text(path, line, column, part) for column, part in parts.items())
        row = (*texts, *(_json_label(path, line, column, value[column]) for column in identity))
        label = None if label_column is None else value.get(label_column)
        if label_column is None or (label is None and not needs_label):
            yield line, row, "" if labelled else None
        elif lists and isinstance(label, list):
            yield line, row, tuple(_json_label(path, line, label_column, each) for each in label)
        else:
            yield line, row, _json_label(path, line, label_column, label)


def json_parts(where: str, value: Mapping[str, Any], form: TextForm) -> dict[str, Any]:
    """The values of a form's columns. Values that a template joins become strings, and null becomes "".

    Raises:
        InputError: a template has a list, an object or a number that is not finite.
    """
    parts = {column: value[column] for column in form.columns}
    for column, part in parts.items() if form.templates else ():
        if part is not None and not isinstance(part, str | bool | int | float):
            raise InputError(f"{where}: {column!r} is {json_type(part)}, and a template joins strings and numbers")
        if isinstance(part, float) and not math.isfinite(part):
            raise InputError(f"{where}: {column!r} is {part}, not a finite number: correct or remove the row")
        parts[column] = part if isinstance(part, str) else "" if part is None else json.dumps(part)
    return parts


def json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        InputError: the line holds something else.
    """
    if not content.strip():
        raise InputError(f"{path}:{line}: the line is blank: remove it")
    try:
        value = json.loads(content, object_pairs_hook=_with_unique_keys)
    except (ValueError, RecursionError) as error:
        if line == 1 and content.strip() in ("[", "{", "[{"):
            raise InputError(f"{path}:1: {ONE_VALUE}") from None
        raise InputError(f"{path}:{line}: not JSON ({error}): each line must be one JSON object") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}:{line}: {json_type(value)} instead of an object: write one JSON object a line")
    return value


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A repeated key is refused, because either of its values may be meant."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return value


def json_text(path: Path, line: int, column: str, value: Any) -> str:
    """A value of a JSON object that must be a text.

    Raises:
        InputError: it is not a string, or it has characters that a text file cannot hold.
    """
    if not isinstance(value, str):
        raise InputError(f"{path}:{line}: {column!r} is {json_type(value)} instead of a string: write a string")
    if re.search("[\0\ud800-\udfff]", value):
        raise InputError(f"{path}:{line}: {column!r} holds a NUL or half a surrogate pair: remove it")
    return value


def _json_label(path: Path, line: int, column: str, value: Any) -> str:
    if isinstance(value, str):
        return json_text(path, line, column, value).strip()
    if isinstance(value, float) and not math.isfinite(value):  # NaN, which Python takes for JSON, or 1e999
        raise InputError(f"{path}:{line}: {column!r} is {value}, not a finite number: correct or remove the row")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    remedy = ONE_LABEL if isinstance(value, list) else "write one"
    raise InputError(f"{path}:{line}: {column!r} is {json_type(value)} instead of a string or number: {remedy}")


def json_type(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    names = {"NoneType": "null", "list": "a list", "dict": "an object", "str": "a string", "bool": "a boolean"}
    return names.get(type(value).__name__, "a number")
