"""The paper's ablations (arXiv 1909.10351, Tables 2 to 4) as settings of one experiment, and what they cost.

    python experiments/ablations.py --task mrpc --data MRPC --teacher runs/mrpc-teacher/student \\
        --general runs/general/student --augmented runs/mrpc-augmented --seeds 0 1 2 --out runs/ablations --estimate
    (the same without --estimate)
    (the same with --transformer-steps 300 --prediction-steps 300: a few hundred steps of each setting)

Prints a table and draws OUT/ablations.svg, both beside the paper's own differences.

Table 2, procedures: without general distillation (GD), task distillation (TD) or augmentation (DA). Table 3,
objectives: without the embedding, prediction or Transformer losses, or without their attention or hidden half; a loss
that is off has the weight 0. Table 4: layer maps. Without TD, and without the prediction loss, the head learns from
the labels. Settings that differ in weights and start only, and all seeds, train together behind one teacher.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from shared import (
    Scores,
    add_options,
    differences,
    distillation,
    mean_sd,
    paired,
    populations,
    run_main,
    run_together,
    table,
)

import tinybert_jax as tb
from tinybert_jax.data.augmentation.candidate_table import SETTINGS_FILE
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.objectives.objective import Context
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.training.cost import step_flops
from tinybert_jax.training.loop import stage_steps

# TinyBERT4's averages over MNLI-m, MNLI-mm, MRPC and CoLA, dev sets (Tables 2 to 4)
PAPER = {
    "full": 75.6,
    "without GD": 72.5,
    "without TD": 68.5,
    "without DA": 68.4,
    "without embedding loss": 74.1,
    "without prediction loss": 73.5,
    "without Transformer losses": 56.3,
    "without attention loss": 71.0,
    "without hidden loss": 72.9,
    "map: top": 70.9,
    "map: bottom": 71.3,
}


def settings(full: tb.Experiment, student: str) -> dict[str, tb.Experiment]:
    """Every row of the three tables; `full` has all parts."""
    first, second = full.stages
    labels = dataclasses.replace(second, objective=tb.Supervised())

    def but(**changes: Any) -> tb.Experiment:
        return dataclasses.replace(full, **changes)

    def weighing(**weights: Any) -> tb.Experiment:
        return but(stages=(dataclasses.replace(first, objective=tb.Transformer(**weights)), second))

    return {
        "full": full,
        "without GD": but(model=student),
        "without TD": but(stages=(labels,), augmented=None),
        "without DA": but(augmented=None),
        "without embedding loss": weighing(embedding_weight=0.0),
        "without prediction loss": but(stages=(first, labels)),
        "without Transformer losses": but(stages=(second,)),
        "without attention loss": weighing(attention_weight=0.0),
        "without hidden loss": weighing(hidden_weight=0.0),
        "map: top": but(layer_map="top"),
        "map: bottom": but(layer_map="bottom"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--general", required=True, help="a student from `tinybert pretrain`")
    parser.add_argument("--augmented", required=True, help="directory that `tinybert augment` wrote")
    parser.add_argument("--student", default="tinybert-4l-312d", help="preset or size, of the student without GD")
    parser.add_argument(
        "--settings", nargs="+", choices=list(PAPER), default=list(PAPER), metavar="SETTING", help="rows; default: all"
    )
    parser.add_argument("--estimate", action="store_true", help="print what all of it costs, and stop")
    parser.add_argument("--gflops", type=float, default=150, help="per second, here; `tinybert pretrain` measures it")
    args = parser.parse_args()

    every = settings(distillation(args, args.general, augmented=args.augmented), args.student)
    named = {name: setting for name, setting in every.items() if name == "full" or name in args.settings}
    if args.estimate:
        print(estimate(named, len(args.seeds), args.gflops))
        return
    scores = run_together(named, args.seeds, args.out)
    (args.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    metric = get_task(args.task).selection
    rows = [
        [
            name,
            mean_sd(results, metric),
            paired(results, scores["full"], metric),
            f"{PAPER[name] - PAPER['full']:+.1f}",
        ]
        for name, results in scores.items()
    ]
    rows[0][2:] = ["", ""]
    print(f"\n{table(['setting', metric, 'difference to full ± s.e.', 'the paper says'], rows)}")
    draw(args.out / "ablations.svg", scores, metric)


def draw(path: Path, scores: dict[str, Scores], metric: str) -> None:
    """Each setting's difference to full, with its standard error, beside the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in scores if name != "full"]
    ours = [differences(scores[name], scores["full"], metric) for name in names]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    places = range(len(names))
    axes.barh([p - 0.2 for p in places], [d.mean for d in ours], 0.4, xerr=[d.error for d in ours], label="here")
    axes.barh([p + 0.2 for p in places], [PAPER[name] - PAPER["full"] for name in names], 0.4, label="paper")
    axes.set(yticks=list(places), yticklabels=names, xlabel=f"difference to the full method, {metric} in points")
    axes.invert_yaxis()
    axes.legend(loc="lower left")
    figure.savefig(path)
    pyplot.close(figure)


def estimate(named: dict[str, tb.Experiment], seeds: int, gflops: float) -> str:
    """FLOPs of every setting, were every row of full length, and the hours of all at a machine's rate."""
    full = named["full"]
    teacher, student = load_hf(str(full.teacher))[0], load_hf(full.model)[0]
    task = get_task(full.task)
    tokenizer = load_tokenizer(full.model, student)
    assert isinstance(full.source, tb.DataSource)
    augmented = Path(str(full.augmented)) / SETTINGS_FILE
    if not augmented.is_file():
        raise tb.InputError(f"{augmented}: no such file; --augmented takes a directory that `tinybert augment` wrote")
    variants = json.loads(augmented.read_text())["variants"]
    rows = len(load_split(task, full.source, "train", tokenizer, full.max_length).tokens)

    def setting_cost(setting: tb.Experiment, students: int) -> tuple[int, float]:
        steps, flops = 0, 0.0
        facts = arithmetic(setting.preset)
        context = Context(student, teacher, task.head, setting.layer_map, facts)
        for stage in setting.stages:
            stage_length = stage_steps(stage, rows * (variants if setting.augmented else 1))
            sizes = stage.batch_size, setting.max_length, students
            steps += stage_length
            flops += stage_length * step_flops(build_objective(stage.objective, context), *sizes)
        return steps, flops

    alone = {name: setting_cost(setting, 1) for name, setting in named.items()}
    together = sum(
        setting_cost(members[0][1], len(members))[1] for members in populations(named, list(range(seeds))).values()
    )
    hours = together / gflops / 1e9 / 3600
    lines = [[name, f"{steps:,}", f"{flops:.1e}"] for name, (steps, flops) in alone.items()]
    all_of_it = (
        "With the teacher in every step (outputs that the cache can hold cost it once):\n"
        f"{seeds} seeds of all: {together:.1e} FLOPs, {hours:,.1f} hours at {gflops:g} GFLOP/s, as populations; apart,"
        f" {seeds * sum(flops for _, flops in alone.values()):.1e} FLOPs"
    )
    return f"{table(['setting', 'steps', 'FLOPs alone'], lines)}\n\n{all_of_it}"


if __name__ == "__main__":
    run_main(main)
