"""Time of model directories in JAX on one core of a Linux machine, in float32 and in int8: the minimum of 30
interleaved runs, and ratios to the first.

    python experiments/benchmarks/models.py runs/teacher/student runs/pruned

docs/compression.md has what it printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tinybert_jax as tb
from tinybert_jax.export.export import program
from tinybert_jax.models.quantized import quantized
from tinybert_jax.reports.tables import print_table

SHAPES = ((1, 32), (1, 128), (8, 128))  # rows and tokens
RUNS = 30


def runner(config: tb.BertConfig, params: Any) -> Callable[[int, int], float]:
    """`(rows, tokens) -> milliseconds` of one run of a model."""
    compiled, placed = jax.jit(program(config, params)), jax.device_put(params)

    def run(rows: int, tokens: int) -> float:
        ids = jnp.asarray(np.random.default_rng(0).integers(1000, 2000, (rows, tokens)), jnp.int32)
        inputs = ids, jnp.ones_like(ids), jnp.zeros_like(ids)
        start = time.perf_counter()
        jax.block_until_ready(compiled(placed, *inputs))
        return 1000 * (time.perf_counter() - start)

    return run


def megabytes(params: Any) -> str:
    return f"{sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6:.1f}"


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts its threads
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="directories; the first is what the others are compared with")
    runs, table = [], []
    for name in parser.parse_args().models:
        config, params = tb.load_hf(name)
        variants = {"int8": quantized(config, params)}
        if config.weight_bits is None:
            variants = {"float32": (config, params)} | variants
        for kind, model in variants.items():
            runs.append(runner(*model))
            table.append([f"{name}, {kind}", megabytes(model[1])])
    for shape in SHAPES:
        best = np.full(len(runs), np.inf)
        for _ in range(1 + RUNS):  # the first compiles, and is no minimum
            best = np.minimum(best, [run(*shape) for run in runs])
        for row, ms in zip(table, best, strict=True):
            row.append(f"{ms:.1f} ms, {best[0] / ms:.2f}x")
    print_table(["model", "MB", *(f"{rows} x {tokens}" for rows, tokens in SHAPES)], table)


if __name__ == "__main__":
    main()
