"""Rows -> tokens (once, cached) -> length buckets -> batches, each a pure function of (seed, step)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tinybert_jax.config import Batch
from tinybert_jax.rows import Rows, cached_arrays

FORMAT_VERSION = 1  # of the cached tokens; count it up when the same rows would give other tokens
TOKENIZE_AT_ONCE = 1000  # rows
PROGRESS_FROM = 10_000  # rows; fewer are done before a bar would be read


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


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of n rows, one after the other.

    Row i is `input_ids[offsets[i] : offsets[i + 1]]`; its `token_type_ids` are 0 up to `pair_starts[i]` and 1 after.
    `fingerprint` is that of rows, tokenizer and length; it does not depend on the labels' names.
    """

    input_ids: np.ndarray  # int32 [sum of lengths]
    offsets: np.ndarray  # int64 [n + 1]
    pair_starts: np.ndarray  # int32 [n]
    labels: np.ndarray  # [n], zeros where there are none; answers [n, 2]; or one per token, as `input_ids`
    fingerprint: str
    pad_token_id: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def has_pairs(self) -> bool:
        """Whether a row is a pair of texts, and has tokens of the second type."""
        return bool((self.pair_starts < self.lengths).any())

    def __len__(self) -> int:
        return len(self.pair_starts)

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The batch of the given rows; the same in every epoch.

        Args:
            rows: row numbers [b]; -1 gives a filler row, with all masks 0.
            length: tokens to pad to, q.
            epoch: is not read.

        Returns:
            A `Batch` of numpy arrays [b, q] and [b]; `labels` [b], [b, 2], or, one per token, [b, q], -1 on padding.
        """
        real = rows >= 0
        row = np.where(real, rows, 0)
        lengths = np.where(real, self.offsets[row + 1] - self.offsets[row], 0)
        if lengths.max(initial=0) > length:
            raise ValueError(f"a row of {lengths.max()} tokens does not fit into {length}")
        position = np.arange(length)
        mask = position < lengths[:, None]
        at = np.where(mask, self.offsets[row][:, None] + position, 0)
        if len(self.labels) == len(self):
            kept = real.reshape(-1, *[1] * (self.labels.ndim - 1))
            labels = np.where(kept, self.labels[row], 0)
        else:
            labels = np.where(mask, self.labels[at], -1)
        return Batch(
            input_ids=np.where(mask, self.input_ids[at], self.pad_token_id).astype(np.int32),
            attention_mask=mask.astype(np.int32),
            token_type_ids=(mask & (position >= self.pair_starts[row][:, None])).astype(np.int32),
            labels=labels.astype(self.labels.dtype),
            example_mask=real.astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class TwoVocabularies:
    """The same n rows in the student's tokens and in the teacher's; both are padded to one length."""

    tokens: Tokens
    teacher: Tokens

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [n], in the vocabulary that needs more."""
        return np.maximum(self.tokens.lengths, self.teacher.lengths)

    @property
    def fingerprint(self) -> str:
        """Of both."""
        return hashlib.sha256((self.tokens.fingerprint + self.teacher.fingerprint).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The student's batch, with the teacher's in `teacher_inputs`; see `Tokens.batch`."""
        theirs = self.teacher.batch(rows, length, epoch)
        return self.tokens.batch(rows, length, epoch)._replace(teacher_inputs=tuple(theirs[:3]))


def tokenize(rows: Rows, tokenizer: Any, max_length: int, cache_dir: Path | None = None) -> Tokens:
    """The rows as ids, with special tokens, cut to `max_length` (the longer text of a pair first).

    Args:
        rows: n rows of one or two texts.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens a row, special ones included.
        cache_dir: as in `rows.read_rows`.

    Raises:
        InputError: the cache cannot be written.
    """
    form = [FORMAT_VERSION, rows.fingerprint, tokenizer_fingerprint(tokenizer), max_length]
    fingerprint = hashlib.sha256(json.dumps(form).encode()).hexdigest()
    arrays = cached_arrays(cache_dir, "tokens", fingerprint, lambda: _encode(rows.texts, tokenizer, max_length))
    return Tokens(**arrays, labels=rows.labels_or_zeros, fingerprint=fingerprint, pad_token_id=tokenizer.pad_token_id)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of all that determines a tokenizer's ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's truncation and padding stay in the backend: a used tokenizer would look like another one.
    for transient in ("truncation", "padding"):
        backend.pop(transient, None)
    if tokenizer.truncation_side != "right":
        backend["truncation_side"] = tokenizer.truncation_side
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()


def encode(texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> Tokens:
    """As `tokenize`, for texts at hand: nothing is cached, and the labels are zeros."""
    labels = np.zeros(len(texts), np.int32)
    arrays = _encode(texts, tokenizer, max_length)
    return Tokens(**arrays, labels=labels, fingerprint="", pad_token_id=tokenizer.pad_token_id)


def _encode(texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    n = len(texts)
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths: list[int] = []
    pair_starts: list[int] = []
    with tqdm(total=n, desc="tokenize", unit="row", disable=n < PROGRESS_FROM) as bar:
        for start in range(0, n, TOKENIZE_AT_ONCE):
            chunk = texts[start : start + TOKENIZE_AT_ONCE]
            encoded = tokenizer(
                *([row[i] for row in chunk] for i in range(len(chunk[0]))),
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=True,
            )
            ids += [np.array(row, np.int32) for row in encoded["input_ids"]]
            lengths += [len(row) for row in encoded["input_ids"]]
            pair_starts += [row.count(0) for row in encoded["token_type_ids"]]
            bar.update(len(chunk))
    return {
        "input_ids": np.concatenate(ids),
        "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        "pair_starts": np.array(pair_starts, np.int32),
    }


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """The lengths that batches are padded to, the last one `max_length`: few, as each is compiled once.

    One up to 16; multiples of 8 up to 32, and of 16 up to 128; for longer texts of 32, and wider steps above.
    The record in README has the share of real positions.

    >>> bucket_lengths(64)
    (8, 16, 24, 32, 48, 64)
    >>> bucket_lengths(512)
    (32, 64, 96, 128, 192, 256, 384, 512)
    """
    if max_length <= 16:
        return (max_length,)
    grid = (8, 16, 24, *range(32, 129, 16)) if max_length <= 128 else (32, 64, 96, 128, 192, 256, 384, 512)
    return (*(length for length in grid if length < max_length), max_length)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches that n rows fill; the same in every epoch."""
    return -(-n // batch_size)


def epoch_plan(
    lengths: np.ndarray, batch_size: int, buckets: tuple[int, ...], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows make which batch of an epoch; every row comes exactly once.

    Rows are permuted, ordered by bucket and cut into batches, whose order is permuted. Rows that do not fill a batch
    of their bucket start the next one's, so that only one batch of the epoch has filler.

    Args:
        lengths: tokens per row [n].
        batch_size: rows per batch.
        buckets: the padded lengths, increasing; the last is not under any row's.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        Row numbers, int32 [steps, batch_size], -1 for filler; and padded lengths, int32 [steps].
    """
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = random.permutation(len(lengths))
    bucket = np.searchsorted(buckets, lengths)
    table, padded = _cut(order[np.argsort(bucket[order], kind="stable")], lengths, batch_size, buckets)
    shuffled = random.permutation(len(table))
    return table[shuffled], padded[shuffled]


def _cut(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their buckets, cut into batches."""
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(f"a row has {lengths.max()} tokens; the longest bucket is {buckets[-1]}")
    steps = steps_per_epoch(len(order), batch_size)
    table = np.full(steps * batch_size, -1, np.int32)
    table[: len(order)] = order
    # The last row of a batch is in the longest bucket that the batch holds.
    last = lengths[order][np.minimum(np.arange(1, steps + 1) * batch_size, len(order)) - 1]
    padded = np.asarray(buckets, np.int32)[np.searchsorted(buckets, last)]
    return table.reshape(steps, batch_size), padded


def train_batches(
    examples: Examples,
    batch_size: int,
    buckets: tuple[int, ...],
    seed: int,
    start_step: int,
    stop_step: int,
    part: np.ndarray | slice = slice(None),
) -> Iterator[Batch]:
    """The batches of the steps `start_step` to `stop_step - 1`, made ahead in threads; of each, the rows `part`.

    Each is a function of (seed, step) alone: a run that continues sees what an unbroken one would have seen, and
    several processes that make a part each have the batch that one would have made.
    """
    import grain

    steps = steps_per_epoch(len(examples), batch_size)
    lengths = examples.lengths

    @functools.lru_cache(maxsize=2)  # at the end of an epoch, threads already work on the next
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_plan(lengths, batch_size, buckets, seed, epoch)

    def batch(step: int) -> Batch:
        table, padded = plan(step // steps)
        return examples.batch(table[step % steps][part], int(padded[step % steps]), step // steps)

    if start_step >= stop_step:
        return iter(())
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(start_step, stop_step).map(batch).to_iter_dataset(options))


def eval_batches(examples: Examples, batch_size: int, buckets: tuple[int, ...]) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, shortest first, with the row numbers, int32 [batch_size], -1 for filler.

    The row numbers put predictions back into the order of the file.
    """
    order = np.argsort(examples.lengths, kind="stable")
    for rows, length in zip(*_cut(order, examples.lengths, batch_size, buckets), strict=True):
        yield rows, examples.batch(rows, int(length), 0)
