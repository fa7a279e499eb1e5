"""Local files and prepared TFDS sets -> checked rows.

Every local file is read by one strict reader, which names file and line of what is wrong, and is then kept as a TFDS
set in the user's cache folder, keyed by its content; the next reading only hashes the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.cache import cache_folder, cached
from tinybert_jax.data.labels import discover_labels, label_ids
from tinybert_jax.data.reader import NAME_YOURS, RawRows, read_checked
from tinybert_jax.data.tfds import builder_class, load_rows, tfds_records
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task

FORMAT_VERSION = 1  # of the cached rows; count it up when the same file would give other rows
UNLABELLED = {"", "-1", "-1.0"}  # what the benchmark's test sets hold in place of labels


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split.

    `texts` are one or two strings a row; `labels` are class ids, int32 [n], or numbers, float32 [n], or None in a test
    split without them; `label_names` are the classes by id, `()` in regression. `fingerprint` is that of the content
    and the columns; it does not depend on `label_names`. `lines` are the rows' numbers in their file, from 1; in a
    TFDS set, from 0.
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    fingerprint: str
    lines: Sequence[int]

    @property
    def labels_or_zeros(self) -> np.ndarray:
        """The labels, or in their place zeros that nothing reads, of the same kind."""
        kind = np.int32 if self.label_names else np.float32
        return np.zeros(len(self.texts), kind) if self.labels is None else self.labels


def read_rows(
    task: Task,
    source: DataSource,
    split: SplitName,
    labels: tuple[str, ...] | None = None,
    cache_dir: Path | None = None,
) -> Rows:
    """All rows of a split, checked.

    Args:
        task: a row of the task table.
        source: where the rows are; its columns, where given, replace the task's.
        split: train, dev or test; the last may come without labels.
        labels: the class names by id, say those of a teacher; they are authoritative. None: the task's, or those in
            the training file.
        cache_dir: default `$TINYBERT_JAX_CACHE`, else `$XDG_CACHE_HOME/tinybert_jax`, else `~/.cache/tinybert_jax`.

    Raises:
        InputError: a file or column is missing, a row is malformed (`path:line: reason`), a label is unknown, or the
            TFDS set is not prepared.
    """
    if source.tfds is not None:
        raw, where, fingerprint = _read_tfds(task, source, split)
    else:
        raw, where, fingerprint = _read_file(task, source, split, cache_dir)
    if task.is_regression:
        return Rows(raw.texts, _numbers(raw, where, split), (), fingerprint, raw.lines)
    names = labels if labels is not None else task.labels
    if names is None and split == "train":
        try:
            names = discover_labels(raw.labels or [])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if len(names) < 2:
            raise InputError(f"{where}: all rows have the label {names[0]!r}: classification needs at least two")
    elif names is None:
        names = read_rows(task, source, "train", None, cache_dir).label_names
    ids = _class_ids(raw, where, split, label_ids(task, names))
    return Rows(raw.texts, ids, names, fingerprint, raw.lines)


def _has_labels(raw: RawRows, split: SplitName) -> bool:
    return raw.labels is not None and not (split == "test" and set(raw.labels) <= UNLABELLED)


def _class_ids(raw: RawRows, where: str, split: SplitName, ids: dict[str, int]) -> np.ndarray | None:
    if not _has_labels(raw, split):
        return None
    assert raw.labels is not None
    for label, line in zip(raw.labels, raw.lines, strict=True):
        if label not in ids:
            known = ", ".join(map(repr, ids))
            raise InputError(
                f"{where}:{line}: unknown label {label!r}; model or training file have {known}: correct it in the"
                " file, or take a model that was fine-tuned on it"
            )
    return np.array([ids[label] for label in raw.labels], np.int32)


def _numbers(raw: RawRows, where: str, split: SplitName) -> np.ndarray | None:
    if not _has_labels(raw, split):
        return None
    assert raw.labels is not None
    numbers = []
    for label, line in zip(raw.labels, raw.lines, strict=True):
        try:
            numbers.append(float(label.replace("_", "?")))  # Python reads 1_000 as a number; a data file does not
        except ValueError:
            raise InputError(f"{where}:{line}: label {label!r} is not a number: regression needs one") from None
        if not math.isfinite(numbers[-1]) or abs(numbers[-1]) > float(np.finfo(np.float32).max):
            raise InputError(f"{where}:{line}: label {label!r} is not a finite number: correct or remove the row")
    return np.array(numbers, np.float32)


def split_path(task: Task, source: DataSource, split: SplitName) -> Path:
    """The split's file, which exists."""
    if source.data is None:
        given = {"train": source.train, "dev": source.dev, "test": source.test}[split]
        if given is None:
            raise InputError(f"no {split} file is given: add --{split} FILE")
        path = Path(given)
        if not path.is_file():
            raise InputError(
                f"{path}: {'a directory, not a' if path.is_dir() else 'no such'} file: give --{split} FILE"
            )
        return path
    folder = Path(source.data)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory: --data takes one with {task.train_file} and {task.dev_file}")
    path = folder / task.file(split)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise InputError(f"{path}: no such file; in the directory: {there}. Task {task.name!r} needs {path.name}")
    return path


