"""Token lengths -> buckets -> batches. Each batch is a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tinybert_jax.batch import Batch, Examples


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
