"""Where rows and raw text come from."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinybert_jax.errors import InputError, check_seed
from tinybert_jax.settings.paths import expand_paths


@dataclass(frozen=True)
class TextForm:
    """How columns make the one or two texts of a row: a column is a text, or a template joins several columns to one.

    >>> form = TextForm.of((), ("{title}: {body}",), ("text",))
    >>> form.columns, form.texts({"title": "Cold", "body": "It broke.", "id": "7"})
    (('title', 'body'), ('Cold: It broke.',))
    """

    columns: tuple[str, ...]  # the columns to read
    templates: tuple[str, ...] = ()  # one for each text; (): the columns are the texts

    @classmethod
    def of(cls, columns: tuple[str, ...], templates: tuple[str, ...], default: tuple[str, ...]) -> TextForm:
        """The form for the columns or the templates that a user named, or for the columns `default`.

        Raises:
            InputError: columns and templates are both named, there are more than two, or a template is malformed.
        """
        if columns and templates:
            raise InputError("text_columns and text_template both say what the texts are: leave one out")
        for name, parts in (("text_columns", columns), ("text_template", templates)):
            if len(parts) > 2:
                advice = "; a --text-template joins columns" if columns else ""
                raise InputError(f"{name} are {', '.join(parts)}; BERT reads one text, or a pair{advice}")
        if not templates:
            return cls(columns or default)
        read = (column for template in templates for _, column in _parts(template) if column is not None)
        return cls(tuple(dict.fromkeys(read)), templates)

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call the texts."""
        return self.templates or self.columns

    @property
    def option(self) -> str:
        """The command-line option that sets this form."""
        return "--text-template" if self.templates else "--text-columns"

    @property
    def advice(self) -> str:
        """The advice in a message about a missing column."""
        return f"name yours with {self.option} and --label-column"

    def texts(self, cells: Mapping[str, Any]) -> tuple[Any, ...]:
        """The texts of a row. If all cells of a template are empty, its text is empty."""
        if not self.templates:
            return tuple(cells[column] for column in self.columns)
        return tuple(_filled(_parts(template), cells) for template in self.templates)


@functools.cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """The literal parts of a template, each with the column that follows it; None after the last.

    Raises:
        InputError: the braces do not match or hold more than a column's name, or the template names no column.
    """
    try:
        parts = [*string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"text_template {template!r}: {error}: write {{column}}, and {{{{ for a brace") from None
    for _, column, form, conversion in parts:
        if column is not None and (not column or form or conversion):
            raise InputError(f"text_template {template!r}: the name of a column, and no more, stands between braces")
    if all(column is None for _, column, _, _ in parts):
        raise InputError(f"text_template {template!r} names no column: write for example '{{title}}: {{body}}'")
    return tuple((literal, column) for literal, column, _, _ in parts)


def _filled(parts: tuple[tuple[str, str | None], ...], cells: Mapping[str, str]) -> str:
    if not any(cells[column].strip() for _, column in parts if column is not None):
        return ""
    return "".join(literal + ("" if column is None else cells[column]) for literal, column in parts)


