"""Local files and prepared TFDS sets -> checked rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.data.labels import UnknownLabel, discover_labels, label_ids, named_by
from tinybert_jax.data.reader import LabelSets, RawRows, decode, is_quoted_tsv, read_bytes, read_checked
from tinybert_jax.data.recombine import FEW_PAIRS, RECOMBINED, recombine
from tinybert_jax.data.suspects import ONE_LABEL, counts_rows, odd_class, refuse_json
from tinybert_jax.data.tfds import read_tfds
from tinybert_jax.errors import InputError, note
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task

FORMAT_VERSION = 1  # part of the fingerprint; increase it when the same file would give other rows
UNLABELLED = {"", "-1", "-1.0"}  # placeholders for labels in the test sets of benchmarks


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split.

    `texts` has one or two strings per row. `labels` are class ids, int32 [n]; numbers, float32 [n]; or in multi-label
    tasks 1 for each class of a row, int32 [n, c]. `labels` is None in a test split without labels. Training rows
    without a label have -1 or NaN. `label_names` are the classes by id, `()` in regression. `fingerprint` covers the
    content and the columns, not `label_names`. `lines` are the rows' numbers, from 1 in a file, from 0 in a TFDS set.
    `ids` are the values of the source's id column, if it names one.
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    fingerprint: str
    lines: Sequence[int]
    ids: Sequence[str] | None = None

    @property
    def labels_or_zeros(self) -> np.ndarray:
        """The labels; without labels, zeros of the same dtype as placeholders."""
        dtype = np.int32 if self.label_names else np.float32
        return np.zeros(len(self.texts), dtype) if self.labels is None else self.labels


def read_rows(task: Task, source: DataSource, split: SplitName, labels: tuple[str, ...] | None = None) -> Rows:
    """Read and check all rows of a split.

    Args:
        task: a row of the task table.
        source: where the rows are. Its columns, if it names any, replace the task's.
        split: train, dev or test. Only test may lack labels.
        labels: the class names by id, for example a teacher's. None: the task's, or those in the training file.

    Raises:
        InputError: a file or column is missing, a row is malformed (`path:line: reason`), a label is unknown, or the
            TFDS set is not prepared.
    """
    if split == "train" and source.adding_option:
        return _with_unlabelled(task, source, labels)
    whole = _read_file_of(task, source, split)
    raw, where, fingerprint = _part_of(whole, task, source, split)
    if task.is_regression:
        return Rows(raw.texts, _numbers(raw, where, split), (), fingerprint, raw.lines, raw.ids)
    names = labels if labels is not None else task.labels
    if names is None and split == "train":
        try:  # from the whole file: with a dev share, all rows of a rare class may be in the dev set
            names = discover_labels(_each_label(task, whole[0]), task.is_multi_label)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        odd = [] if task.is_multi_label else [name for name in names if re.search("[;|]", name)]
        if odd:
            note(f"{where}: {odd[0]!r} is read as one label, because {ONE_LABEL}")
        if problem := odd_class(names):
            note(f"{where}: {problem}")
        if len(names) < 2:
            named = f"all rows have the label {names[0]!r}" if names else "no row has a label"
            raise InputError(f"{where}: {named}: classification needs at least two")
    elif names is None:
        names = read_rows(task, source, "train").label_names
    ids = label_ids(task, names)
    ids |= _in_another_case(ids, names, set(_each_label(task, raw)))
    with contextlib.nullcontext() if labels is not None else named_by(names_from(task, source), is_model=False):
        if task.is_multi_label:
            numbers = _class_sets(raw, where, split, ids, len(names))
        else:
            numbers = _class_ids(raw, where, split, ids)
    return Rows(raw.texts, numbers, names, fingerprint, raw.lines, raw.ids)


def names_from(task: Task, source: DataSource) -> str:
    """What names the classes where no model does: the task, or the training rows."""
    if task.labels is not None:
        return f"task {task.name!r}"
    return source.tfds or str(split_path(task, source, "train"))


def known_labels(task: Task, source: DataSource) -> tuple[str, ...]:
    """The class names of the task, or else those of the labelled training and dev rows; () if no row is labelled.

    Raises:
        InputError: as `read_rows`.
    """
    if task.labels is not None:
        return task.labels
    splits: tuple[SplitName, ...] = ("train", "dev") if source.has_labelled else ("dev",)
    written = [label for split in splits for label in _each_label(task, _read(task, source, split)[0])]
    return discover_labels(written, task.is_multi_label) if written else ()


def _read(task: Task, source: DataSource, split: SplitName) -> tuple[RawRows, str, str]:
    """The split's rows as written, their place for messages, and the fingerprint of their content and columns."""
    return _part_of(_read_file_of(task, source, split), task, source, split)