def _read_file(task: Task, source: DataSource, split: SplitName, cache_dir: Path | None) -> tuple[RawRows, str, str]:
    path = split_path(task, source, split)
    named = source.names_columns
    headerless = task.headerless_columns if path.suffix == ".tsv" and split != "test" and not named else ()
    text_columns = source.text_columns or task.text_columns
    label_column = source.label_column or task.label_column
    form = [FORMAT_VERSION, path.suffix, text_columns, label_column, headerless, split == "test"]
    form += ["has damaged rows"] if task.has_damaged_rows else []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    fingerprint = hashlib.sha256(json.dumps(form).encode() + b"\n" + data).hexdigest()

    def build(folder: Path) -> None:
        needs_label, damaged = split != "test", task.has_damaged_rows
        raw = read_checked(path, data, text_columns, label_column, needs_label, headerless, damaged)
        # TFDS prints where it writes, always; the place is a temporary one.
        with contextlib.redirect_stdout(io.StringIO()):
            builder_class()(raw=raw, data_dir=str(folder), file_format="array_record").download_and_prepare()

    raw = cached(cache_folder(cache_dir) / "rows" / fingerprint, build, load_rows)
    return raw, str(path), fingerprint


def _read_tfds(task: Task, source: DataSource, split: SplitName) -> tuple[RawRows, str, str]:
    name = str(source.tfds)
    part = {"train": "train", "dev": task.tfds_dev, "test": task.tfds_test}[split]
    where = f"{name}[{part}]"
    features, records = tfds_records(name, part)
    # TFDS shuffles GLUE's rows and keeps their numbers: its server takes predictions in their order
    if isinstance(records[0].get("idx"), int | np.integer):
        records = sorted(records, key=lambda record: int(record["idx"]))
    text_columns = source.text_columns or task.tfds_text_columns or task.text_columns
    label_column = source.label_column or task.tfds_label_column
    for column in (*text_columns, *([label_column] if split != "test" else [])):
        if column not in records[0]:
            there = ", ".join(map(repr, records[0]))
            raise InputError(f"{where}: no feature {column!r}; there are {there}: {NAME_YOURS}")
    for column in text_columns:
        if not isinstance(records[0][column], bytes):
            raise InputError(f"{where}: feature {column!r} is not text: name another with --text-columns")
    texts = [tuple(record[c].decode() for c in text_columns) for record in records]
    labels, lines = None, list(range(len(texts)))
    if label_column in records[0]:
        names = getattr(features[label_column], "names", None)
        labels = [_written(record[label_column], names) for record in records]
        unlabelled = labels.count("")  # as of pairs of SNLI on which its annotators did not agree
        if 0 < unlabelled < len(labels):  # where none has one, it is a benchmark's test set
            print(f"note: {where}: {unlabelled} of {len(labels)} rows have no label and are left out", file=sys.stderr)
            lines = [i for i in lines if labels[i]]
            texts, labels = [texts[i] for i in lines], [labels[i] for i in lines]
    content = hashlib.sha256(json.dumps([FORMAT_VERSION, name, part, text_columns, label_column]).encode())
    for i, row in enumerate(texts):
        content.update(json.dumps([row, labels[i] if labels else None]).encode())
    return RawRows(texts, labels, lines), where, content.hexdigest()


def _written(label: Any, names: list[str] | None) -> str:
    if names is not None:
        return names[label] if label >= 0 else ""
    return label.decode() if isinstance(label, bytes) else str(label)
