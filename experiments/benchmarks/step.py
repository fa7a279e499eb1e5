"""Time and memory of one intermediate-distillation step, BERT_BASE -> TinyBERT4, ours and PyTorch's.

    python experiments/benchmarks/step.py [--batch-size 32] [--length 64] [--repeats 10] [--json FILE]

Same work on both sides: teacher forward, student forward with dropout and backward, loss of the original code, norm
clipping, AdamW. Times are medians of steps taken in turn in one process; peak memory is that of a process of its own
for each side, with parameters, optimizer and everything imported.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import measure
import tyro

Side = Literal["ours", "torch"]


def make_side(side: Side, batch_size: int, length: int, unroll: int) -> Callable[[], Any]:
    batch = measure.random_batch(batch_size, length, measure.TEACHER.vocab_size, shortest=8)
    if side == "ours":
        step = measure.our_intermediate_step(measure.TEACHER, measure.STUDENT, unroll)
        return lambda: step(batch)
    import torch_baseline  # not at the top: its memory is not ours

    torch_step = torch_baseline.make_intermediate_step(measure.TEACHER, measure.STUDENT)
    inputs = torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return lambda: torch_step(inputs)


def peak_megabytes(side: Side, batch_size: int, length: int, unroll: int) -> float:
    options = {"--side": side, "--batch-size": batch_size, "--length": length, "--unroll": unroll}
    command = [sys.executable, __file__, *(str(word) for option in options.items() for word in option)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def main(
    batch_size: int = 32,
    length: int = 64,
    repeats: int = 10,
    unroll: int = 1,
    side: Side | None = None,
    json: Path | None = None,
) -> None:
    """Measure one step.

    Args:
        batch_size: rows.
        length: tokens per row, padding included.
        repeats: timed steps of each side.
        unroll: student layers unrolled per iteration of our scan.
        side: only take three steps of this side and print the peak memory of the process, in MB.
        json: file to append the result to, as one line.
    """
    if side is not None:
        step = make_side(side, batch_size, length, unroll)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # Linux counts in kB
        return
    memory = {name: peak_megabytes(name, batch_size, length, unroll) for name in ("ours", "torch")}
    steps = {name: make_side(name, batch_size, length, unroll) for name in ("ours", "torch")}
    ms = measure.alternate(steps, repeats)
    numbers = {
        "batch_size": batch_size,
        "length": length,
        "ours_ms": ms["ours"],
        "torch_ms": ms["torch"],
        "torch_ms / ours_ms": ms["torch"] / ms["ours"],
        "ours_peak_mb": memory["ours"],
        "torch_peak_mb": memory["torch"],
        "torch_peak_mb / ours_peak_mb": memory["torch"] / memory["ours"],
    }
    measure.report("step", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
