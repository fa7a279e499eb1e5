"""A population of students behind one teacher against as many runs of one.

    python experiments/benchmarks/population.py [--size bert-base] [--members 8] [--batch-size 32] [--length 64]

One step of the Transformer stage, ours on both sides: the population's step against `members` steps of one, which
each compute the teacher; and both where the teacher's outputs are kept. FLOPs are those of the matrix products, by
count.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import measure
import our_side
import tyro

from tinybert_jax.inference.timing import random_batch
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.training.cost import step_flops


def main(
    size: measure.Size = "bert-base",
    members: int = 8,
    batch_size: int = 32,
    length: int = 64,
    repeats: int = 3,
    json: Path | None = None,
) -> None:
    """Measure one step of each.

    Args:
        size: of teacher and students.
        members: students of the population.
        batch_size: rows.
        length: tokens per row, padding included.
        repeats: timed steps of each side.
        json: file to append the result to, as one line.
    """
    pair = measure.SIZES[size]
    batch = random_batch(batch_size, length, pair.teacher.vocab_size, shortest=8)
    together, alone = our_side.make_intermediate_step(pair, members), our_side.make_intermediate_step(pair)
    known = our_side.targets_of(pair, batch)
    sides = {
        "population": partial(together, batch),
        "one": partial(alone, batch),
        "population_known": partial(together, known),
        "one_known": partial(alone, known),
    }
    ms = measure.alternate(sides, repeats)
    flops = {
        students: step_flops(transformer_objective(pair.student, pair.teacher), batch_size, length, students)
        for students in (1, members)
    }
    numbers = {
        "size": size,
        "members": members,
        "batch_size": batch_size,
        "length": length,
        **{f"{name}_ms": value for name, value in ms.items()},
        "time of the population / of the runs": ms["population"] / (members * ms["one"]),
        "the same, answers kept": ms["population_known"] / (members * ms["one_known"]),
        "FLOPs of the population / of the runs": flops[members] / (members * flops[1]),
    }
    measure.report("population", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
