"""Timing of calls, and random batches for them. This module imports no jax, so it can time other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch

FIRST_ID = 5  # smallest random id: special tokens come before
PAUSE = 0.1  # seconds before every turn, because threads of other libraries keep spinning for a while after their work


def call_seconds(*calls: Callable[[], Any], turn: float, least: int = 1, warmup: int = 1) -> list[float]:
    """The time of each call in a turn that ends after whole rounds of `calls`.

    Args:
        calls: the functions to time. They wait for their results.
        turn: least duration of the turn in seconds, without the pause and the warm-up.
        least: least number of calls in the turn.
        warmup: number of calls of the first function before the turn, which are not counted. After a pause, they
            include the time in which the processor wakes up and memory is returned.
    """
    time.sleep(PAUSE)
    for _ in range(warmup):
        calls[0]()
    times: list[float] = []
    while not times or sum(times) < turn or len(times) < least:
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return times


def random_batch(batch_size: int, length: int, vocab_size: int, shortest: int | None = None) -> Batch:
    """Rows of random tokens, `shortest` to `length` long; all of full length by default."""
    random = np.random.default_rng(0)
    lengths = random.integers(shortest or length, length + 1, batch_size)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = random.integers(min(FIRST_ID, vocab_size - 1), vocab_size, mask.shape).astype(np.int32) * mask
    labels, example_mask = np.zeros(batch_size, np.int32), np.ones(batch_size, np.float32)
    return Batch(ids, mask, np.zeros_like(mask), labels, example_mask)
