"""Inference of student and teacher, batch 1 and 32: ours, PyTorch's and, of the student, ONNX Runtime's.

    python experiments/benchmarks/inference.py [--size bert-base] [--length 128] [--repeats 5]

The sides take turns of two seconds, and of each the fastest turn's median counts: a virtual machine may pack the
threads of short calls on one of its processors, which nearly doubles them. Shares are the model's FLOPs per second
over those of one large float32 matrix product (2048 x 768 x 3072, by JAX, in the same run). PyTorch runs SDPA
attention, its fastest here; ONNX Runtime the graph that `torch.onnx.export` makes of the same model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import measure
import our_side
import torch_baseline
import tyro

from tinybert_jax.inference.timing import random_batch
from tinybert_jax.models.parameters import forward_flops


def main(size: measure.Size = "bert-base", length: int = 128, repeats: int = 5, json: Path | None = None) -> None:
    """Measure inference.

    Args:
        size: of teacher and student.
        length: tokens per row.
        repeats: turns of each side.
        json: file to append the result to, as one line.
    """
    peak = our_side.matmul_flops_per_second(15)
    numbers: dict[str, Any] = {"size": size, "length": length, "matmul_gflops_per_s": peak / 1e9}
    pair = measure.SIZES[size]
    for batch_size in (1, 32):
        batch = random_batch(batch_size, length, pair.teacher.vocab_size)
        inputs = torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        student, teacher = (torch_baseline.make_inference(config) for config in (pair.student, pair.teacher))
        sides = {
            "student_ours": partial(our_side.make_inference(pair.student), batch),
            "student_torch": partial(student, inputs),
            "student_onnx": torch_baseline.make_onnx_inference(pair.student, inputs),
            "teacher_ours": partial(our_side.make_inference(pair.teacher), batch),
            "teacher_torch": partial(teacher, inputs),
        }
        ms = measure.alternate(sides, repeats, turn=2.0, statistic=min)
        named = f"batch_{batch_size}"
        for side, value in ms.items():
            numbers[f"{named}_{side}_ms"] = value
            flops = batch_size * forward_flops(pair.student if "student" in side else pair.teacher, length)
            numbers[f"{named}_{side}_share_of_matmul"] = flops / value * 1000 / peak
        numbers[f"{named}_teacher / student"] = ms["teacher_ours"] / ms["student_ours"]
        numbers[f"{named}_torch / ours"] = ms["student_torch"] / ms["student_ours"]
        numbers[f"{named}_onnx / ours"] = ms["student_onnx"] / ms["student_ours"]
    measure.report("inference", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
