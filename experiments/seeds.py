"""An experiment over several seeds: mean and standard deviation, and paired differences with their standard error."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import tinybert_jax as tb
from tinybert_jax import train
from tinybert_jax.cli import prepare_process

Scores = list[dict[str, float]]  # one entry per seed


def run_seeds(experiment: tb.Experiment, seeds: list[int], out: Path) -> Scores:
    """The dev scores of `experiment` under each seed, in `out/seedN`.

    A run that is there already is read, one that was stopped is continued: so the same command goes on where it ended.
    """
    prepare_process()
    scores = []
    for seed in seeds:
        directory = out / f"seed{seed}"
        finished = directory / "scores.json"
        if not finished.is_file():
            print(f"\n{directory}", flush=True)
            try:
                result = tb.run(
                    dataclasses.replace(experiment, seed=seed), directory, (directory / "experiment.json").is_file()
                )
            except tb.InputError as error:
                sys.exit(f"error: {error}")
            except (train.Stopped, train.Diverged) as stopped:
                sys.exit(f"{stopped}\nthe same command continues")
            finished.write_text(json.dumps(result.scores, indent=2) + "\n")
        scores.append(json.loads(finished.read_text()))
    return scores


def mean_sd(scores: Scores, metric: str) -> str:
    """`mean ± standard deviation`, in hundredths."""
    values = [100 * own[metric] for own in scores]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def paired(scores: Scores, reference: Scores, metric: str) -> str:
    """Mean difference to `reference`, seed by seed, `± its standard error`, in hundredths."""
    differences = [100 * (own[metric] - other[metric]) for own, other in zip(scores, reference, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{statistics.mean(differences):+.1f} ± {error:.1f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
