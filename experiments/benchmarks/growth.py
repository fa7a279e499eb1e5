"""How our step's time grows with length, batch, layers and population, everything else as it is.

    python experiments/benchmarks/growth.py [--size bert-base] [--repeats 3]

Steps of the Transformer stage with the teacher, of one student with the batch and length below.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import measure
import our_side
import tyro

from tinybert_jax.inference.timing import random_batch

LENGTH, BATCH = 32, 8
LENGTHS, BATCHES, MEMBERS = (32, 64, 128, 256, 384), (2, 8, 32, 64), (1, 2, 4, 8)
DIVISORS = (1, 2, 3)  # of the teacher's layers, for students of as many layers


def main(size: measure.Size = "bert-base", repeats: int = 3, json: Path | None = None) -> None:
    """Measure.

    Args:
        size: of teacher and student.
        repeats: timed steps of each.
        json: file to append the result to, as one line.
    """
    pair = measure.SIZES[size]

    def milliseconds(pair: measure.Pair, length: int = LENGTH, rows: int = BATCH, members: int = 1) -> float:
        step = our_side.make_intermediate_step(pair, members)
        batch = random_batch(rows, length, pair.teacher.vocab_size, shortest=8)
        return measure.alternate({"step": partial(step, batch)}, repeats)["step"]

    def student_of(layers: int) -> measure.Pair:
        return pair._replace(student=dataclasses.replace(pair.student, num_hidden_layers=layers))

    layers = sorted(pair.teacher.num_hidden_layers // divisor for divisor in DIVISORS)
    numbers = {
        "size": size,
        "length": {str(length): milliseconds(pair, length=length) for length in LENGTHS},
        "batch": {str(rows): milliseconds(pair, rows=rows) for rows in BATCHES},
        "layers": {str(depth): milliseconds(student_of(depth)) for depth in layers},
        "population": {str(members): milliseconds(pair, members=members) for members in MEMBERS},
    }
    measure.report("growth", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
