"""The types that all packages share: parameters, a batch, and what batches are made from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

Params = dict[str, Any]  # a nested dict of arrays


class Batch(NamedTuple):
    """One global batch. 0 in `example_mask` marks a row that only fills the batch; every mean over examples divides by
    the sum of `example_mask`.

    `labels` are class ids or float targets [b]; first and last token of an answer [b, 2]; or a class or token id per
    token [b, q], -1 where none counts. `teacher_inputs` are the first three fields in the teacher's own vocabulary,
    where it has another one; `targets`, what the objective's `targets` gave for these rows, where that is known.
    """

    input_ids: Any  # int32 [b, q]
    attention_mask: Any  # int32 [b, q], 1 on real tokens
    token_type_ids: Any  # int32 [b, q]
    labels: Any  # int32 or float32 [b], int32 [b, 2] or [b, q]
    example_mask: Any  # float32 [b]
    teacher_inputs: tuple[Any, Any, Any] | None = None  # int32 [b, k], k not always q
    targets: Any = None  # a pytree of arrays with the rows on axis 0


@runtime_checkable
class Examples(Protocol):
    """What a stage trains on: n rows, whose batches are a pure function of their numbers and the epoch."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int [n]: the most that the row can have in any epoch."""

    @property
    def fingerprint(self) -> str:
        """sha256 of all that determines the rows, labels' names apart."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The batch of the given rows, -1 for filler, padded to `length`."""
