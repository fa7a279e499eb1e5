"""The task table: columns, labels, metrics and recipe of every task."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tinybert_jax.errors import InputError, nearest

SplitName = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Kind:
    """A kind of task: the head that it trains, and what its rows and labels are."""

    name: str  # a row of `tasks.kinds.LOADERS`
    head: str  # a row of `models.heads.HEADS`
    has_columns: bool = False  # rows are texts in columns, which can be named
    names_classes: bool = False  # labels are class names, whose order a model may define
    is_regression: bool = False  # labels are numbers
    is_multi_label: bool = False  # a row has any number of classes
    problem_type: str | None = None  # the `problem_type` in a `config.json`
    learns_labels: bool = True  # training rows have labels, unless a teacher labels them
    by_query: bool = False  # rows are passages for queries, and those of a query are compared
    distilled_by: str = "prediction"  # the objective that learns a teacher's outputs: a row of `objectives.WORDS`
    supervised_by: str = "supervised"  # the objective that learns labels alone: a row of `objectives.WORDS`

    @property
    def labels_each_row(self) -> bool:
        """Whether a training row and its label can be learnt without other rows."""
        return self.learns_labels and not self.by_query

    @property
    def has_variants(self) -> bool:
        """Whether training rows can be augmented."""
        return self.has_columns and self.labels_each_row


CLASSIFICATION = Kind(
    "classification", "sequence", has_columns=True, names_classes=True, problem_type="single_label_classification"
)
MULTI_LABEL = Kind(
    "multi_label",
    "sequence",
    has_columns=True,
    names_classes=True,
    is_multi_label=True,
    problem_type="multi_label_classification",
)
REGRESSION = Kind("regression", "sequence", has_columns=True, is_regression=True, problem_type="regression")
ANSWERS = Kind("answers", "span")
TAGS = Kind("tags", "tokens", names_classes=True)
VECTORS = Kind(
    "vectors", "embedding", has_columns=True, is_regression=True, learns_labels=False, distilled_by="embedding"
)
RETRIEVAL = dataclasses.replace(VECTORS, name="retrieval")
RANKING = Kind(
    "ranking",
    "sequence",
    has_columns=True,
    is_regression=True,
    by_query=True,
    distilled_by="ranking",
    supervised_by="ranking_labels",
)


@dataclass(frozen=True)
class Task:
    """One task: where its text and labels are, how it is scored, and the paper's recipe (arXiv 1909.10351, 4.2).

    `labels` are the class names by id, in the order of the Hugging Face hub; () in regression; None if they come from
    the training file. `written` are the labels as the official files write them; by default, as in `labels`.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    intermediate_epochs: int
    max_length: int = 128
    variants: int = 20  # augmented copies per row, including the row (the original code writes the row and N copies)
    kind: Kind = CLASSIFICATION
    written: tuple[str, ...] = ()
    headerless_columns: tuple[str, ...] = ()  # columns of the official train and dev files, if they have no header
    train_file: str = "train.tsv"
    dev_file: str = "dev.tsv"
    test_file: str = "test.tsv"
    tfds_text_columns: tuple[str, ...] = ()  # default: text_columns
    tfds_label_column: str = "label"
    tfds_dev: str = "validation"
    tfds_test: str = "test"
    intermediate_learning_rate: float = 5e-5
    prediction_epochs: int = 3
    prediction_learning_rate: float = 3e-5  # the paper tries 1e-5, 2e-5 and 3e-5
    hub_dataset: str = ""  # id of its data on the Hugging Face hub; the splits have the same names as in TFDS
    hub_config: str = ""  # the configuration of that dataset
    submission: str = ""  # the name of the file of test predictions for the benchmark's server
    second: str = ""  # a task whose dev and test sets are scored too, but never choose a checkpoint
    may_lack_answers: bool = False  # a question with an empty list of answers has no answer
    has_damaged_rows: bool = False  # its official files have rows that are cut short or lack one of two texts

    @property
    def is_regression(self) -> bool:
        """Labels are numbers, not classes."""
        return self.kind.is_regression

    @property
    def is_multi_label(self) -> bool:
        """A row has any number of classes."""
        return self.kind.is_multi_label

    @property
    def head(self) -> str:
        """The head that the task trains: a row of `models.heads.HEADS`."""
        return self.kind.head

    @property
    def selection(self) -> str:
        """The score that chooses the best checkpoint: in sequence tasks with several scores, their mean; else, as in
        tasks with queries, the first."""
        if not (self.kind.has_columns and self.kind.labels_each_row) or len(self.metrics) == 1:
            return self.metrics[0]
        return "mean_" + "_".join(self.metrics)

    def file(self, split: SplitName) -> str:
        """The name of the split's file in the GLUE layout."""
        return {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}[split]


