"""The expected cost of a run: counted floating-point operations, and hours at a measured rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinybert_jax.batch import Batch
from tinybert_jax.objectives.objective import Objective

TIMED_STEPS = 3


class Cost(NamedTuple):
    """The cost of a whole stage."""

    steps: int
    flops: float
    seconds_per_step: float

    def __str__(self) -> str:
        seconds, rate = self.steps * self.seconds_per_step, self.flops / self.steps / self.seconds_per_step
        duration = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:,.1f} hours"
        return (
            f"{self.steps:,} steps, {self.flops:.2e} FLOPs; at the measured {self.seconds_per_step:.3g} s a step"
            f" ({rate / 1e9:,.0f} GFLOP/s) {duration}, after compiling"
        )


def step_flops(objective: Objective, rows: int, tokens: int, students: int = 1, targets_known: bool = False) -> float:
    """Floating-point operations of one training step: students forward and backward, and the teacher forward unless
    its targets are known. Activations that the backward pass recomputes do not count.

    >>> from tinybert_jax.models.config import BertConfig
    >>> from tinybert_jax.objectives.transformer import transformer_objective
    >>> teacher = BertConfig()  # BERT_BASE; eight TinyBERT4 behind it, against eight runs
    >>> student = BertConfig(num_hidden_layers=4, hidden_size=312, intermediate_size=1200)
    >>> objective = transformer_objective(student, teacher)
    >>> together, alone = (step_flops(objective, 32, 128, n) for n in (8, 1))
    >>> round(together / (8 * alone), 2)
    0.28
    """
    teacher = 0.0 if targets_known else objective.teacher_flops(tokens)
    return rows * (students * objective.student_flops(tokens) + teacher)


def seconds_per_step(
    train_step: Callable[..., Any], state: Any, teacher_params: Any, batch: Batch, hyper: Any
) -> float:
    """Median seconds of a step on a copy of `state`, without the first step, which compiles."""
    state = jax.tree.map(jnp.copy, state)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        state, _ = train_step(state, teacher_params, batch, hyper)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
