"""Local files and prepared TFDS sets -> checked rows.

Every local file is read by one strict reader, which names file and line of what is wrong, and is then kept as a TFDS
set in the user's cache folder, keyed by its content; the next reading only hashes the file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinybert_jax.config import InputError
from tinybert_jax.experiment import DataSource
from tinybert_jax.reader import NAME_YOURS, RawRows, read_checked
from tinybert_jax.tasks import SplitName, Task, discover_labels, label_ids

FORMAT_VERSION = 1  # of the cached rows; count it up when the same file would give other rows
UNLABELLED = {"", "-1", "-1.0"}  # what the benchmark's test sets hold in place of labels

T = TypeVar("T")


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


def cache_folder(cache_dir: Path | None) -> Path:
    """The folder given, or the user's: see `read_rows`."""
    if cache_dir is not None:
        return cache_dir
    if os.environ.get("TINYBERT_JAX_CACHE"):
        return Path(os.environ["TINYBERT_JAX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinybert_jax"


def cached(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """As `_cached`; once more, should another process meanwhile have removed the entry, to make room for its own."""
    try:
        return _cached(entry, build, load)
    except FileNotFoundError:
        return _cached(entry, build, load)


def _cached(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """What `load` makes of the folder `entry`, which `build` fills first where it is missing or does not load.

    The folder appears by one rename, so a killed process leaves nothing half done, and of two that race one wins.

    Raises:
        InputError: the cache cannot be written.
    """
    corrupt = False
    if entry.is_dir():
        try:
            return load(entry)
        except Exception as error:  # a damaged file can fail in any way, and the remedy is always the same
            logging.getLogger(__name__).warning("%s does not load (%s); it is built anew", entry, error)
            corrupt = True
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".tmp-", ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            build(new)
            if corrupt:
                with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                    entry.rename(Path(temporary) / "old")
            try:
                new.rename(entry)
            except OSError:
                if not entry.is_dir():
                    raise
                # Another process was first. The key is the content's, so its entry is as good as ours.
    except OSError as error:
        raise InputError(f"{entry.parent}: cannot write the cache ({error}): set TINYBERT_JAX_CACHE") from error
    return load(entry)


def cached_arrays(
    cache_dir: Path | None, kind: str, fingerprint: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The named arrays that `make` gives, kept in the cache under `kind` and the fingerprint of what they depend on.

    Raises:
        InputError: the cache cannot be written.
    """

    def build(folder: Path) -> None:
        np.savez(folder / f"{kind}.npz", allow_pickle=False, **make())

    def load(folder: Path) -> dict[str, np.ndarray]:
        # A zip, so every array has its checksum. numpy does not close a damaged file that it opened itself.
        with open(folder / f"{kind}.npz", "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    return cached(cache_folder(cache_dir) / kind / fingerprint, build, load)


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
            _builder_class()(raw=raw, data_dir=str(folder), file_format="array_record").download_and_prepare()

    raw = cached(cache_folder(cache_dir) / "rows" / fingerprint, build, _load)
    return raw, str(path), fingerprint


@functools.cache  # TFDS registers a builder class by name, and takes each name once
def _builder_class() -> Any:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class LocalRows(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, *, raw: RawRows, **kwargs: Any) -> None:
            self._raw = raw
            super().__init__(**kwargs)

        def _info(self) -> Any:
            features = {f"text_{i}": tfds.features.Text() for i in range(len(self._raw.texts[0]))}
            features |= {"label": tfds.features.Text()} if self._raw.labels is not None else {}
            features |= {"line": tfds.features.Scalar(np.int64)}
            # Rows stay in the order of the file: predictions are written in it.
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"rows": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i, (texts, line) in enumerate(zip(self._raw.texts, self._raw.lines, strict=True)):
                label = {"label": self._raw.labels[i]} if self._raw.labels is not None else {}
                yield i, {f"text_{k}": text for k, text in enumerate(texts)} | label | {"line": line}

    return LocalRows


def _load(folder: Path) -> RawRows:
    import tensorflow_datasets as tfds

    records = _records(tfds.builder_from_directory(folder / "local_rows" / "1.0.0").as_data_source(split="rows"))
    columns = sorted(name for name in records[0] if name.startswith("text_"))
    texts = [tuple(record[c].decode() for c in columns) for record in records]
    labels = [record["label"].decode() for record in records] if "label" in records[0] else None
    return RawRows(texts, labels, [int(record["line"]) for record in records])


def _records(source: Any) -> list[dict[str, Any]]:
    """All records of a TFDS data source, in chunks: one by one is six times slower."""
    starts = range(0, len(source), 10_000)
    return [r for start in starts for r in source.__getitems__(range(start, min(start + 10_000, len(source))))]


def tfds_records(name: str, part: str) -> tuple[Any, list[dict[str, Any]]]:
    """The features of a prepared TFDS set, and all records of one of its splits.

    Raises:
        InputError: the set is not prepared, or has no such split, or an empty one.
    """
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    # TFDS finds the GLUE sets by name only once their module has been imported.
    first = "from tensorflow_datasets.text import glue; " if name.split("/")[0] == "glue" else ""
    how = (
        f'prepare it once, with TensorFlow and a network: python -c "{first}import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )
    try:
        builder: Any = builder_from_files(name)
    except Exception as error:  # TFDS has many; all of them mean that there are no files of that name to read
        raise InputError(f"TFDS set {name!r} is not prepared on this machine: {how}") from error
    where = f"{name}[{part}]"
    if part not in builder.info.splits:
        raise InputError(f"{where}: no such split; the set has {', '.join(sorted(builder.info.splits))}")
    try:
        records = _records(builder.as_data_source(split=part))
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"{where}: the files cannot be read at random as array_record can: {how}") from error
    if not records:
        raise InputError(f"{where}: the split is empty: give another set")
    return builder.info.features, records


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
