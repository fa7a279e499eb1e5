"""The types that all packages share: parameters, a batch, and the examples that batches are made from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

Params = dict[str, Any]  # a nested dict of arrays


class Batch(NamedTuple):
    """One global batch. `example_mask` is 0 in filler rows. Every mean over examples divides by the sum of the mask.

    `labels` are class ids or float targets [b]; the first and last token of an answer [b, 2]; or a class or token id
    per token [b, q], where -1 is not counted. If the teacher has another vocabulary, `teacher_inputs` are the first
    three fields in it. `targets` are the cached results of the objective's `targets` for these rows, if any.
    """

    input_ids: Any  # int32 [b, q]
    attention_mask: Any  # int32 [b, q], 1 on real tokens
    token_type_ids: Any  # int32 [b, q]
    labels: Any  # int32 or float32 [b], int32 [b, 2] or [b, q]
    example_mask: Any  # float32 [b]
    teacher_inputs: tuple[Any, Any, Any] | None = None  # int32 [b, k], k not always q
    targets: Any = None  # a pytree of arrays with the rows on axis 0

    def for_teacher(self) -> Batch:
        """The batch as the teacher reads it, in its vocabulary."""
        if self.teacher_inputs is None:
            return self
        return self._replace(**dict(zip(self._fields[:3], self.teacher_inputs, strict=True)))


@runtime_checkable
class Examples(Protocol):
    """What a stage trains on: n rows. A batch is a pure function of the row numbers and the epoch."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int [n]: the maximum over all epochs."""

    @property
    def fingerprint(self) -> str:
        """sha256 of all that determines the rows, except the label names."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The batch of the given rows, -1 for filler, padded to `length`."""
