"""A sweep over learning rates, temperatures and weights of labels in the prediction stage, several seeds each, as one
population behind one teacher.

    python experiments/sweep.py --task sst2 --data SST-2 --teacher runs/teacher/student \\
        --student runs/general/student --learning-rates 1e-5 2e-5 3e-5 --temperatures 1 2 --out runs/sweep

The paper searches these learning rates (section 4.2). The first stage does not depend on them: it is trained once for
each seed, into OUT/first-stage. Then every setting trains its second stage from there. All members see the rows in the
same order, so that what the teacher says of a batch is computed once for all. The same command continues what was
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from shared import Scores, add_options, distillation, mean_sd, paired, run_main, run_together, table

import tinybert_jax as tb
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.training import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--student", default="tinybert-4l-312d", help="a preset, a size as 6x384, or a directory to start from"
    )
    parser.add_argument("--start", default="random", choices=["random", "copy", "spectral"])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-5, 2e-5, 3e-5], help="of prediction")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of prediction")
    parser.add_argument("--hard-weights", type=float, nargs="+", default=[0.0], help="of the labels, in prediction")
    args = parser.parse_args()
    full = distillation(args, args.student, start=args.start)
    scores = sweep(full, args.learning_rates, args.temperatures, args.seeds, args.out, args.hard_weights)
    metric = get_task(args.task).selection
    reference = next(iter(scores.values()))
    rows = [
        [name, mean_sd(results, metric), "" if results is reference else paired(results, reference, metric)]
        for name, results in scores.items()
    ]
    print(f"\n{table(['setting', metric, 'difference to the first ± s.e.'], rows)}")


def sweep(
    full: tb.Experiment,
    rates: list[float],
    temperatures: list[float],
    seeds: list[int],
    out: Path,
    hard_weights: Sequence[float] = (0.0,),
) -> dict[str, Scores]:
    """The dev scores of every combination of the numbers in the last of two stages, under each seed.

    Raises:
        InputError: a number is none that a stage takes; then nothing was trained.
    """
    first, last = full.stages
    if get_task(full.task).is_regression and set(temperatures) != {1.0}:
        raise tb.InputError(f"--temperatures are for classes, and task {full.task!r} has none: leave them out")
    named = {
        f"learning rate {rate:g}, temperature {temperature:g}, hard weight {weight:g}": dataclasses.replace(
            full,
            start="random",
            stages=(
                dataclasses.replace(
                    last, learning_rate=rate, objective=tb.Prediction(temperature, hard_weight=weight)
                ),
            ),
        )
        for rate, temperature, weight in itertools.product(rates, temperatures, hard_weights)
    }
    first_stage = out / "first-stage"
    run_together({"first stage": dataclasses.replace(full, stages=(first,))}, seeds, first_stage)
    members = record.member_dirs(first_stage / "population0", len(seeds))
    students = {seed: str(member / "student") for seed, member in zip(seeds, members, strict=True)}
    return run_together(named, seeds, out, students)


if __name__ == "__main__":
    run_main(main)