def _read_file_of(task: Task, source: DataSource, split: SplitName) -> tuple[RawRows, str, str]:
    """As `_read`, but all rows of the file that has the split: with a dev share, those of the training file."""
    read = _read_file if source.tfds is None else read_tfds
    if source.dev_share is None or split == "test":
        return read(task, source, split)
    if source.data is not None and (Path(source.data) / task.dev_file).exists():
        raise InputError(f"{source.data}: holds the dev set {task.dev_file}: leave out --dev-share")
    return read(task, source, "train")


def _part_of(
    whole: tuple[RawRows, str, str], task: Task, source: DataSource, split: SplitName
) -> tuple[RawRows, str, str]:
    """As `_read`: the part of the result of `_read_file_of` that belongs to the split."""
    if source.dev_share is None or split == "test":
        return whole
    raw, where, fingerprint = whole
    kept_together = [text[:1] for text in raw.texts] if task.kind.by_query else raw.texts
    is_dev = _dev_rows(kept_together, source.dev_share, source.dev_seed)
    chosen = [number for number, value in enumerate(is_dev) if value == (split == "dev")]
    if not chosen:
        raise InputError(f"{where}: a share of {source.dev_share:g} leaves no {split} row: take another --dev-share")

    def part(column: Sequence[Any] | None) -> Any:
        return None if column is None else [column[number] for number in chosen]

    digest = hashlib.sha256(f"{fingerprint} {split} {source.dev_share} {source.dev_seed}".encode()).hexdigest()
    return RawRows(part(raw.texts), part(raw.labels), part(raw.lines), part(raw.ids)), where, digest


def _dev_rows(texts: Sequence[tuple[str, ...]], share: float, seed: int) -> list[bool]:
    """Whether each row is in the dev set. Rows with equal texts stay together, and a new row moves few others."""
    order = {row: hashlib.sha256(f"{seed} {json.dumps(row)}".encode()).digest() for row in texts}
    dev = set(sorted(order, key=lambda row: order[row])[: max(1, round(share * len(order)))])
    return [row in dev for row in texts]


def _with_unlabelled(task: Task, source: DataSource, labels: tuple[str, ...] | None) -> Rows:
    """The training rows, first those with a label."""
    missing = float("nan") if task.is_regression else -1
    dtype = np.float32 if task.is_regression else np.int32
    if source.has_labelled:
        rows = read_rows(task, replace(source, unlabelled=(), recombine_to=None), "train", labels)
    else:
        names = () if task.is_regression else labels or known_labels(task, source)
        shape = (0, len(names)) if task.is_multi_label else (0,)
        rows = Rows([], np.zeros(shape, dtype), names, "", [], None if source.id_column is None else [])
    assert rows.labels is not None, "training rows are labelled"
    joined = _joined(task, source, rows, source.unlabelled) if source.unlabelled else rows
    if source.recombine_to:
        joined = _recombined(joined, source.recombine_to)
    without = np.full((len(joined.texts) - len(rows.labels), *rows.labels.shape[1:]), missing, dtype)
    return replace(joined, labels=np.concatenate([rows.labels, without]))


def read_texts(task: Task, source: DataSource) -> Rows:
    """The rows of the training file, if there is one, and of the files of `unlabelled`, all without labels.

    Raises:
        InputError: as `read_rows`.
    """
    files = [str(split_path(task, source, "train"))] if source.has_labelled or not source.unlabelled else []
    none = Rows([], None, (), "", [], None if source.id_column is None else [])
    return _joined(task, source, none, (*files, *source.unlabelled))


def _recombined(rows: Rows, least: int) -> Rows:
    """The rows, followed by pairs of their texts, so that there are `least` rows if there are so many pairs."""
    if len(rows.texts[0]) != 2:
        raise InputError("recombine_to makes pairs of texts, and the rows are single texts: leave out --recombine-to")
    if len(rows.texts) >= least:
        return rows
    made = recombine([(first, second) for first, second in rows.texts], least - len(rows.texts))
    digest = hashlib.sha256(f"{rows.fingerprint} recombined to {least} by 2".encode()).hexdigest()
    return replace(rows, texts=[*rows.texts, *made], fingerprint=digest, lines=[*rows.lines, *[0] * len(made)])


