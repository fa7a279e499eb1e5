"""Where rows and raw text come from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tinybert_jax.errors import InputError, check_seed


def _expand_home(source: object, *names: str) -> None:
    """Put the user's home directory for `~` in these fields: a path, or several."""
    for name in names:
        value = getattr(source, name)
        if isinstance(value, str):
            object.__setattr__(source, name, os.path.expanduser(value))
        elif value is not None:
            object.__setattr__(source, name, tuple(map(os.path.expanduser, value)))


@dataclass(frozen=True)
class DataSource:
    """Where rows come from: one of a directory in the GLUE layout, files of the user's own, or a prepared TFDS set.

    Raises:
        InputError: none, or more than one, of the three is given; there are more than two text columns; or the dev
            set is given and split off.
    """

    data: str | None = None  # directory with the task's files: train.tsv, dev.tsv (and test.tsv)
    train: str | None = None  # .tsv, .csv or .jsonl; for squad .json; for ner a CoNLL file
    dev: str | None = None  # likewise; it selects the best state and is scored
    test: str | None = None  # likewise: what `evaluate --split test` predicts
    tfds: str | None = None  # name of a prepared TensorFlow Datasets set, for example glue/sst2
    text_columns: tuple[str, ...] = ()  # one or two; default: the task's
    label_column: str | None = None  # default: the task's
    unlabelled: tuple[str, ...] = ()  # .tsv, .csv, .jsonl, or .txt with a text a line: rows that a teacher labels
    dev_share: float | None = None  # of the training rows, which become the dev set; where no dev file is given
    dev_seed: int = 0  # decides which rows these are; it does not change with the run's seed
    id_column: str | None = None  # of the rows' ids, by which a file of predictions may name them
    label_delimiter: str | None = None  # between the labels of a cell, where rows have any number of them

    @property
    def names_columns(self) -> bool:
        """Whether a column is named, so that files have a header."""
        return bool(self.text_columns) or self.label_column is not None or self.id_column is not None

    @property
    def has_labelled(self) -> bool:
        """Whether there are training rows with labels."""
        return self.data is not None or self.train is not None or self.tfds is not None

    def __post_init__(self) -> None:
        _expand_home(self, "data", "train", "dev", "test", "unlabelled")
        files = any(file is not None for file in (self.train, self.dev, self.test))
        check_seed("dev_seed", self.dev_seed)
        if self.dev_share is not None:
            if not 0 < self.dev_share < 1:
                raise InputError(f"dev_share is {self.dev_share}; it must be above 0 and below 1")
            if self.dev is not None or self.tfds is not None:
                raise InputError("dev_share is for training rows without a dev set: leave it out, or the dev set")
        if sum([self.data is not None, files, self.tfds is not None]) != 1:
            raise InputError("give the data in one way: --data DIR, or --train FILE --dev FILE, or --tfds NAME")
        if self.label_delimiter is not None and not self.label_delimiter.strip(" "):
            raise InputError(f"label_delimiter is {self.label_delimiter!r}; give what stands between labels, say ';'")
        if self.tfds is not None and self.id_column is not None:
            raise InputError("id_column is for files, and a TFDS set has none: leave it out")
        if len(self.text_columns) > 2:
            raise InputError(f"text_columns are {', '.join(self.text_columns)}; BERT reads one text, or a pair")


@dataclass(frozen=True)
class CorpusSource:
    """Raw text for general distillation and masked-LM training, and how it is cut into sequences.

    Raises:
        InputError: no file is given, a probability lies outside [0, 1], or `processes` is below 1.
    """

    files: tuple[str, ...]  # UTF-8 text, .gz too; or one directory of shards that were built before
    one_document_per_line: bool = False  # else documents are separated by blank lines
    pairs: bool = False  # half of the sequences are A and its continuation B, half A and a random B, as BERT's were
    short_sequence_probability: float = 0.1  # of a sequence that is cut to a random shorter length
    processes: int = 1  # that build the shards; the shards do not depend on it

    def __post_init__(self) -> None:
        _expand_home(self, "files")
        if not self.files:
            raise InputError("a corpus needs at least one text file: give --corpus FILE")
        if not 0 <= self.short_sequence_probability <= 1:
            raise InputError(f"short_sequence_probability is {self.short_sequence_probability}; it must be in [0, 1]")
        if self.processes < 1:
            raise InputError(f"processes is {self.processes}; it must be at least 1")
