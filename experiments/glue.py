"""Any GLUE task, several seeds: TinyBERT's task distillation of a fine-tuned teacher, mean and standard deviation.

    tinybert finetune --model BERT --task mrpc --data MRPC --out runs/mrpc-teacher
    tinybert augment --model MLM --task mrpc --data MRPC --out runs/mrpc-augmented
    python experiments/glue.py --task mrpc --data MRPC --teacher runs/mrpc-teacher/student \\
        --augmented runs/mrpc-augmented --seeds 0 1 2 --out runs/glue-mrpc

Epochs, lengths and learning rates are the paper's for the task; WNLI, which the paper leaves out, takes RTE's. The
paper's figures start from a general TinyBERT: `--student DIR`, from `tinybert pretrain`. The same command continues
what was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from seeds import mean_sd, run_seeds, table

import tinybert_jax as tb
from tinybert_jax import tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=list(tasks.TASKS))
    parser.add_argument("--data", required=True, help="directory in the GLUE layout")
    parser.add_argument("--teacher", required=True, help="fine-tuned on the task")
    parser.add_argument("--student", default="tinybert-4l-312d", help="a preset, or a directory to start from")
    parser.add_argument("--augmented", help="directory that `tinybert augment` wrote")
    parser.add_argument("--preset", default="default", choices=["default", "paper", "official"])
    parser.add_argument("--start", default="random", choices=["random", "copy", "spectral"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--transformer-steps", type=int, help="end the first stage early")
    parser.add_argument("--transformer-learning-rate", type=float)
    parser.add_argument("--prediction-steps", type=int, help="end the second stage early")
    parser.add_argument("--prediction-learning-rate", type=float)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    task = tasks.get_task(args.task)
    experiment = tb.Experiment(
        task=task.name,
        source=tb.DataSource(data=args.data),
        model=args.student,
        teacher=args.teacher,
        stages=(
            tb.Stage(
                "transformer",
                epochs=task.intermediate_epochs,
                max_steps=args.transformer_steps,
                learning_rate=args.transformer_learning_rate or task.intermediate_learning_rate,
                schedule="constant",
            ),
            tb.Stage(
                "prediction",
                epochs=task.prediction_epochs,
                max_steps=args.prediction_steps,
                learning_rate=args.prediction_learning_rate or task.prediction_learning_rate,
            ),
        ),
        preset=args.preset,
        start=args.start,
        augmented=args.augmented,
        max_length=task.max_length,
    )
    scores = run_seeds(experiment, args.seeds, args.out)
    rows = [[name, mean_sd(scores, name), *(f"{100 * own[name]:.1f}" for own in scores)] for name in scores[0]]
    print(f"\n{table(['dev set', 'mean ± sd', *(f'seed {seed}' for seed in args.seeds)], rows)}")


if __name__ == "__main__":
    main()
