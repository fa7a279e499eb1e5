"""Class names: how files write them, and their ids in a model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tinybert_jax.data.suspects import ONE_LABEL, several_labels
from tinybert_jax.errors import InputError
from tinybert_jax.settings.tasks import Task


class UnknownLabel(InputError):
    """A row has a label that is no class. The message says what names the classes, where that is known."""

    def __init__(self, problem: str, names: str, remedy: str, owner: str = "the model or training file") -> None:
        super().__init__(f"{problem}; {owner} has {names}: {remedy}")
        self.problem, self.names, self.remedy = problem, names, remedy


@contextlib.contextmanager
def named_by(owner: str, is_model: bool = True) -> Iterator[None]:
    """Have the errors of unknown labels say what names the classes: a model, or else a training file or a task."""
    try:
        yield
    except UnknownLabel as error:
        remedy = error.remedy if is_model else "correct it in the file that is wrong"
        raise UnknownLabel(error.problem, error.names, remedy, owner) from None


def label_ids(task: Task, labels: tuple[str, ...]) -> dict[str, int]:
    """The id of each form in which a file can write a label. Ids index `labels`, for example a teacher's.

    GLUE labels are matched by name in any order and case (`entailment`, `ENTAILMENT`), because checkpoints disagree on
    both. A checkpoint whose labels were never named (`LABEL_0`, ...) matches files that hold ids. It does not match
    official files that hold names (MNLI, QNLI, RTE), because the order of its classes is unknown.
    """
    ids = {label: i for i, label in enumerate(labels)}
    if labels == tuple(f"LABEL_{i}" for i in range(len(labels))):
        ids |= {str(i): i for i in range(len(labels))}
        ids |= {name: ids[i] for name, i in zip(task.labels or (), task.written, strict=False) if i in ids}
    folded = {label.casefold(): i for i, label in enumerate(labels)}
    for i, name in enumerate(task.labels or ()):
        if name in folded:
            ids.setdefault(name, folded[name])
            if task.written:
                ids.setdefault(task.written[i], folded[name])
    return ids


def written_labels(task: Task, labels: tuple[str, ...]) -> tuple[str, ...]:
    """How the task's files write each of `labels`, by id. A name that the task does not know is kept.

    In a task without names, labels that were never named are written as their ids.
    """
    known = label_ids(task, labels)
    names = [*task.written, *(task.labels or map(str, range(len(labels))))]
    by_id = {known[name]: name for name in reversed(names) if name in known}
    return tuple(by_id.get(i, label) for i, label in enumerate(labels))


def discover_labels(written: list[str], may_be_several: bool = False) -> tuple[str, ...]:
    """The distinct labels, sorted; by value if all are integers of up to 99 digits.

    Args:
        written: the labels of all rows.
        may_be_several: a row may have several labels. Then a label that looks like several was not split.

    Raises:
        InputError: a label looks like several labels, or there are too many labels to be classes.
    """
    if several := several_labels(written):
        if may_be_several:
            raise InputError(
                f"{several!r} is read as one label: name what stands between a row's labels with --label-delimiter, or"
                " give JSON lines with lists of them"
            )
        raise InputError(
            f"the label {several!r} is several labels: {ONE_LABEL}; where that is one, write it without separators"
        )
    labels = set(written)
    if len(labels) > max(20, len(written) // 2):
        count = f"{len(labels)} different labels in {len(written)} rows"
        raise InputError(f"{count}: name another --label-column, or use --task regression")
    if all(re.fullmatch(r"-?[0-9]{1,99}", label) for label in labels):  # int() refuses thousands of digits
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def positive_class(task: Task, label_names: tuple[str, ...]) -> int:
    """The id that F1 counts as positive: that of the task's second label, or 1 if the model's names do not show it."""
    known = label_ids(task, label_names)
    return next((known[name] for name in ((task.labels or ())[1:2] + task.written[1:2]) if name in known), 1)
