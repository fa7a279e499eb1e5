"""What a run will cost: floating-point operations by count, hours by a measured rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinybert_jax.batch import Batch
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import BACKWARD, forward_flops
from tinybert_jax.objectives.masked_lm import MASKED_SHARE
from tinybert_jax.settings.choices import ObjectiveName

TIMED_STEPS = 3


class Cost(NamedTuple):
    """Of a whole stage."""

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


def step_flops(
    objective: ObjectiveName,
    student: BertConfig,
    teacher: BertConfig | None,
    rows: int,
    tokens: int,
    students: int = 1,
    targets_known: bool = False,
) -> float:
    """Floating-point operations of one training step: the students forward and backward, the teacher forward unless
    its targets are known. What the backward pass computes again, to save memory, does not count.

    >>> teacher = BertConfig()  # BERT_BASE; eight TinyBERT4 behind it, against eight runs
    >>> student = BertConfig(num_hidden_layers=4, hidden_size=312, intermediate_size=1200)
    >>> together, alone = (step_flops("transformer", student, teacher, 32, 128, n) for n in (8, 1))
    >>> round(together / (8 * alone), 2)
    0.28
    """
    own = (1 + BACKWARD) * forward_flops(student, tokens)
    if objective == "masked_lm":
        decoder = student.hidden_size * (student.vocab_size + student.hidden_size)
        own += (1 + BACKWARD) * 2.0 * decoder * tokens / MASKED_SHARE
    if objective == "transformer":
        assert teacher is not None
        states = student.num_hidden_layers + 1
        own += (1 + BACKWARD) * 2.0 * states * student.hidden_size * teacher.hidden_size * tokens
        # the loss computes both sides' scores, or three relations, and their gradient for the student
        widths = [config.all_head_size for config in (student, teacher)]
        products = 1 if student.num_attention_heads == teacher.num_attention_heads else 3
        own += 2.0 * products * student.num_hidden_layers * tokens**2 * ((1 + BACKWARD) * widths[0] + widths[1])
    own *= students
    if objective in ("transformer", "prediction") and not targets_known:
        assert teacher is not None
        own += forward_flops(teacher, tokens)
    return rows * own


def seconds_per_step(
    train_step: Callable[..., Any], state: Any, teacher_params: Any, batch: Batch, hyper: Any
) -> float:
    """Median seconds of a step on a copy of `state`, after one that compiles."""
    state = jax.tree.map(jnp.copy, state)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        state, _ = train_step(state, teacher_params, batch, hyper)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