_GLUE = "nyu-mll/glue"
_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = Task(
    "mnli",
    _PAIR,
    "gold_label",
    ("entailment", "neutral", "contradiction"),
    ("accuracy",),
    10,
    dev_file="dev_matched.tsv",
    test_file="test_matched.tsv",
    variants=10,
    hub_dataset=_GLUE,
    hub_config="mnli",
    submission="MNLI-m.tsv",
    second="mnli_mismatched",
    tfds_text_columns=("premise", "hypothesis"),
    tfds_dev="validation_matched",
    tfds_test="test_matched",
)
_SQUAD = Task(
    "squad",
    (),
    "",
    None,
    ("f1", "exact_match"),
    3,
    max_length=384,
    kind=ANSWERS,
    train_file="train-v1.1.json",
    dev_file="dev-v1.1.json",
    test_file="test.json",
    hub_dataset="rajpurkar/squad",
    hub_config="plain_text",
)
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            ("sentence",),
            "label",
            ("unacceptable", "acceptable"),
            ("matthews",),
            50,
            max_length=64,
            variants=30,
            hub_dataset=_GLUE,
            hub_config="cola",
            submission="CoLA.tsv",
            written=("0", "1"),
            headerless_columns=("source", "label", "mark", "sentence"),
        ),
        Task(
            "sst2",
            ("sentence",),
            "label",
            ("negative", "positive"),
            ("accuracy",),
            20,
            max_length=64,
            hub_dataset=_GLUE,
            hub_config="sst2",
            submission="SST-2.tsv",
            written=("0", "1"),
        ),
        Task(
            "mrpc",
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            20,
            variants=30,
            hub_dataset=_GLUE,
            hub_config="mrpc",
            submission="MRPC.tsv",
            written=("0", "1"),
            tfds_text_columns=_PAIR,
        ),
        Task(
            "stsb",
            _PAIR,
            "score",
            (),
            ("pearson", "spearman"),
            20,
            variants=30,
            hub_dataset=_GLUE,
            hub_config="stsb",
            submission="STS-B.tsv",
            kind=REGRESSION,
        ),
        Task(
            "qqp",
            ("question1", "question2"),
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            10,
            variants=10,
            hub_dataset=_GLUE,
            hub_config="qqp",
            submission="QQP.tsv",
            written=("0", "1"),
            has_damaged_rows=True,
        ),
        _MNLI,
        # A separate task, so that the mismatched dev set never chooses the checkpoint of the matched one.
        dataclasses.replace(
            _MNLI,
            name="mnli_mismatched",
            dev_file="dev_mismatched.tsv",
            test_file="test_mismatched.tsv",
            submission="MNLI-mm.tsv",
            second="",
            tfds_dev="validation_mismatched",
            tfds_test="test_mismatched",
        ),
        Task(
            "qnli",
            ("question", "sentence"),
            "label",
            _ENTAILMENT,
            ("accuracy",),
            10,
            hub_dataset=_GLUE,
            hub_config="qnli",
            submission="QNLI.tsv",
        ),
        Task(
            "rte",
            _PAIR,
            "label",
            _ENTAILMENT,
            ("accuracy",),
            20,
            variants=30,
            hub_dataset=_GLUE,
            hub_config="rte",
            submission="RTE.tsv",
        ),
        # The paper leaves WNLI out; the recipe is RTE's.
        Task(
            "wnli",
            _PAIR,
            "label",
            ("not_entailment", "entailment"),
            ("accuracy",),
            20,
            variants=30,
            hub_dataset=_GLUE,
            hub_config="wnli",
            submission="WNLI.tsv",
            written=("0", "1"),
        ),
        Task("classification", ("text",), "label", None, ("accuracy",), 20),
        Task("multi_label", ("text",), "labels", None, ("micro_f1", "macro_f1"), 20, kind=MULTI_LABEL),
        Task("regression", ("text",), "label", (), ("pearson", "spearman"), 20, kind=REGRESSION),
        # training rows are single texts; dev rows are pairs with a score, as in STS-B
        Task("embedding", _PAIR, "score", (), ("spearman",), 5, kind=VECTORS, prediction_epochs=10),
        Task(
            "retrieval",
            ("query", "passage"),
            "label",
            (),
            ("ndcg_at_10", "mrr_at_10"),
            5,
            max_length=256,
            kind=RETRIEVAL,
            prediction_epochs=10,
        ),
        Task(
            "ranking",
            ("query", "passage"),
            "label",
            (),
            ("ndcg_at_10", "mrr_at_10"),
            3,
            max_length=256,
            kind=RANKING,
        ),
        # The paper gives neither epochs for the intermediate stage nor lengths for these.
        _SQUAD,
        dataclasses.replace(
            _SQUAD,
            name="squad2",
            train_file="train-v2.0.json",
            dev_file="dev-v2.0.json",
            may_lack_answers=True,
            hub_dataset="rajpurkar/squad_v2",
            hub_config="squad_v2",
        ),
        Task(
            "ner",
            (),
            "",
            None,
            ("f1", "precision", "recall", "accuracy"),
            20,
            kind=TAGS,
            train_file="train.txt",
            dev_file="dev.txt",
            test_file="test.txt",
        ),
    )
}


def get_task(name: str) -> Task:
    """The row of the task table.

    Raises:
        InputError: the task is unknown; lists the known ones.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}{nearest(name, TASKS)}; known are {', '.join(TASKS)}")
    return TASKS[name]
