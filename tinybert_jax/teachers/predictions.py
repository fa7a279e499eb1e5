"""A file of predictions as a teacher. Each record has the probabilities, logits, label or number of one row."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.data.labels import label_ids
from tinybert_jax.data.reader import decode, json_parts, read_bytes, table_lines
from tinybert_jax.data.rows import Rows, known_labels
from tinybert_jax.errors import InputError
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import DataSource, TextForm
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.teachers.teacher import Teacher, UnknownRow

LEAST_PROBABILITY = 1e-9  # replaces smaller probabilities, because 0 has no logarithm
SUM_TOLERANCE = 1e-2  # tolerance for the sum of a row's probabilities, which may be rounded
SUFFIXES = (".jsonl", ".tsv", ".csv", ".parquet")
LOGITS = "logits."  # prefix of a class in the name of a table's column
PROBABILITY = "probability."  # prefix of a class in tables that `tinybert predict` writes
KINDS = ("probabilities", "logits", "label", "labels", "value")

Key = tuple[str, ...]  # the texts of a row, or its id


class Record(NamedTuple):
    """One record of a file."""

    key: Key  # of its row
    by_id: bool  # whether the key is an id
    fields: Mapping[str, Any]  # one of KINDS, and `confidence` beside a label
    where: str  # path:line, for messages


def is_predictions(name: Any) -> bool:
    """Whether a teacher is the name of a file of predictions."""
    return isinstance(name, str) and name.lower().endswith(SUFFIXES)


def load_predictions(experiment: Experiment) -> Teacher:
    """Load a file of predictions as a teacher: JSON lines, a .tsv or .csv with a header, or a Parquet file.

    A record names its row by `text` (for a pair, a list of two strings), by the columns of the texts, or by `id`,
    which is compared with the source's id column. It has one of these:

    - `probabilities`: by class name. They add up to 1; or only the most probable classes are named, and the rest is
      spread evenly over the others. A table has a column for each class; an empty cell means that it is not named.
    - `logits`: for every class. A table has columns `logits.CLASS`.
    - `label`, with its `confidence`, a probability (default: 1).
    - `value`, in regression.

    Files that `tinybert predict` writes are read too. They have `prediction` beside `probabilities` (in a table,
    columns `probability.CLASS`), or alone as the number. All other columns are ignored.

    In multi-label tasks, each class has a separate probability, which is 0 if the class is not named. `label` is then
    the only class of its row, and `labels` a list of classes.

    Temperatures apply to the logarithms of probabilities.

    Raises:
        InputError: the file cannot be read; a record is malformed, names a class that the labelled rows do not have,
            or has no probabilities (`path:line: ...`); two records of one row differ; or the task does not allow such
            a teacher.
    """
    path = Path(str(experiment.teacher))
    task, source = get_task(experiment.task), experiment.source
    if not task.kind.has_columns or not isinstance(source, DataSource):
        raise InputError(f"{path}: a file of predictions teaches texts and pairs of texts, not task {task.name!r}")
    data = read_bytes(path)
    records = list(_records(path, data, TextForm.of(source.text_columns, source.text_template, task.text_columns)))
    if not records:
        raise InputError(f"{path}:1: the file holds no prediction: give one record for each row")
    label_names = () if task.is_regression else _label_names(records, task, source)
    ids = {} if task.is_regression else label_ids(task, label_names)
    outputs: dict[tuple[bool, Key], np.ndarray] = {}
    for record in records:
        if task.is_regression:
            output = np.asarray(_value(record), np.float32)
        else:
            output = _logits(record, ids, len(label_names), task.is_multi_label)
        key = record.by_id, record.key
        if key in outputs and not np.array_equal(outputs[key], output):
            raise InputError(f"{record.where}: the row has another prediction in a line before: keep one of the two")
        outputs[key] = output
    by_id = any(record.by_id for record in records)
    if by_id and source.id_column is None:
        raise InputError(f"{path}: names rows by id, and no column of the rows is an id: give --id-column NAME")

    text_of: dict[str, Key] = {}

    def outputs_of(rows: Rows) -> np.ndarray:
        known = []
        for number, texts in enumerate(rows.texts):
            output = outputs.get((False, texts))
            if output is None and by_id and rows.ids is not None:
                identity = rows.ids[number]
                output = outputs.get((True, (identity,)))
                if text_of.setdefault(identity, texts) != texts:
                    raise InputError(
                        f"{path}: the id {identity!r} is that of two rows, {text_of[identity][0][:40]!r} and"
                        f" {texts[0][:40]!r}: give the rows of all files different ids"
                    )
            if output is None:
                raise UnknownRow(
                    f"{path}: no prediction for row {rows.lines[number]} of its file, {texts[0][:60]!r}: add a record"
                    " for it, or take the row out"
                )
            known.append(output)
        return np.stack(known)

    return Teacher(str(path), hashlib.sha256(data).hexdigest(), label_names, outputs_of=outputs_of)


def _records(path: Path, data: bytes, form: TextForm) -> Iterator[Record]:
    """The records of a file. The fields of a table are named as in JSON lines."""
    text_columns = form.columns
    for fields, where in _READERS[path.suffix.lower()](path, data, text_columns):
        if "prediction" in fields and "probabilities" in fields:  # other fields are those of the row
            fields = {name: x for name, x in fields.items() if name == "probabilities" or name not in KINDS}
        if len(named := [kind for kind in KINDS if kind in fields]) > 1:
            raise InputError(f"{where}: has {' and '.join(named)}: keep one of them")
        if "id" in fields and "text" not in fields and not set(text_columns) <= set(fields):
            identity = fields["id"]
            if isinstance(identity, bool | float) or not isinstance(identity, str | int):
                raise InputError(f'{where}: "id" is {json.dumps(identity, default=str)[:60]}: give a string or number')
            yield Record((str(identity),), True, fields, where)
            continue
        texts = fields.get("text")
        if set(text_columns) <= set(fields) and (texts is None or form != TextForm(("text",))):
            texts = [*form.texts(json_parts(where, fields, form))]
        key = tuple(texts) if isinstance(texts, list) else (texts,)
        if len(key) > 2 or not all(isinstance(part, str) for part in key):
            shown = json.dumps(texts, default=str)[:60]
            raise InputError(f'{where}: "text" is {shown}: give a string, or a list of two; or an "id"')
        yield Record(key, False, fields, where)


def _json_lines(path: Path, data: bytes, text_columns: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, line in enumerate(decode(path, data).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}): give one JSON object a line") from None
        if not isinstance(record, dict):
            raise InputError(f'{where}: no JSON object: give {{"text": ..., "probabilities": ...}}')
        yield record, where


def _table(path: Path, data: bytes, text_columns: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Any], str]]:
    lines = table_lines(path, decode(path, data).rstrip("\r\n"))
    _, header = next(lines, (1, []))
    if repeated := [column for column in header if header.count(column) > 1]:
        raise InputError(f"{path}:1: the column {repeated[0]!r} occurs twice: rename one")
    for number, cells in lines:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells instead of {len(header)} ({', '.join(header)}): repair it")
        yield _fields(dict(zip(header, cells, strict=True)), text_columns, where), where


def _parquet(path: Path, data: bytes, text_columns: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: a Parquet file is read by pyarrow: pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        nested = {name: row.get(name) for name in ("probabilities", "logits") if isinstance(row.get(name), dict)}
        flat = {name: value for name, value in row.items() if name not in nested}
        named = {name: {c: x for c, x in of.items() if x is not None} for name, of in nested.items()}
        yield (flat | named) if nested else _fields(flat, text_columns, where), where


def _fields(cells: Mapping[str, Any], text_columns: tuple[str, ...], where: str) -> dict[str, Any]:
    """The fields of a table's row. Columns of numbers without another meaning are classes."""
    if predicted := [column for column in cells if column.startswith(PROBABILITY)]:
        by_class = {column.removeprefix(PROBABILITY): _parsed(cells[column], where, column) for column in predicted}
        kept = {column: cell for column, cell in cells.items() if column in ("text", "id", *text_columns)}
        return kept | {"probabilities": by_class}
    fields: dict[str, Any] = {}
    classes: dict[str, float] = {}
    for column, cell in cells.items():
        if column in ("text", "id", *text_columns):
            fields[column] = cell
        elif cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        elif column == "label":
            fields[column] = cell
        elif column in ("confidence", "value") or (column == "prediction" and _is_number(cell)):
            fields[column] = _parsed(cell, where, column)
        elif column.startswith(LOGITS):
            fields.setdefault("logits", {})[column.removeprefix(LOGITS)] = _parsed(cell, where, column)
        elif _is_number(cell):
            classes[column] = float(cell)
    if classes and "label" in fields:
        raise InputError(
            f"{where}: has a label, and numbers in {', '.join(map(repr, classes))}, which are read as probabilities of"
            " classes: remove one or the other"
        )
    if classes and not fields.keys() & {"confidence", "value", "logits", "prediction"}:
        fields["probabilities"] = classes
    return fields