class Recombining(NamedTuple):
    """A source, and what its `recombine_to` does."""

    source: DataSource
    made: int = 0  # the most new pairs
    is_few: bool = False  # whether pairs are made, and there are fewer than FEW_PAIRS rows without them


def recombines(task: Task, source: DataSource) -> Recombining:
    """The source with the default of `recombine_to` for training with a teacher.

    Raises:
        InputError: as `read_rows`.
    """
    form = source.text_form(task.text_columns, source.label_column or task.label_column)
    if len(form.names) != 2 or not task.kind.has_variants or source.id_column is not None or source.recombine_to == 0:
        return Recombining(source)  # before any file is read
    count = len(_read(task, source, "train")[0].texts) if source.has_labelled else 0
    count += sum(len(_read_unlabelled(task, source, Path(file))[0].texts) for file in source.unlabelled)
    if source.recombine_to is None and count < FEW_PAIRS:
        source = replace(source, recombine_to=RECOMBINED)
    made = max(0, (source.recombine_to or 0) - count)
    return Recombining(source, made, is_few=made > 0 and count < FEW_PAIRS)


def _joined(task: Task, source: DataSource, rows: Rows, files: Sequence[str]) -> Rows:
    """The rows, followed by the rows of files without labels."""
    texts, lines, ids, prints = [*rows.texts], [*rows.lines], rows.ids, [rows.fingerprint]
    for file in files:
        raw, fingerprint = _read_unlabelled(task, source, Path(file))
        texts += raw.texts
        lines += raw.lines
        ids = None if ids is None or raw.ids is None else [*ids, *raw.ids]
        prints.append(fingerprint)
    digest = hashlib.sha256(json.dumps(prints).encode()).hexdigest()
    return replace(rows, texts=texts, fingerprint=digest, lines=lines, ids=ids)


def _read_unlabelled(task: Task, source: DataSource, path: Path) -> tuple[RawRows, str]:
    """The rows of a file without labels, and the fingerprint of its content and columns."""
    texts = source.text_form(task.text_columns, source.label_column or task.label_column)
    data = read_bytes(path)
    form = [FORMAT_VERSION, path.suffix.lower(), texts.columns, *texts.templates, *_quoted(path, data)]
    fingerprint = hashlib.sha256(json.dumps(form).encode() + b"\n" + data)
    if path.suffix.lower() == ".txt":
        if len(texts.columns) > 1 or texts.templates or source.id_column is not None:
            raise InputError(f"{path}: a .txt has one text a line, and no other column: give a .tsv, .csv or .jsonl")
        refuse_json(path, decode(path, data), "a text a line")
        numbered = [(n, line.removesuffix("\r")) for n, line in enumerate(decode(path, data).split("\n"), 1)]
        rows = [(number, line) for number, line in numbered if line.strip()]
        if not rows:
            raise InputError(f"{path}:1: the file is empty: give one with a text a line")
        if counts_rows([re.split("[\t,; ]", line)[0] for _, line in rows]):
            raise InputError(f"{path}:1: each line begins with its number, as an index: remove the numbers")
        raw = RawRows([(line,) for _, line in rows], None, [number for number, _ in rows])
    else:
        raw = read_checked(path, data, texts, None, False, id_column=source.id_column)
    return raw, fingerprint.hexdigest()


def _quoted(path: Path, data: bytes) -> list[str]:
    """The part of a fingerprint that says that a .tsv is read with quotes. Others keep the fingerprint of 0.1."""
    return ["quoted"] if path.suffix.lower() == ".tsv" and is_quoted_tsv(path, decode(path, data)) else []


def _has_labels(raw: RawRows, split: SplitName) -> bool:
    return raw.labels is not None and not (split == "test" and set(raw.labels) <= {*UNLABELLED, ()})


def _each_label(task: Task, raw: RawRows) -> list[str]:
    """All labels of all rows, as written in the source."""
    labels = raw.labels or []
    return [label for each in labels for label in each] if task.is_multi_label else labels


def _in_another_case(ids: dict[str, int], names: tuple[str, ...], written: set[str]) -> dict[str, int]:
    """The ids of labels that differ from exactly one name only in case, such as `positive` for `POSITIVE`."""
    folded = Counter(name.casefold() for name in names)
    by_case = {name.casefold(): i for i, name in enumerate(names) if folded[name.casefold()] == 1}
    return {label: by_case[label.casefold()] for label in written - ids.keys() if label.casefold() in by_case}


