"""What a teacher is worth: beside wrong labels, on rows without labels, and together with other teachers.

    python experiments/teachers.py noise --task sst2 --data SST-2 --model BERT --out runs/noise
    python experiments/teachers.py unlabelled --task sst2 --data SST-2 --model BERT --out runs/unlabelled
    python experiments/teachers.py ensemble --task sst2 --data SST-2 --model BERT --out runs/ensemble

Each fine-tunes its teachers from BERT, into OUT/teacherSEED. The students' first stage, on layers, is trained once for
each seed; the settings differ in the second. The same command continues what was stopped.

noise: 0, 10, 20 and 30 % of the training labels are replaced by another class. The teacher has learnt from sound ones.
The student learns from the labels alone, from the teacher alone, or from both.
unlabelled: teacher and student have 500 labelled rows; the student has 20,000 without labels beside them, or none.
ensemble: three teachers of other seeds, each alone, and together.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from shared import Scores, add_options, distillation, mean_sd, paired, run_main, run_seeds, run_together, table

import tinybert_jax as tb
from tinybert_jax.data.labels import written_labels
from tinybert_jax.data.rows import Rows, read_rows
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.training import record

SHARES = (0.0, 0.1, 0.2, 0.3)  # of labels that are replaced
BOTH, TEACHER, LABELS = (
    tb.Prediction(hard_weight=1.0),
    tb.Prediction(),
    tb.Prediction(soft_weight=0.0, hard_weight=1.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(EXPERIMENTS))
    add_options(parser, teacher=False)
    parser.add_argument("--model", required=True, help="what the teachers are fine-tuned from")
    parser.add_argument("--teacher-steps", type=int, default=150)
    parser.add_argument("--teacher-learning-rate", type=float, default=1e-4)
    parser.add_argument("--student", default="tinybert-3l-192d", help="a preset or a size as 6x384")
    parser.add_argument("--train-rows", type=int, help="of noise and ensemble; default: all")
    parser.add_argument("--labelled", type=int, default=500, help="rows with labels, of unlabelled")
    parser.add_argument("--unlabelled", type=int, default=20_000, help="rows without labels, of unlabelled")
    args = parser.parse_args()
    named, teachers = EXPERIMENTS[args.what](args)
    metric = get_task(args.task).selection
    reference = next(iter(named.values()))
    for name, score in teachers.items():
        print(f"{name}: {metric} {100 * score[metric]:.1f}")
    rows = [
        [name, mean_sd(scores, metric), "" if scores is reference else paired(scores, reference, metric)]
        for name, scores in named.items()
    ]
    print(f"\n{table(['setting', metric, 'difference to the first ± s.e.'], rows)}")


def noise(args: argparse.Namespace) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Students of the teacher, the labels and both, at each share of wrong labels."""
    rows, task = chosen_rows(args, args.train_rows), get_task(args.task)
    source = write_rows(args, task, rows, "rows.tsv")
    teacher, score = finetuned(args, source, 0)
    students = first_stage(args, teacher, source, "first-stage")
    scores: dict[str, Scores] = {}
    for share in SHARES:
        wrong = write_rows(args, task, with_noise(rows, share), f"rows-{share:g}.tsv")
        described = second_stage(args, teacher, wrong)
        settings = {"labels": LABELS, "teacher": TEACHER, "both": BOTH} if share else {"labels": LABELS, "both": BOTH}
        named = {f"{100 * share:.0f} % wrong, {name}": with_objective(described, of) for name, of in settings.items()}
        scores |= run_together(named, args.seeds, args.out / f"share{share:g}", students)
    return scores, {"teacher": score}


def unlabelled(args: argparse.Namespace) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Students of few labelled rows, without and with rows that have none; all of them learn in both stages."""
    rows, task = chosen_rows(args, args.labelled + args.unlabelled), get_task(args.task)
    few = write_rows(args, task, part(rows, slice(args.labelled)), "labelled.tsv")
    more = args.out / "unlabelled.tsv"
    lines = ["\t".join(row) for row in rows.texts[args.labelled :]]
    more.write_text("\n".join(["\t".join(task.text_columns), *lines]) + "\n", "utf-8")
    teacher, score = finetuned(args, few, 0)
    scores: dict[str, Scores] = {}
    for name, source in (
        ("labelled rows", few),
        ("and rows without labels", dataclasses.replace(few, unlabelled=(str(more),))),
    ):
        students = first_stage(args, teacher, source, f"first-{len(scores)}")
        described = with_objective(second_stage(args, teacher, source), BOTH)
        scores |= run_together({name: described}, args.seeds, args.out / f"second-{len(scores)}", students)
    return scores, {"teacher": score}


def ensemble(args: argparse.Namespace) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Students of each teacher alone and of all together, from the same first stage, of the first teacher's layers."""
    source = write_rows(args, get_task(args.task), chosen_rows(args, args.train_rows), "rows.tsv")
    teachers = {f"teacher {seed}": finetuned(args, source, seed) for seed in range(3)}
    names = [name for name, _ in teachers.values()]
    students = first_stage(args, names[0], source, "first-stage")
    together: dict[str, str | tb.Ensemble] = {"all three": tb.Ensemble(tuple(names))}
    scores: dict[str, Scores] = {}
    for name, teacher in (together | dict(zip(teachers, names, strict=True))).items():
        scores |= run_together({name: second_stage(args, teacher, source)}, args.seeds, args.out / name, students)
    return scores, {name: score for name, (_, score) in teachers.items()}