def _parsed(cell: Any, where: str, column: str) -> float:
    if not _is_number(cell):
        raise InputError(f"{where}: the {column} is {str(cell)[:40]!r}; it must be a number")
    return float(cell)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


_READERS = {".jsonl": _json_lines, ".tsv": _table, ".csv": _table, ".parquet": _parquet}


def _label_names(records: list[Record], task: Task, source: DataSource) -> tuple[str, ...]:
    """The classes by id: those of the labelled rows if there are any, else all classes in the file."""
    if known := known_labels(task, source):
        return known
    named: set[str] = set()
    for record in records:
        named |= set(_labels(record)) if {"label", "labels"} & set(record.fields) else set(_by_class(record))
    if len(named) < 2:
        raise InputError(f"{records[0].where}: the file names {len(named)} class: it must name two or more")
    return tuple(sorted(named))


def log_odds(probabilities: Any) -> np.ndarray:
    """The logits of the probabilities of multi-label classes, float32."""
    likely = np.clip(np.asarray(probabilities, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return (np.log(likely) - np.log1p(-likely)).astype(np.float32)


def _logits(record: Record, ids: Mapping[str, int], count: int, multi_label: bool) -> np.ndarray:
    """The logits of a record, float32 [c]: of probabilities, their logarithms, or log-odds if multi-label."""
    where, fields = record.where, record.fields
    if "labels" in fields and not multi_label:
        raise InputError(f'{where}: has "labels", and a row has one: give its "label", or take --task multi_label')
    if "label" in fields or "labels" in fields:
        confidence = _number(fields.get("confidence", 1.0), where, "confidence")
        if not 0 < confidence <= 1:
            raise InputError(f"{where}: the confidence is {confidence:g}; it must be above 0, and at most 1")
        values = dict.fromkeys(_labels(record), confidence)
    else:
        kind = "logit" if "logits" in fields else "probability"
        values = {label: _number(x, where, f"{kind} of {label!r}") for label, x in _by_class(record).items()}
    if unknown := [label for label in values if label not in ids]:
        same = [label for label in ids if label.lower() == unknown[0].lower()]
        advice = f"write it as {same[0]!r}" if same else "correct it, or remove the record and its row"
        known = ", ".join(map(repr, ids))
        raise InputError(f"{where}: unknown class {unknown[0]!r}; the labelled rows have {known}: {advice}")
    if len({ids[label] for label in values}) < len(values):
        raise InputError(f"{where}: two of {', '.join(map(repr, values))} are the same class: keep one of the two")
    if "logits" in fields:
        if len(values) < count:
            raise InputError(f"{where}: {len(values)} logits, and there are {count} classes: give one for each")
        logits = np.zeros(count, np.float32)
        for label, value in values.items():
            logits[ids[label]] = value
        return logits
    if multi_label:
        if not all(0 <= value <= 1 for value in values.values()):
            raise InputError(f"{where}: the probabilities are {values}: each must be from 0 to 1")
        likely = np.zeros(count)
        for label, value in values.items():
            likely[ids[label]] = value
        return log_odds(likely)
    total, unnamed = sum(values.values()), count - len(values)
    least = 0.0 if unnamed else 1 - SUM_TOLERANCE
    if min(values.values()) < 0 or not least <= total <= 1 + SUM_TOLERANCE:
        raise InputError(
            f"{where}: the probabilities add up to {total:.4g}: they must be at least 0, and add up to 1; where the"
            " likeliest are named alone, to no more than 1"
        )
    likely = np.full(count, max(1 - total, 0) / max(unnamed, 1))
    for label, value in values.items():
        likely[ids[label]] = value
    return np.log(np.maximum(likely, LEAST_PROBABILITY)).astype(np.float32)


def _labels(record: Record) -> list[str]:
    """The label of a record, or its list of labels, written as in a file of rows."""
    labels = record.fields["labels"] if "labels" in record.fields else [record.fields["label"]]
    if not isinstance(labels, list):
        raise InputError(f'{record.where}: "labels" is {json.dumps(labels, default=str)[:60]}: give a list')
    return [label.strip() if isinstance(label, str) else json.dumps(label, default=str) for label in labels]


def _value(record: Record) -> float:
    """The number in a record, for regression."""
    named = [name for name in ("value", "prediction") if name in record.fields]
    if len(named) == 2:
        raise InputError(f"{record.where}: has value and prediction: keep one of them")
    return _number(record.fields.get(named[0] if named else "value"), record.where, "value")


def _by_class(record: Record) -> Mapping[str, Any]:
    """The probabilities or logits of a record by class name."""
    values = record.fields.get("logits", record.fields.get("probabilities"))
    if not isinstance(values, dict) or not values:
        raise InputError(
            f'{record.where}: no "probabilities" by class: give {{"good": 0.9, "bad": 0.1}}, or "logits", or a "label"'
        )
    return values


def _number(value: Any, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: the {name} is {json.dumps(value, default=str)[:40]}; it must be a finite number")
    return float(value)