def _class_ids(raw: RawRows, where: str, split: SplitName, ids: dict[str, int]) -> np.ndarray | None:
    if not _has_labels(raw, split):
        return None
    assert raw.labels is not None
    pairs = zip(raw.labels, raw.lines, strict=True)
    return np.array([_id(label, f"{where}:{line}", ids, raw.labels) for label, line in pairs], np.int32)


def _class_sets(raw: RawRows, where: str, split: SplitName, ids: dict[str, int], count: int) -> np.ndarray | None:
    if not _has_labels(raw, split):
        return None
    assert raw.labels is not None
    written = [label for labels in raw.labels for label in labels]
    sets = np.zeros((len(raw.labels), count), np.int32)
    for row, (labels, line) in enumerate(zip(raw.labels, raw.lines, strict=True)):
        sets[row, [_id(label, f"{where}:{line}", ids, written) for label in labels]] = 1
    return sets


def _id(label: str, where: str, ids: dict[str, int], written: Sequence[str]) -> int:
    """The id of a label in a file."""
    if label in ids:
        return ids[label]
    parts = re.split("[;|,]", label)
    if len(parts) > 1 and all(part.strip() in ids for part in parts):
        raise InputError(f"{where}: the label {label!r} is several of {', '.join(map(repr, ids))}: {ONE_LABEL}")
    raise UnknownLabel(f"{where}: unknown label {label!r}", *_answer(ids, written))


def _answer(ids: dict[str, int], written: Sequence[str]) -> tuple[str, str]:
    """The classes that a model or a training file has, and what to do about labels that it does not have."""
    numbers = sorted(set(ids.values()))
    if any(f"LABEL_{number}" not in ids for number in numbers):
        known = ", ".join(map(repr, ids))
        remedy = "correct it in the file, or in id2label of its config.json, or take a model that has the label"
        if all(label.isdecimal() for label in written):
            numbered = ", ".join(f"{name!r} for {number}" for name, number in ids.items())
            remedy = f"write the names of the classes in their place; if they are the model's numbers, {numbered}"
        return known, remedy
    labels = sorted(set(written))
    names = labels if len(labels) == len(numbers) else ["..."] * len(numbers)
    example = json.dumps({str(number): name for number, name in zip(numbers, names, strict=True)}, ensure_ascii=False)
    return f"{len(numbers)} classes that were never named", (
        f'write their names into its config.json, in the order of its training, such as "id2label": {example}; to see'
        " the order, let tinybert predict a few rows whose classes you know"
    )


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
    """The path of the split's file. It is checked to exist."""
    if source.data is None:
        file = {"train": source.train, "dev": source.dev, "test": source.test}[split]
        if file is None:
            others = ", or --dev-share 0.1, which splits off training rows" if split == "dev" else ""
            if split == "dev" and source.test is not None:
                others += "; --split test reads that of --test"
            raise InputError(f"no {split} file is given: add --{split} FILE{others}")
        path = Path(file)
        if not path.is_file():
            raise InputError(f"{path}: {'a directory, not a' if path.is_dir() else 'no such'} file: correct --{split}")
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
    headerless = path.suffix.lower() == ".tsv" and split != "test" and not source.names_columns
    header = task.headerless_columns if headerless else ()
    label_column = source.label_column or task.label_column
    texts = source.text_form(task.text_columns, label_column)
    form = [FORMAT_VERSION, path.suffix.lower(), texts.columns, label_column, header, split == "test"]
    form += [texts.templates] if texts.templates else []
    form += ["has damaged rows"] if task.has_damaged_rows else []
    form += [] if source.id_column is None else [source.id_column]
    label_sets = LabelSets(source.label_delimiter) if task.is_multi_label else None
    form += [] if label_sets is None else [f"label sets, between them {source.label_delimiter}"]
    data = read_bytes(path)
    form += _quoted(path, data)
    fingerprint = hashlib.sha256(json.dumps(form).encode() + b"\n" + data).hexdigest()
    needs_label = split != "test"
    damaged = task.has_damaged_rows
    raw = read_checked(path, data, texts, label_column, needs_label, header, damaged, source.id_column, label_sets)
    return raw, str(path), fingerprint
