"""Prepared sets of TensorFlow Datasets (TFDS)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from tinybert_jax.data.reader import RawRows
from tinybert_jax.errors import InputError, note
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task

FORMAT_VERSION = 1  # part of the fingerprint; increase it when the same set would give other rows


def read_tfds(task: Task, source: DataSource, split: SplitName) -> tuple[RawRows, str, str]:
    """The split's rows as written, `SET[SPLIT]` for messages, and the fingerprint of its content and columns.

    Raises:
        InputError: the set is not prepared, or has no such split, or a feature is missing or is not text.
    """
    name = str(source.tfds)
    part = {"train": "train", "dev": task.tfds_dev, "test": task.tfds_test}[split]
    where = f"{name}[{part}]"
    features, records = tfds_records(name, part)
    # TFDS shuffles GLUE's rows and keeps their numbers. GLUE's server takes predictions in the order of the numbers.
    if isinstance(records[0].get("idx"), int | np.integer):
        records = sorted(records, key=lambda record: int(record["idx"]))
    label_column = source.label_column or task.tfds_label_column
    form = source.text_form(task.tfds_text_columns or task.text_columns, label_column)
    for column in (*form.columns, *([label_column] if split != "test" else [])):
        if column not in records[0]:
            names = ", ".join(map(repr, records[0]))
            raise InputError(f"{where}: no feature {column!r}; there are {names}: {form.advice}")
    for column in form.columns:
        is_joined = form.templates and np.ndim(records[0][column]) == 0
        if not (isinstance(records[0][column], bytes) or is_joined):
            raise InputError(f"{where}: feature {column!r} is not text: name another with {form.option}")
    classes = {column: getattr(features[column], "names", None) for column in form.columns}
    texts = [form.texts({c: _label_text(record[c], classes[c]) for c in form.columns}) for record in records]
    labels, lines = None, list(range(len(texts)))
    if label_column in records[0]:
        class_names = getattr(features[label_column], "names", None)
        labels = [_label_text(record[label_column], class_names) for record in records]
        unlabelled = labels.count("")  # for example pairs of SNLI on which the annotators did not agree
        if 0 < unlabelled < len(labels):  # a set without any label is a benchmark's test set
            note(f"{where}: {unlabelled} of {len(labels)} rows have no label and are left out")
            lines = [i for i in lines if labels[i]]
            texts, labels = [texts[i] for i in lines], [labels[i] for i in lines]
    content = hashlib.sha256(
        json.dumps([FORMAT_VERSION, name, part, form.columns, label_column, *form.templates]).encode()
    )
    for i, row in enumerate(texts):
        content.update(json.dumps([row, labels[i] if labels else None]).encode())
    return RawRows(texts, labels, lines), where, content.hexdigest()


def _label_text(label: Any, class_names: list[str] | None) -> str:
    """A label or a part of a text, as written in a file. A missing class, -1 in TFDS, becomes ""."""
    if class_names is not None:
        return class_names[label] if label >= 0 else ""
    return label.decode() if isinstance(label, bytes) else str(label)


def tfds_records(name: str, part: str) -> tuple[Any, list[dict[str, Any]]]:
    """The features of a prepared TFDS set, and all records of one of its splits.

    Raises:
        InputError: the set is not prepared, or has no such split, or an empty one.
    """
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    # TFDS finds the GLUE sets by name only once their module has been imported.
    glue_import = "from tensorflow_datasets.text import glue; " if name.split("/")[0] == "glue" else ""
    advice = (
        f'prepare it once, with TensorFlow and a network: python -c "{glue_import}import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )
    try:
        builder: Any = builder_from_files(name)
    except Exception as error:  # TFDS has many; all of them mean that there are no files of that name to read
        raise InputError(f"TFDS set {name!r} is not prepared on this machine: {advice}") from error
    where = f"{name}[{part}]"
    if part not in builder.info.splits:
        raise InputError(f"{where}: no such split; the set has {', '.join(sorted(builder.info.splits))}")
    try:
        records = _records(builder.as_data_source(split=part))
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"{where}: the files cannot be read at random as array_record can: {advice}") from error
    if not records:
        raise InputError(f"{where}: the split is empty: give another set")
    return builder.info.features, records


def _records(source: Any) -> list[dict[str, Any]]:
    """All records of a TFDS data source, in chunks: one by one is six times slower."""
    starts = range(0, len(source), 10_000)
    return [r for start in starts for r in source.__getitems__(range(start, min(start + 10_000, len(source))))]