EXPERIMENTS = {"noise": noise, "unlabelled": unlabelled, "ensemble": ensemble}


def chosen_rows(args: argparse.Namespace, count: int | None) -> Rows:
    """The first `count` of the task's training rows in a fixed random order; None: all of them."""
    rows = read_rows(get_task(args.task), tb.DataSource(data=args.data), "train")
    order = np.random.default_rng(0).permutation(len(rows.texts))
    return part(rows, order[:count])


def part(rows: Rows, index: np.ndarray | slice) -> Rows:
    """Some of the rows."""
    numbers = np.arange(len(rows.texts))[index]
    assert rows.labels is not None, "training rows have labels"
    texts = [rows.texts[number] for number in numbers]
    return dataclasses.replace(rows, texts=texts, labels=rows.labels[numbers], lines=[*numbers])


def with_noise(rows: Rows, share: float) -> Rows:
    """The rows with a share of the labels replaced, each by one of the other classes."""
    random = np.random.default_rng(1)
    assert rows.labels is not None, "training rows have labels"
    chosen = random.permutation(len(rows.texts))[: round(share * len(rows.texts))]
    labels, classes = rows.labels.copy(), len(rows.label_names)
    labels[chosen] = (labels[chosen] + random.integers(1, classes, len(chosen))) % classes
    return dataclasses.replace(rows, labels=labels)


def write_rows(args: argparse.Namespace, task: Task, rows: Rows, name: str) -> tb.DataSource:
    """The rows as a file in OUT, with the task's dev set."""
    args.out.mkdir(parents=True, exist_ok=True)
    assert rows.labels is not None, "training rows have labels"
    written = written_labels(task, rows.label_names)
    lines = ["\t".join([*texts, written[label]]) for texts, label in zip(rows.texts, rows.labels, strict=True)]
    path = args.out / name
    path.write_text("\n".join(["\t".join([*task.text_columns, task.label_column]), *lines]) + "\n", "utf-8")
    return tb.DataSource(train=str(path), dev=str(Path(args.data) / task.dev_file))


def finetuned(args: argparse.Namespace, source: tb.DataSource, seed: int) -> tuple[str, dict[str, float]]:
    """The directory of a teacher, and its scores."""
    stage = tb.Stage(tb.Supervised(), max_steps=args.teacher_steps, learning_rate=args.teacher_learning_rate)
    length = args.max_length or get_task(args.task).max_length
    experiment = tb.Experiment(args.task, source, args.model, (stage,), max_length=length)
    (score,) = run_seeds(experiment, [seed], args.out / f"teacher{seed}")
    return str(args.out / f"teacher{seed}" / f"seed{seed}" / "student"), score


def first_stage(args: argparse.Namespace, teacher: str, source: tb.DataSource, name: str) -> dict[int, str]:
    """The students after the stage of layers, by seed."""
    args.teacher = teacher
    described = distillation(args, args.student, start="auto")
    described = dataclasses.replace(described, source=source, stages=described.stages[:1])
    run_together({name: described}, args.seeds, args.out / name)
    members = record.member_dirs(args.out / name / "population0", len(args.seeds))
    return {seed: str(member / "student") for seed, member in zip(args.seeds, members, strict=True)}


def second_stage(args: argparse.Namespace, teacher: str | tb.Ensemble, source: tb.DataSource) -> tb.Experiment:
    """The stage of predictions, for a student that is given."""
    args.teacher = teacher
    described = distillation(args, args.student)
    return dataclasses.replace(described, source=source, stages=described.stages[1:])


def with_objective(described: tb.Experiment, objective: tb.Prediction) -> tb.Experiment:
    """The experiment with another objective in its one stage."""
    return dataclasses.replace(described, stages=(dataclasses.replace(described.stages[0], objective=objective),))


if __name__ == "__main__":
    run_main(main)
