"""TensorFlow Datasets: prepared sets, and the copies of local rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.data.reader import RawRows
from tinybert_jax.errors import InputError


@functools.cache  # TFDS registers a builder class by name, and takes each name once
def builder_class() -> Any:
    """The TFDS builder that writes local rows."""
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


def load_rows(folder: Path) -> RawRows:
    """The rows that `builder_class` wrote into a folder."""
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
