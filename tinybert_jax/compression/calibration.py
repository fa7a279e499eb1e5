"""Functions that compression methods share: samples of training rows, and checks of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch, Examples
from tinybert_jax.data.batches import bucket_lengths, train_batches
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import FULL_RANK, BertConfig
from tinybert_jax.models.heads import HEADS

BATCH_SIZE = 16
ROWS_AT_ONCE = 1000


def check_dense(method: str, config: BertConfig) -> None:
    """Refuse a model whose dense layers are factorised.

    Raises:
        InputError: they are.
    """
    if config.ranks._replace(word_embeddings=0) != FULL_RANK:
        raise InputError(f"{method} cannot follow low rank: the dense layers are factors already")


def check_heads(method: str, config: BertConfig) -> None:
    """Refuse a model whose heads cannot be removed layer by layer.

    Raises:
        InputError: it has a relative position bias for each head, which all layers share.
    """
    if config.family.position_buckets:
        raise InputError(
            f"{method} removes other heads in each layer, but {config.family.model_type}'s layers share the biases of"
            " heads: take --sparse or --low-rank"
        )


def check_outputs(method: str, head: str) -> None:
    """Refuse a model without a task's head, because the method measures importance by the head's loss on labels.

    Raises:
        InputError: it has no such head.
    """
    if not HEADS[head].on_tasks or HEADS[head].losses is None:
        raise InputError(f"{method} needs a model with the head of a task, and this one has a {HEADS[head].title}")


def check_whole(method: str, config: BertConfig) -> None:
    """Refuse a model whose dense layers or word table are factorised or quantised.

    Raises:
        InputError: they are.
    """
    check_dense(method, config)
    if config.ranks != FULL_RANK:
        raise InputError(f"{method} cannot follow low rank: the word table is factors already, as in every MobileBERT")
    if config.weight_bits is not None:
        raise InputError(f"{method} cannot follow quantize: the model is in {config.weight_bits} bits already")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some rows of a training set, by their numbers."""

    examples: Examples
    numbers: np.ndarray  # int [n]
    fingerprint: str = ""  # nothing of these rows is cached

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int [n]."""
        return self.examples.lengths[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The batch of these rows; see `Examples.batch`."""
        return self.examples.batch(np.where(rows < 0, rows, self.numbers[rows]), length, epoch)


def labelled_rows(examples: Examples, labelled: Callable[[Batch], Any], least: int) -> Examples:
    """At least `least` random rows with a label, or all if there are fewer. If every row that was looked at has one,
    they are all rows.

    Args:
        examples: rows, some without a label.
        labelled: says for each row of a batch whether it has a label.
        least: number of rows.
    """
    order, length = np.random.default_rng(0).permutation(len(examples)), int(examples.lengths.max())
    numbers, seen = np.zeros(0, int), 0
    while seen < len(order) and len(numbers) < least:
        part = order[seen : seen + ROWS_AT_ONCE]
        seen += len(part)
        numbers = np.append(numbers, part[np.asarray(labelled(examples.batch(part, length, 0)))])
    return examples if len(numbers) == seen else Chosen(examples, np.sort(numbers))


def calibration_batches(examples: Examples, rows: int) -> list[Batch]:
    """Batches of `rows` random rows, the same in every call."""
    steps = -(-min(rows, len(examples)) // BATCH_SIZE)
    return list(train_batches(examples, BATCH_SIZE, bucket_lengths(int(examples.lengths.max())), 0, 0, steps))


def id_counts(examples: Examples, size: int) -> np.ndarray:
    """The number of occurrences of each of `size` ids in all rows, int64 [size]."""
    rows, length, counts = np.arange(len(examples)), int(examples.lengths.max()), np.zeros(size, np.int64)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        batch = examples.batch(rows[first : first + ROWS_AT_ONCE], length, 0)
        counts += np.bincount(np.asarray(batch.input_ids)[np.asarray(batch.attention_mask) > 0], minlength=size)
    return counts
