"""Inference at length 128: TinyBERT4 and BERT_BASE at batch 1 and 32, ours and PyTorch's.

    python experiments/benchmarks/inference.py [--length 128] [--repeats 20] [--json FILE]

Medians of calls taken in turn. The share is the model's arithmetic per second over that of one large float32 matrix
product (2048 x 768 x 3072, by JAX, in the same run). PyTorch runs SDPA attention, its fastest here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import measure
import torch_baseline
import tyro

from tinybert_jax.config import BertConfig


def forward_flops(config: BertConfig, batch_size: int, length: int) -> float:
    """Multiplications and additions of the layers' matrix products; a fused multiply-add counts as two."""
    projections = config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    attention = 2 * length * config.hidden_size
    return 2.0 * batch_size * length * config.num_hidden_layers * (projections + attention)


def matmul_flops_per_second(repeats: int) -> float:
    product = jax.jit(jnp.matmul)
    a, b = jnp.ones((2048, 768)), jnp.ones((768, 3072))
    ms = measure.alternate({"matmul": lambda: product(a, b).block_until_ready()}, repeats)["matmul"]
    return 2 * 2048 * 768 * 3072 / ms * 1000


def main(length: int = 128, repeats: int = 20, json: Path | None = None) -> None:
    """Measure inference.

    Args:
        length: tokens per row.
        repeats: timed calls of each side.
        json: file to append the result to, as one line.
    """
    peak = matmul_flops_per_second(repeats)
    numbers: dict[str, float] = {"length": length, "matmul_gflops_per_s": peak / 1e9}
    for name, config in (("student", measure.STUDENT), ("teacher", measure.TEACHER)):
        ours, torch = measure.our_inference(config), torch_baseline.make_inference(config)
        for batch_size in (1, 32):
            batch = measure.random_batch(batch_size, length, config.vocab_size)
            inputs = torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            ms = measure.alternate({"ours": partial(ours, batch), "torch": partial(torch, inputs)}, repeats)
            case = f"{name}_batch_{batch_size}"
            numbers |= {f"{case}_{side}_ms": ms[side] for side in ms}
            numbers[f"{case}_torch_ms / ours_ms"] = ms["torch"] / ms["ours"]
            flops = forward_flops(config, batch_size, length)
            numbers |= {f"{case}_{side}_share_of_matmul": flops / (ms[side] / 1000) / peak for side in ms}
    for batch_size in (1, 32):
        case = f"batch_{batch_size}_ours_ms"
        numbers[f"teacher / student {case}"] = numbers[f"teacher_{case}"] / numbers[f"student_{case}"]
    measure.report("inference", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
