"""PyTorch's parts of `gpu.py`, which runs each of them in a process of its own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from gpu_lines import Lines, Numbers
from gpu_parts import Sizes, milliseconds

TORCH_STEPS = {  # see `torch_baseline.make_intermediate_step`: attention, and whether it is compiled
    "torch eager": ("eager_with_scores", False),
    "torch eager, SDPA": ("sdpa_with_scores", False),
    "torch compiled, SDPA": ("sdpa_with_scores", True),
    "torch compiled": ("eager_with_scores", True),
}


class Torch:
    """PyTorch on the GPU, or in a tiny run on the CPU."""

    def __init__(self, lines: Lines, sizes: Sizes) -> None:
        import torch

        self.torch, self.lines, self.sizes = torch, lines, sizes
        self.cuda = torch.cuda.is_available()
        if not self.cuda and not lines.tiny:
            raise RuntimeError("torch.cuda.is_available() is False")

    def wait(self, _: Any) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def measure(self, make: Callable[..., Callable[[Any], Any]], group: int, **what: Any) -> None:
        """A line on the function of inputs that `make(side, model)` gives."""
        import torch_baseline

        def one(rows: int, length: int, side: str, model: str = "") -> Numbers:
            batch = self.sizes.batch(rows, length)
            with self.torch.device("cuda" if self.cuda else "cpu"):  # not while it is timed: it slows every call
                run = make(side, model)
                inputs = torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            start = time.perf_counter()
            self.wait(run(inputs))
            first = time.perf_counter() - start
            ms = milliseconds(lambda: run(inputs), self.wait, group, self.sizes.turn)
            peak = self.torch.cuda.max_memory_allocated() / 1e6 if self.cuda else None
            return {"compile_s": first - ms / 1000, "ms": ms, "examples_per_s": rows / ms * 1000, "peak_mb": peak}

        self.lines.measure(one, **what)
        self.torch.compiler.reset()
        gc.collect()
        if self.cuda:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()


def torch_step(lines: Lines, sizes: Sizes) -> None:
    """PyTorch's step, the teacher in it."""
    import torch_baseline

    def make(side: str, model: str) -> Any:
        return torch_baseline.make_intermediate_step(*sizes.pair, *TORCH_STEPS[side])

    torch = Torch(lines, sizes)
    for side, (_, compiled) in TORCH_STEPS.items():
        for rows, length in sizes.first if compiled else sizes.grid:
            torch.measure(make, 5, rows=rows, length=length, side=side)


def torch_inference(lines: Lines, sizes: Sizes) -> None:
    """PyTorch's class logits, each call waited for."""
    import torch_baseline

    def make(side: str, model: str) -> Any:
        return torch_baseline.make_inference(
            getattr(sizes.pair, model), compiled=side == "torch compiled", compute=sizes.pair.compute
        )

    torch = Torch(lines, sizes)
    for side in ("torch eager", "torch compiled"):
        for model in ("student", "teacher"):
            for rows, length in sizes.inference:
                torch.measure(make, 1, rows=rows, length=length, side=side, model=model)
