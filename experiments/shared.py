"""What the experiments over seeds share: distillation for a task, its runs, and statistics of their scores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tinybert_jax as tb
from tinybert_jax.cli.entry import prepare_process
from tinybert_jax.models.files.hub import CARD
from tinybert_jax.settings.tasks import TASKS, get_task
from tinybert_jax.training import population, record
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.inputs import load_population
from tinybert_jax.training.loop import Stopped

Scores = list[dict[str, float]]  # one entry per seed


def run_main(main: Callable[[], None]) -> None:
    """Run an experiment's `main`. What is wrong with its input ends it with a line."""
    prepare_process()
    try:
        main()
    except tb.InputError as error:
        sys.exit(f"error: {error}")


def add_options(parser: argparse.ArgumentParser, teacher: bool = True) -> None:
    """Those that `distillation` reads, `--seeds` and `--out`; `--teacher` only where an experiment makes none."""
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--data", required=True, help="directory in the GLUE layout")
    if teacher:
        parser.add_argument("--teacher", required=True, help="fine-tuned on the task")
    parser.add_argument("--max-length", type=int, help="tokens a row; default: the task's")
    parser.add_argument("--transformer-steps", type=int, help="of the first stage; default: the task's epochs")
    parser.add_argument("--transformer-learning-rate", type=float, help="default: the task's")
    parser.add_argument(
        "--prediction-steps", type=int, help="likewise, of the second stage, which is then scored at its end only"
    )
    parser.add_argument("--prediction-learning-rate", type=float, help="default: the task's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)


def distillation(args: argparse.Namespace, student: str, **settings: Any) -> tb.Experiment:
    """TinyBERT's two stages for a task; what the options leave open is the paper's.

    A number of steps holds for any number of rows, and no state is chosen by its dev score then. So settings with and
    without augmentation compare.
    """
    task = get_task(args.task)
    rates = args.transformer_learning_rate, args.prediction_learning_rate
    return tb.Experiment(
        task=task.name,
        source=tb.DataSource(data=args.data),
        model=student,
        teacher=args.teacher,
        stages=(
            tb.Stage(
                tb.Transformer(),
                epochs=task.intermediate_epochs,
                max_steps=args.transformer_steps,
                learning_rate=task.intermediate_learning_rate if rates[0] is None else rates[0],
                schedule="constant",
            ),
            tb.Stage(
                tb.Prediction(),
                epochs=task.prediction_epochs,
                max_steps=args.prediction_steps,
                learning_rate=task.prediction_learning_rate if rates[1] is None else rates[1],
                evaluate_every=args.prediction_steps,
            ),
        ),
        max_length=task.max_length if args.max_length is None else args.max_length,
        **({"start": "random"} | settings),  # as in the paper
    )


def run_seeds(experiment: tb.Experiment, seeds: list[int], out: Path) -> Scores:
    """The dev scores of `experiment` under each seed, each a run of its own in `out/seedN`.

    A run that is there already is read, one that was stopped is continued: so the same command goes on where it ended.
    """
    return [_scores([dataclasses.replace(experiment, seed=seed)], out / f"seed{seed}")[0] for seed in seeds]


def run_together(
    named: dict[str, tb.Experiment], seeds: list[int], out: Path, models: Mapping[int, str] | None = None
) -> dict[str, Scores]:
    """The dev scores of every setting under each seed; those that may share a teacher train as one population.

    All see the rows in the order of the first seed, and start from their seed's model where there are `models`. Goes
    on where it ended, as `run_seeds`.
    """
    scores: dict[str, Scores] = {name: [] for name in named}
    for number, members in enumerate(populations(named, seeds, models).values()):
        for (name, _), result in zip(
            members, _scores([e for _, e in members], out / f"population{number}"), strict=True
        ):
            scores[name].append(result)
    return scores


def populations(
    named: dict[str, tb.Experiment], seeds: list[int], models: Mapping[int, str] | None = None
) -> dict[str, list[tuple[str, tb.Experiment]]]:
    """Every setting under every seed, grouped by what members of a population must share."""
    groups: dict[str, list[tuple[str, tb.Experiment]]] = {}
    for name, setting in named.items():
        for seed in seeds:
            member = dataclasses.replace(setting, seed=seed, data_seed=seeds[0])
            member = member if models is None else dataclasses.replace(member, model=models[seed])
            groups.setdefault(json.dumps(population.shared_part(member)), []).append((name, member))
    return groups


def _scores(members: list[tb.Experiment], directory: Path) -> Scores:
    """The dev scores of each member of a population, run in `directory`, or read where they are there already."""
    finished = directory / "scores.json"
    if finished.is_file():
        _check_same(members, directory)
    else:
        print(f"\n{directory}: {len(members)} member{'s' * (len(members) > 1)}", flush=True)
        try:
            results = tb.run_population(members, directory, (directory / "experiment.json").is_file())
        except Stopped as stopped:
            print(f"{stopped}\nthe same command continues")
            sys.exit(128 + stopped.signal)
        except Diverged as diverged:
            sys.exit(f"{diverged}\ngive a lower rate, and another --out")
        if lost := [result.diverged for result in results if result.diverged]:
            sys.exit(f"{lost[0]}\nit has no score to compare: give a lower rate, and another --out")
        written = finished.with_suffix(".tmp")
        written.write_text(json.dumps([result.scores for result in results], indent=2) + "\n")
        os.replace(written, finished)
    scores: Scores = json.loads(finished.read_text())
    return scores


def _check_same(members: list[tb.Experiment], directory: Path) -> None:
    """End the program where the scores in `directory` are of other settings, models or rows."""
    started = json.loads((directory / "experiment.json").read_text())
    if started["experiment"] != record.settings(members):
        sys.exit(f"error: {directory} holds the scores of other settings; give another --out")
    now = [member.fingerprints for member in load_population(members)]
    before = [started["fingerprints"]] if len(members) == 1 else started["fingerprints"]
    pairs = zip(before, now, strict=True)
    changed = sorted({name for old, new in pairs for name in old | new if old.get(name) != new.get(name)})
    if changed:
        what = ", ".join(changed)
        sys.exit(f"error: {directory} holds scores from before a change: {what}; give another --out")


def tinybert(out: Path, command: str, *options: str) -> Path:
    """The model that a command trains in OUT. A command that is done is not run again; a stopped one continues.

    The command is kept beside OUT. A command with other options ends the program.
    """
    student, asked, kept = out / "student", [command, *options], out.with_name(f"{out.name}.command.json")
    last = student / CARD  # the last file that is written
    if kept.is_file() and json.loads(kept.read_text()) != asked:
        sys.exit(f"error: {out} was made with other options ({kept}); give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asked) + "\n")
    if not last.is_file():
        resume = ["--resume"] if (out / "experiment.json").is_file() else []
        arguments = [*asked, "--out", str(out), *resume]
        print("tinybert", shlex.join(arguments), flush=True)
        program = [sys.executable, "-m", "tinybert_jax.cli", *arguments]
        done = subprocess.run(program, stdout=subprocess.PIPE, text=True)
        if done.returncode or not last.is_file():
            sys.exit(done.stdout)
        print(next((line for line in done.stdout.splitlines() if line.startswith("recipe")), ""), flush=True)
    return student


def mean_sd(scores: Scores, metric: str) -> str:
    """`mean ± standard deviation`, in hundredths; of one seed, the mean."""
    values = [100 * result[metric] for result in scores]
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


class Difference(NamedTuple):
    """The difference of two settings in hundredths: the mean over seeds, and its standard error."""

    mean: float
    error: float


def differences(scores: Scores, reference: Scores, metric: str) -> Difference:
    """The difference to `reference`, seed by seed."""
    each = [100 * (one[metric] - other[metric]) for one, other in zip(scores, reference, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return Difference(statistics.mean(each), error)


def paired(scores: Scores, reference: Scores, metric: str) -> str:
    """`differences` as `mean ± standard error`; of one seed, the mean."""
    difference = differences(scores, reference, metric)
    return f"{difference.mean:+.1f} ± {difference.error:.1f}" if len(scores) > 1 else f"{difference.mean:+.1f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
