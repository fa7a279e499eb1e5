"""Rows that are passages for queries: the rows of each query, and batches of queries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tinybert_jax.batch import Batch, Examples
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Passages:
    """For each of n rows, its query and the relevance of its passage."""

    queries: np.ndarray  # int [n], the number of the query
    relevance: np.ndarray  # float32 [n], at least 0; NaN if unknown

    @classmethod
    def of(cls, rows: Rows) -> Passages:
        """The passages of rows whose first text is the query. Equal texts are the same query, anywhere in the file."""
        numbers: dict[str, int] = {}
        queries = [numbers.setdefault(query, len(numbers)) for query, _ in rows.texts]
        return cls(np.array(queries, np.int64), rows.labels_or_zeros)

    def by_query(self) -> list[np.ndarray]:
        """The numbers of the rows of each query, in the order of the file."""
        order = np.argsort(self.queries, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.queries[order])) + 1)

    def groups(self, size: int) -> np.ndarray:
        """Groups of rows that are compared: first a relevant passage of a query, then others of the same query.

        A query's passages that are not relevant are cut into parts of `size - 1`. Each part and each relevant passage
        is in at least one group. If all passages are relevant, none is, or relevance is unknown, only the passage with
        the highest relevance (the first in a tie) counts as relevant. A query with a single passage has no group.

        Args:
            size: size of the largest group, at least 2.

        Returns:
            Row numbers, int32 [groups, at most size], -1 after the end of a smaller group.

        Raises:
            InputError: every query has a single passage.

        >>> passages = Passages(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 0, 0, 0, 1], np.float32))
        >>> passages.groups(2).tolist(), passages.groups(8).tolist()
        ([[1, 0], [1, 2], [3, 4]], [[1, 0, 2], [3, 4, -1]])
        """
        groups: list[list[int]] = []
        for rows in self.by_query():
            if len(rows) < 2:
                continue
            relevance = np.nan_to_num(self.relevance[rows])
            relevant = relevance > 0
            if relevant.all() or not relevant.any():
                relevant = np.arange(len(rows)) == relevance.argmax()
            firsts, others = rows[relevant], rows[~relevant]
            parts = [others[i : i + size - 1] for i in range(0, len(others), size - 1)]
            for i in range(max(len(firsts), len(parts))):
                groups.append([firsts[i % len(firsts)], *parts[i % len(parts)]])
        if not groups:
            raise InputError("every query of the training rows has one passage: give two or more, which are compared")
        table = np.full((len(groups), max(map(len, groups))), -1, np.int32)
        for row, group in zip(table, groups, strict=True):
            row[: len(group)] = group
        return table


@dataclass(frozen=True, eq=False)
class Queries:
    """Groups of passages as `batch.Examples`: a group is one row, so it is never split over batches.

    All arrays of a batch are [b, c, ...], for b groups of c passages. `example_mask` is 0 after the end of a smaller
    group.
    """

    rows: Examples
    groups: np.ndarray  # int32 [n, c], row numbers, -1 after the end of a smaller group

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest passage of each group, int [n]."""
        return np.where(self.groups >= 0, np.asarray(self.rows.lengths)[self.groups], 0).max(axis=1)

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows' fingerprint and the groups."""
        return hashlib.sha256(self.rows.fingerprint.encode() + self.groups.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The batch of groups with these numbers, -1 for filler, padded to `length` tokens."""
        import jax  # here, because reading a task does not need it

        numbers = np.where(rows[:, None] >= 0, self.groups[rows], -1)
        flat = self.rows.batch(numbers.ravel(), length, epoch)
        return jax.tree.map(lambda x: x.reshape(*numbers.shape, *x.shape[1:]), flat)