@dataclass(frozen=True)
class DataSource:
    """Where rows come from: a directory in the GLUE layout, files of the user, or a prepared TFDS set.

    Raises:
        InputError: none or more than one of the three is set; `TextForm.of` refuses the columns or templates; or
            there are both a dev set and `dev_share`.
    """

    data: str | None = None  # directory with the task's files in the GLUE layout: train.tsv, dev.tsv (and test.tsv)
    train: str | None = None  # training rows: .tsv, .csv or .jsonl; .json for squad; a CoNLL file for ner
    # dev rows, in a file of the same kind. Models are scored on them. In training they choose the best checkpoint
    dev: str | None = None
    test: str | None = None  # test rows, in a file of the same kind, for `tinybert evaluate --split test`
    tfds: str | None = None  # name of a prepared TensorFlow Datasets set, for example glue/sst2
    text_columns: tuple[str, ...] = ()  # column (or JSON key) of the texts, or two for pairs. Default: the task's
    # template that joins columns to a text, such as '{title}: {body}'; two templates for pairs
    text_template: tuple[str, ...] = ()
    label_column: str | None = None  # column (or JSON key) of the labels. Default: the task's
    # in distill, compress and shrink: more training rows, without labels, for a teacher to label: .tsv, .csv, .jsonl,
    # or .txt with a text a line
    unlabelled: tuple[str, ...] = ()
    # in distill and shrink, for pairs: recombine their texts until there are this many training rows, for a teacher to
    # label. 0: recombine none. Default: 5000, if there are fewer than 1000 rows; else none
    recombine_to: int | None = None
    dev_share: float | None = None  # without a dev set: take this share of the training rows as one, such as 0.1
    dev_seed: int = 0  # seed that chooses the rows of --dev-share. It does not follow --seed
    id_column: str | None = None  # column of row ids, if the teacher is a file of predictions with the same ids
    label_delimiter: str | None = None  # for multi_label: what separates the labels in a cell, such as ';'

    @property
    def names_columns(self) -> bool:
        """Whether a column is named, so files must have a header."""
        named = (self.label_column, self.id_column)
        return bool(self.text_columns or self.text_template) or any(column is not None for column in named)

    def text_form(self, columns: tuple[str, ...], label_column: str) -> TextForm:
        """How columns make texts. `columns` and `label_column` are those of the task and the rows.

        Raises:
            InputError: a template reads the label column.
        """
        form = TextForm.of(self.text_columns, self.text_template, columns)
        if form.templates and label_column in form.columns:
            raise InputError(
                f"text_template has the column {label_column!r}, and that is the label: take it out, or name another"
                " --label-column"
            )
        return form

    @property
    def adding_option(self) -> str:
        """The option that adds training rows without labels; "" if none does."""
        return "--unlabelled" if self.unlabelled else "--recombine-to" if self.recombine_to else ""

    @property
    def has_labelled(self) -> bool:
        """Whether there are training rows with labels."""
        return self.data is not None or self.train is not None or self.tfds is not None

    def __post_init__(self) -> None:
        expand_paths(self, "data", "train", "dev", "test", "unlabelled")
        files = any(file is not None for file in (self.train, self.dev, self.test))
        check_seed("dev_seed", self.dev_seed)
        if self.dev_share is not None:
            if not 0 < self.dev_share < 1:
                raise InputError(f"dev_share is {self.dev_share}; it must be above 0 and below 1")
            if self.dev is not None or self.tfds is not None:
                raise InputError("dev_share is for training rows without a dev set: leave it out, or the dev set")
        if self.unlabelled and not files and self.data is None and self.tfds is None:
            raise InputError(
                "no dev set is split off from --unlabelled rows: add --dev FILE, with labels; a teacher may give them:"
                " tinybert predict --model TEACHER --input SOME.txt --out dev.tsv, and then --dev dev.tsv"
                " --label-column prediction"
            )
        if self.recombine_to is not None and self.recombine_to < 0:
            raise InputError(f"recombine_to is {self.recombine_to}; it must be a number of rows, or 0 for none")
        if self.recombine_to and self.id_column is not None:
            raise InputError("recombine_to makes rows without ids: leave it out, or id_column")
        ways = sum([self.data is not None, files, self.tfds is not None])
        if not ways:
            raise InputError(
                "no data are given: add --data DIR, or --train FILE --dev FILE, or --tfds NAME; evaluate scores the"
                " rows of --dev FILE, and needs no other"
            )
        if ways > 1:
            raise InputError("give the data in one way: --data DIR, or --train FILE --dev FILE, or --tfds NAME")
        if self.label_delimiter is not None and not self.label_delimiter.strip(" "):
            raise InputError(f"label_delimiter is {self.label_delimiter!r}; give what stands between labels, say ';'")
        if self.tfds is not None and self.id_column is not None:
            raise InputError("id_column is for files, and a TFDS set has none: leave it out")
        TextForm.of(self.text_columns, self.text_template, ())


CORPUS = "corpus"  # `Experiment.task` of training on raw text, which is no task


@dataclass(frozen=True)
class CorpusSource:
    """Raw text for general distillation and masked-LM training, and how it is cut into sequences.

    Raises:
        InputError: no file is given, a probability lies outside [0, 1], or `processes` is below 1.
    """

    files: tuple[str, ...]  # UTF-8 text files, also .gz; or one directory of shards that are built already
    one_document_per_line: bool = False  # else blank lines separate documents
    # sequences are pairs: half of them A and its continuation B, half A and a random B, as in BERT's pretraining
    pairs: bool = False
    short_sequence_probability: float = 0.1  # probability that a sequence is cut to a random shorter length
    processes: int = 1  # number of processes that build the shards. The shards do not depend on it

    def __post_init__(self) -> None:
        expand_paths(self, "files")
        if not self.files:
            raise InputError("a corpus needs at least one text file: give --corpus FILE")
        if not 0 <= self.short_sequence_probability <= 1:
            raise InputError(f"short_sequence_probability is {self.short_sequence_probability}; it must be in [0, 1]")
        if self.processes < 1:
            raise InputError(f"processes is {self.processes}; it must be at least 1")
