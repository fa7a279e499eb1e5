"""Time and memory of one intermediate-distillation step, ours and PyTorch's.

    python experiments/benchmarks/step.py [--size bert-base] [--batch-size 32] [--length 64] [--dtype float32]

Same work on both sides: teacher forward, student forward with dropout and backward, loss of the original code, norm
clipping, AdamW; `known` is our step where the teacher's outputs are kept, which PyTorch's has no part for. Times are
medians of steps taken in turn in one process; peak memory is that of a process of its own for each side, with
parameters, optimizer and everything imported that this side needs. Compiling is what our first step takes longer than
others, without and with a cache of compiled programs (JAX_COMPILATION_CACHE_DIR). Shares are FLOPs of the matrix
products by count, per second, over those of one large product (2048 x 768 x 3072 in float32). bfloat16 is autocast in
PyTorch.
"""

from __future__ import annotations

import json as jsonlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import measure
import tyro

from tinybert_jax.inference.timing import random_batch
from tinybert_jax.settings.choices import ComputeDtype

Side = Literal["ours", "torch"]
CACHE = "JAX_COMPILATION_CACHE_DIR"


def make_side(side: Side, pair: measure.Pair, batch: Any) -> Callable[[], Any]:
    if side == "ours":
        import our_side

        step = our_side.make_intermediate_step(pair)
        return lambda: step(batch)
    import torch_baseline  # neither is imported at the top: its memory is not the other's

    torch_step = torch_baseline.make_intermediate_step(*pair)
    inputs = torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return lambda: torch_step(inputs)


def main(
    size: measure.Size = "bert-base",
    batch_size: int = 32,
    length: int = 64,
    dtype: ComputeDtype = "float32",
    repeats: int = 5,
    memory_only: bool = False,
    side: Side | None = None,
    json: Path | None = None,
) -> None:
    """Measure one step.

    Args:
        size: of teacher and student.
        batch_size: rows.
        length: tokens per row, padding included.
        dtype: of the activations.
        repeats: timed steps of each side.
        memory_only: measure no time.
        side: only take three steps of this side, and print what `alone` returns.
        json: file to append the result to, as one line.
    """
    pair = measure.SIZES[size].computing(dtype)
    batch = random_batch(batch_size, length, pair.teacher.vocab_size, shortest=8)
    if side is not None:
        step = make_side(side, pair, batch)
        first, *others = (measure.seconds(step, turn=0, warmup=0) for _ in range(3))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in kB
        print(jsonlib.dumps({"peak_mb": peak, "compile_s": first - min(others)}))
        return
    numbers: dict[str, Any] = {"size": size, "batch_size": batch_size, "length": length, "dtype": dtype}
    options = {"--size": size, "--batch-size": batch_size, "--length": length, "--dtype": dtype}
    ours, torch = (alone(side, options) for side in ("ours", "torch"))
    numbers |= {"ours_peak_mb": ours["peak_mb"], "torch_peak_mb": torch["peak_mb"]}
    numbers["torch_peak_mb / ours_peak_mb"] = torch["peak_mb"] / ours["peak_mb"]
    if not memory_only:
        with tempfile.TemporaryDirectory() as cache:
            again = [alone("ours", options, **{CACHE: cache}) for _ in range(2)][1]
        numbers |= {"compile_s": ours["compile_s"], "compile_from_cache_s": again["compile_s"]}
        numbers |= times(pair, batch, repeats)
    measure.report("memory" if memory_only else "step", numbers, json)


def alone(side: Side, options: dict[str, Any], **environment: str) -> dict[str, float]:
    """Three steps in a process of its own: its peak memory in MB, and seconds that the first took for compiling."""
    words = [str(word) for option in {"--side": side, **options}.items() for word in option]
    environment = {name: value for name, value in os.environ.items() if name != CACHE} | environment
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return jsonlib.loads(done.stdout.splitlines()[-1])


def times(pair: measure.Pair, batch: Any, repeats: int) -> dict[str, float]:
    """Milliseconds of each side, ratios, and shares of the rate of one large product."""
    import our_side

    from tinybert_jax.objectives.transformer import transformer_objective
    from tinybert_jax.training.cost import step_flops

    known = our_side.targets_of(pair, batch)
    gradient = our_side.make_gradient(pair, known)
    sides = {
        "ours": make_side("ours", pair, batch),
        "torch": make_side("torch", pair, batch),
        "known": make_side("ours", pair, known),
    }
    ms = measure.alternate(sides | gradient, repeats)
    peak = our_side.matmul_flops_per_second(2 * repeats)
    rows, length = batch.input_ids.shape
    objective = transformer_objective(pair.student, pair.teacher)
    whole = step_flops(objective, rows, length)
    student = step_flops(objective, rows, length, targets_known=True)
    teacher_width = pair.teacher.all_head_size
    teacher_scores = 2.0 * rows * pair.student.num_hidden_layers * length**2 * teacher_width  # no gradient of these

    def share(flops: float, milliseconds: float) -> float:
        return flops / milliseconds * 1000 / peak

    return {
        **{f"{name}_ms": value for name, value in ms.items()},
        "torch_ms / ours_ms": ms["torch"] / ms["ours"],
        "torch_ms / known_ms": ms["torch"] / ms["known"],
        "matmul_gflops_per_s": peak / 1e9,
        "ours_share_of_matmul": share(whole, ms["ours"]),
        "torch_share_of_matmul": share(whole, ms["torch"]),
        "known_share_of_matmul": share(student, ms["known"]),
        "backward_share_of_matmul": share((student - teacher_scores) * 2 / 3, ms["gradient"] - ms["forward"]),
    }


if __name__ == "__main__":
    tyro.cli(main)
