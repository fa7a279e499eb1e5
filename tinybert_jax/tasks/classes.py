"""Tables of a model's results for each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinybert_jax.tasks.split import Table

CONFUSION = "is / predicted as"  # the first column of a confusion matrix
F1 = "F1"  # the column of `class_rows` that reports compare
FEW = 20  # largest number of classes for which a confusion matrix is shown


def class_rows(names: Sequence[str], predicted: np.ndarray, labels: np.ndarray) -> Table:
    """Precision, recall and F1 of each class.

    Args:
        names: the names of the c classes.
        predicted: [n, c], not 0 for predicted classes.
        labels: [n, c], not 0 for the classes of a row.
    """
    predicted, labels = predicted != 0, labels != 0
    right, said, real = ((x).sum(axis=0) for x in (predicted & labels, predicted, labels))
    precision, recall = right / np.maximum(said, 1), right / np.maximum(real, 1)
    f1 = 2 * right / np.maximum(said + real, 1)
    cells = zip(names, real, precision, recall, f1, strict=True)
    rows = [[name, str(count), *(f"{x:.3f}" for x in values)] for name, count, *values in cells]
    return ["class", "rows", "precision", "recall", F1], rows


def confusion(names: Sequence[str], predicted: np.ndarray, labels: np.ndarray) -> Table:
    """The confusion matrix: a line for each class, with the number of its rows that are predicted as each class.

    Args:
        names: the names of the classes.
        predicted: class ids [n].
        labels: class ids [n].
    """
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    rows = [[name, *map(str, row)] for name, row in zip(names, counts, strict=True)]
    return [CONFUSION, *names], rows
