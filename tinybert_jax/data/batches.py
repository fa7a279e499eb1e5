"""Token lengths -> buckets -> batches. Each batch is a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tinybert_jax.batch import Batch, Examples
from tinybert_jax.settings.stages import Stage

PROGRESS_FROM = 10_000  # rows; with fewer, no progress bar is shown
FEW_STEPS = 2000  # in runs with fewer steps, more padding costs less on a CPU than compiling more lengths


def bucket_lengths(max_length: int, steps: int = FEW_STEPS) -> tuple[int, ...]:
    """The lengths that batches are padded to, up to `max_length`. They are few, because each is compiled once.

    A `max_length` up to 16 is the only length. Up to 128, lengths are multiples of 8 up to 32, and of 16 above. For
    longer texts, they are multiples of 32, with wider steps above 128. A run of fewer than `FEW_STEPS` steps has only
    powers of two from 16 on. docs/benchmarks.md has the share of real positions.

    >>> bucket_lengths(64)
    (8, 16, 24, 32, 48, 64)
    >>> bucket_lengths(512)
    (32, 64, 96, 128, 192, 256, 384, 512)
    >>> bucket_lengths(100, steps=600)
    (16, 32, 64, 100)
    """
    if max_length <= 16:
        return (max_length,)
    grid = (8, 16, 24, *range(32, 129, 16)) if max_length <= 128 else (32, 64, 96, 128, 192, 256, 384, 512)
    if steps < FEW_STEPS:
        grid = tuple(length for length in grid if length >= 16 and length.bit_count() == 1)
    return (*(length for length in grid if length < max_length), max_length)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of batches in an epoch of n rows."""
    return -(-n // batch_size)


def stage_steps(stage: Stage, rows: int) -> int:
    """The number of steps of a stage with `rows` training rows: `max_steps`; or `epochs`, but at least `min_steps`."""
    if stage.max_steps is not None:
        return stage.max_steps
    return max(stage.epochs * steps_per_epoch(rows, stage.batch_size), stage.min_steps or 0)


def epoch_plan(
    lengths: np.ndarray, batch_size: int, buckets: tuple[int, ...], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assign the rows of an epoch to batches. Every row occurs exactly once.

    Rows are permuted, sorted by bucket and cut into batches, whose order is permuted. Rows that do not fill a batch of
    their bucket start the next bucket's first batch, so that only one batch of the epoch has filler.

    Args:
        lengths: tokens per row [n].
        batch_size: rows per batch.
        buckets: the padded lengths, increasing; no row is longer than the last.
        seed: the run's seed.
        epoch: counted from 0.

    Returns:
        Row numbers, int32 [steps, batch_size], -1 for filler; and padded lengths, int32 [steps].
    """
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = random.permutation(len(lengths))
    bucket = np.searchsorted(buckets, lengths)
    table, padded = _cut_batches(order[np.argsort(bucket[order], kind="stable")], lengths, batch_size, buckets)
    shuffled = random.permutation(len(table))
    return table[shuffled], padded[shuffled]


def _cut_batches(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows that are sorted by bucket into batches: row numbers [steps, batch_size] and padded lengths [steps]."""
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(f"a row has {lengths.max()} tokens; the longest bucket is {buckets[-1]}")
    steps = steps_per_epoch(len(order), batch_size)
    table = np.full(steps * batch_size, -1, np.int32)
    table[: len(order)] = order
    # The last row of a batch is in the longest bucket that the batch holds.
    last_lengths = lengths[order][np.minimum(np.arange(1, steps + 1) * batch_size, len(order)) - 1]
    padded = np.asarray(buckets, np.int32)[np.searchsorted(buckets, last_lengths)]
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
    """The rows `part` of the batches of steps `start_step` to `stop_step - 1`, prepared ahead in threads.

    A batch depends only on (seed, step). So a resumed run sees the batches of an unbroken one, and processes that each
    prepare a part have the same global batch as one process.
    """
    import grain

    steps = steps_per_epoch(len(examples), batch_size)
    lengths = examples.lengths

    @functools.lru_cache(maxsize=2)  # at the end of an epoch, threads already prepare the next one
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_plan(lengths, batch_size, buckets, seed, epoch)

    def batch(step: int) -> Batch:
        table, padded = plan(step // steps)
        return examples.batch(table[step % steps][part], int(padded[step % steps]), step // steps)

    if start_step >= stop_step:
        return iter(())
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(start_step, stop_step).map(batch).to_iter_dataset(options))


def eval_batches(
    examples: Examples, batch_size: int, buckets: tuple[int, ...], first: int = 0
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of all rows, shortest first, from batch number `first` on: (row numbers, batch).

    Row numbers are int32 [batch_size], -1 for filler. They serve to put predictions back into the order of the file.
    """
    order = np.argsort(examples.lengths, kind="stable")
    table, padded = _cut_batches(order, examples.lengths, batch_size, buckets)
    for rows, length in zip(table[first:], padded[first:], strict=True):
        yield rows, examples.batch(rows, int(length), 0)
