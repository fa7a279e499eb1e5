"""Any GLUE task, several seeds: TinyBERT's task distillation of a fine-tuned teacher, mean and standard deviation.

    tinybert finetune --model BERT --task mrpc --data MRPC --out runs/mrpc-teacher
    tinybert augment --model MLM --task mrpc --data MRPC --out runs/mrpc-augmented
    python experiments/glue.py --task mrpc --data MRPC --teacher runs/mrpc-teacher/student \\
        --augmented runs/mrpc-augmented --seeds 0 1 2 --out runs/glue-mrpc

Epochs, lengths and learning rates are the paper's for the task; WNLI, which the paper leaves out, takes RTE's. The
paper's figures start from a general TinyBERT: `--student DIR`, from `tinybert pretrain`. The same command continues
what was stopped.

What a spectral start is worth: against the row "without" of general_distillation.py (SST-2, random start, 80.6 ± 0.5),
it gave 85.4 ± 0.3 by `--task sst2 --student tinybert-3l-192d --start spectral --transformer-steps 300
--transformer-learning-rate 1e-3 --prediction-steps 300 --prediction-learning-rate 5e-4`. On the demo's reviews
(`quickstart.write_reviews`), teacher of 80 steps: random 73.9 ± 1.0, spectral 75.8 ± 0.7, by `--task classification
--max-length 64` and the same with 100 steps in both stages.
"""

from __future__ import annotations

import argparse

from shared import add_options, distillation, mean_sd, run_main, run_seeds, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--student", default="tinybert-4l-312d", help="a preset, a size as 6x384, or a directory to start from"
    )
    parser.add_argument("--augmented", help="directory that `tinybert augment` wrote")
    parser.add_argument("--preset", default="default", choices=["default", "paper", "official"])
    parser.add_argument("--start", default="random", choices=["random", "copy", "spectral"])
    args = parser.parse_args()
    experiment = distillation(args, args.student, augmented=args.augmented, preset=args.preset, start=args.start)
    scores = run_seeds(experiment, args.seeds, args.out)
    rows = [[name, mean_sd(scores, name), *(f"{100 * result[name]:.1f}" for result in scores)] for name in scores[0]]
    print(f"\n{table(['dev set', 'mean ± sd', *(f'seed {seed}' for seed in args.seeds)], rows)}")


if __name__ == "__main__":
    run_main(main)
