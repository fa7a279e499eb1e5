"""What general distillation is worth: task distillation with and without it, several seeds, paired differences.

    tinybert finetune --model MINILM --task sst2 --data SST-2 --out runs/sst2-teacher
    python experiments/general_distillation.py --pretrained MINILM --corpus TEXT... --task sst2 --data SST-2 \\
        --teacher runs/sst2-teacher/student --out runs/general

One student is distilled from the model as pretrained, on raw text; then the task's teacher is distilled, under each
seed, into that student and into one from a random start, by the same steps. Ends with a table, and a picture of every
term of the general losses. A command that is stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import matplotlib
from seeds import mean_sd, paired, run_seeds, table

import tinybert_jax as tb
from tinybert_jax import tasks


def draw(path: Path, metrics: Path) -> None:
    """Every term of the general distillation's loss, by step."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    logged = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    terms = [name for name in logged[0] if name == "embedding" or name.partition("/")[0] in ("attention", "hidden")]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for term in terms:
        axes.plot([line["step"] for line in logged], [line[term] for line in logged], label=term)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="general distillation, term by term")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="the teacher of the general distillation")
    parser.add_argument("--corpus", required=True, nargs="+", help="text files")
    parser.add_argument("--teacher", required=True, help="the same, fine-tuned on the task")
    parser.add_argument("--student", default="tinybert-3l-192d", help="a preset")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", required=True, help="directory in the GLUE layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--general-steps", type=int, default=1500)
    parser.add_argument("--general-learning-rate", type=float, default=1e-3)
    parser.add_argument("--transformer-steps", type=int, default=300)
    parser.add_argument("--transformer-learning-rate", type=float, default=1e-3)
    parser.add_argument("--prediction-steps", type=int, default=300)
    parser.add_argument("--prediction-learning-rate", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    general = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource(tuple(args.corpus)),
        model=args.student,
        teacher=args.pretrained,
        stages=(
            tb.Stage("transformer", 1000, max_steps=args.general_steps, learning_rate=args.general_learning_rate),
        ),
        max_length=args.max_length,
    )
    run_seeds(general, [0], args.out / "general")
    started = args.out / "general" / "seed0"
    draw(args.out / "general.svg", started / "metrics.jsonl")

    task = tasks.get_task(args.task)
    without = tb.Experiment(
        task=task.name,
        source=tb.DataSource(data=args.data),
        model=args.student,
        teacher=args.teacher,
        stages=(
            tb.Stage(
                "transformer",
                1000,
                max_steps=args.transformer_steps,
                learning_rate=args.transformer_learning_rate,
                schedule="constant",
            ),
            tb.Stage("prediction", 1000, max_steps=args.prediction_steps, learning_rate=args.prediction_learning_rate),
        ),
        max_length=args.max_length,
    )
    with_general = dataclasses.replace(without, model=str(started / "student"))
    scores = {
        "without": run_seeds(without, args.seeds, args.out / "without"),
        "with": run_seeds(with_general, args.seeds, args.out / "with"),
    }
    rows = [
        [
            name,
            mean_sd(own, task.selection),
            paired(own, scores["without"], task.selection) if name != "without" else "",
            ", ".join(f"{100 * score[task.selection]:.1f}" for score in own),
        ]
        for name, own in scores.items()
    ]
    print(f"\n{table(['general distillation', task.selection, 'paired difference ± s.e.', 'seeds'], rows)}")


if __name__ == "__main__":
    main()
