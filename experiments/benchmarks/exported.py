"""CPU time of ONNX models on one thread of ONNX Runtime: the minimum of 30 interleaved runs, and ratios to the first.

    python experiments/benchmarks/exported.py runs/export/onnx/model.onnx runs/pruned/onnx/model.onnx

Files of any program will do whose inputs are a BERT's. docs/compression.md has what it printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tinybert_jax.reports.tables import print_table

SHAPES = ((1, 32), (1, 128), (8, 128))  # rows and tokens
RUNS = 30


def session_of(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def milliseconds(session: Any, rows: int, tokens: int) -> float:
    """CPU time of one run; ONNX Runtime computes in this thread."""
    ids = np.random.default_rng(0).integers(1000, 2000, (rows, tokens))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feed = {put.name: inputs[put.name] for put in session.get_inputs()}
    start = time.thread_time()
    session.run(None, feed)
    return 1000 * (time.thread_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="the first is what the others are compared with")
    files = parser.parse_args().files
    sessions = [session_of(file) for file in files]
    table = [[str(file), f"{file.stat().st_size / 1e6:.1f}"] for file in files]
    for shape in SHAPES:
        best = np.full(len(files), np.inf)
        for _ in range(RUNS):
            best = np.minimum(best, [milliseconds(session, *shape) for session in sessions])
        for row, ms in zip(table, best, strict=True):
            row.append(f"{ms:.1f} ms, {best[0] / ms:.2f}x")
    print_table(["file", "MB", *(f"{rows} x {tokens}" for rows, tokens in SHAPES)], table)


if __name__ == "__main__":
    main()
