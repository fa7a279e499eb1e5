"""A sweep over prediction learning rates and temperatures, several seeds each, as one population behind one teacher.

    python experiments/sweep.py --task sst2 --data SST-2 --teacher runs/teacher/student \\
        --student runs/general/student --learning-rates 1e-5 2e-5 3e-5 --temperatures 1 2 --out runs/sweep

The paper searches these learning rates (section 4.2). Every member sees the rows in the same order, so that what the
teacher says of a batch is computed once for all. The same command continues what was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools

from shared import add_options, distillation, mean_sd, paired, run_together, table

import tinybert_jax as tb
from tinybert_jax import tasks
from tinybert_jax.cli import prepare_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--student", default="tinybert-4l-312d", help="a preset, or a directory to start from")
    parser.add_argument("--start", default="random", choices=["random", "copy", "spectral"])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-5, 2e-5, 3e-5], help="of prediction")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of prediction")
    args = parser.parse_args()
    named = settings(distillation(args, args.student, start=args.start), args.learning_rates, args.temperatures)
    scores = run_together(named, args.seeds, args.out)
    metric = tasks.get_task(args.task).selection
    reference = next(iter(scores.values()))
    rows = [
        [name, mean_sd(own, metric), "" if own is reference else paired(own, reference, metric)]
        for name, own in scores.items()
    ]
    print(f"\n{table(['setting', metric, 'difference to the first ± s.e.'], rows)}")


def settings(full: tb.Experiment, rates: list[float], temperatures: list[float]) -> dict[str, tb.Experiment]:
    """The experiment with every pair of the two numbers in its last stage."""
    *before, last = full.stages
    return {
        f"learning rate {rate:g}, temperature {temperature:g}": dataclasses.replace(
            full, stages=(*before, dataclasses.replace(last, learning_rate=rate, temperature=temperature))
        )
        for rate, temperature in itertools.product(rates, temperatures)
    }


if __name__ == "__main__":
    prepare_process()
    main()
