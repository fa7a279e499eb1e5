"""Local files and prepared TFDS sets -> checked rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinybert_jax.data.labels import discover_labels, label_ids
from tinybert_jax.data.reader import RawRows, read_checked
from tinybert_jax.data.tfds import read_tfds
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task

FORMAT_VERSION = 1  # part of the fingerprint; increase it when the same file would give other rows
UNLABELLED = {"", "-1", "-1.0"}  # placeholders for labels in the test sets of benchmarks


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split.

    `texts` holds one or two strings per row. `labels` holds class ids, int32 [n], or numbers, float32 [n]; it is None
    in a test split without labels. `label_names` are the classes by id, `()` in regression. `fingerprint` covers the
    content and the columns, not `label_names`. `lines` are the rows' numbers, from 1 in a file, from 0 in a TFDS set.
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    fingerprint: str
    lines: Sequence[int]

    @property
    def labels_or_zeros(self) -> np.ndarray:
        """The labels; without labels, zeros of the same dtype, which nothing reads."""
        dtype = np.int32 if self.label_names else np.float32
        return np.zeros(len(self.texts), dtype) if self.labels is None else self.labels


def read_rows(task: Task, source: DataSource, split: SplitName, labels: tuple[str, ...] | None = None) -> Rows:
    """Read and check all rows of a split.

    Args:
        task: a row of the task table.
        source: where the rows are. Its columns, if it names any, replace the task's.
        split: train, dev or test. Only test may lack labels.
        labels: the class names by id, for example a teacher's; they are authoritative. None: the task's, or those in
            the training file.

    Raises:
        InputError: a file or column is missing, a row is malformed (`path:line: reason`), a label is unknown, or the
            TFDS set is not prepared.
    """
    read = _read_file if source.tfds is None else read_tfds
    raw, where, fingerprint = read(task, source, split)
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
        names = read_rows(task, source, "train").label_names
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
                f"{where}:{line}: unknown label {label!r}; the model or training file has {known}: correct it in"
                " the file, or take a model that was fine-tuned on it"
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
    """The path of the split's file, which exists."""
    if source.data is None:
        file = {"train": source.train, "dev": source.dev, "test": source.test}[split]
        if file is None:
            raise InputError(f"no {split} file is given: add --{split} FILE")
        path = Path(file)
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
        listing = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise InputError(f"{path}: no such file; in the directory: {listing}. Task {task.name!r} needs {path.name}")
    return path


def _read_file(task: Task, source: DataSource, split: SplitName) -> tuple[RawRows, str, str]:
    """The split's rows as written, the file's name for messages, and the fingerprint of its content and columns."""
    path = split_path(task, source, split)
    headerless = path.suffix == ".tsv" and split != "test" and not source.names_columns
    header = task.headerless_columns if headerless else ()
    text_columns = source.text_columns or task.text_columns
    label_column = source.label_column or task.label_column
    form = [FORMAT_VERSION, path.suffix, text_columns, label_column, header, split == "test"]
    form += ["has damaged rows"] if task.has_damaged_rows else []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    fingerprint = hashlib.sha256(json.dumps(form).encode() + b"\n" + data).hexdigest()
    raw = read_checked(path, data, text_columns, label_column, split != "test", header, task.has_damaged_rows)
    return raw, str(path), fingerprint
