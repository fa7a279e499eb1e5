"""The names of classes: how files write them, and their ids in a model."""

from __future__ import annotations

import re

from tinybert_jax.errors import InputError
from tinybert_jax.settings.tasks import Task


def label_ids(task: Task, labels: tuple[str, ...]) -> dict[str, int]:
    """From every way to write a label in a file to its id in `labels` (say, those of a teacher).

    GLUE labels are matched by name whatever their order and case (`entailment`, `ENTAILMENT`), because checkpoints
    disagree on both. Labels that were never named (`LABEL_0`, ...) stand for the ids that the file holds; where the
    official files hold names (MNLI, QNLI, RTE), they stay unknown, because their order cannot be known.
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
    """How the task's files write each of `labels` (say, those of a teacher), by id; names they do not know stay.

    Of a task without names, labels that were never named are written as their ids.
    """
    known = label_ids(task, labels)
    names = [*task.written, *(task.labels or map(str, range(len(labels))))]
    by_id = {known[name]: name for name in reversed(names) if name in known}
    return tuple(by_id.get(i, label) for i, label in enumerate(labels))


def discover_labels(written: list[str]) -> tuple[str, ...]:
    """The distinct labels, sorted; by value if all are integers of up to 99 digits.

    Raises:
        InputError: there are so many that they cannot be classes.
    """
    labels = set(written)
    if len(labels) > max(20, len(written) // 2):
        found = f"{len(labels)} different labels in {len(written)} rows"
        raise InputError(f"{found}: name another --label-column, or use --task regression")
    if all(re.fullmatch(r"-?[0-9]{1,99}", label) for label in labels):  # Python reads thousands of digits as no number
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def positive_class(task: Task, label_names: tuple[str, ...]) -> int:
    """The id that F1 counts: that of the task's second label in the model's order; 1 where the names do not tell."""
    known = label_ids(task, label_names)
    return next((known[name] for name in ((task.labels or ())[1:2] + task.written[1:2]) if name in known), 1)
