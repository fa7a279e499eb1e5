"""The command `tinybert shrink`."""

from __future__ import annotations

from pathlib import Path

from tinybert_jax.cli.execute import end_stopped, write_page
from tinybert_jax.cli.options import Source, TaskName
from tinybert_jax.errors import InputError
from tinybert_jax.reports.tables import print_table


def shrink(
    teacher: str,
    task: TaskName,
    source: Source,
    out: Path,
    keep: str | None = None,
    max_ms: float | None = None,
    max_mb: float | None = None,
    budget: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    resume: bool = False,
    report: bool = True,
) -> None:
    """Find the smallest or fastest student that reaches an aim, and write it as ONNX in int8.

    Students of several sizes, and the teacher pruned, are trained a little; the better half goes on with twice the
    steps, and again. All are measured as they would be deployed: int8, in ONNX Runtime, one text at a time, in the
    lengths of the dev rows. For example:

    tinybert shrink --teacher runs/teacher/student --task classification --train reviews.csv --dev-share 0.1 \\
        --keep 97% --out runs/small

    Args:
        teacher: a model fine-tuned on the task: Hugging Face directory or hub id.
        task: a row of the task table.
        source: where the rows are; the dev rows score.
        out: directory of the search. OUT/export is the ONNX model, OUT/student what it was made from, and OUT/pick.py
            its experiment, which `tinybert run OUT/pick.py --seed 1` repeats with another seed.
        keep: the aim: the fastest model that keeps so much of the teacher's score, as 97% or 0.97.
        max_ms: the aim: the best model that takes at most so many milliseconds for a text, on this machine.
        max_mb: the aim: the best model of at most so many megabytes.
        budget: about how long the training may take, besides compilation and scoring, as 2h or 45m; default: 100, 200
            and 400 steps of the layers' stage, and half as many of predictions.
        batch_size: rows per step.
        max_length: tokens per row; longer rows are cut; default: the length that the teacher was trained with.
        seed: decides initial values, dropout and the order of the rows.
        resume: continue the search in --out.
        report: write report.html and report.md at the end, as `tinybert report` does, of all that was trained, and of
            the pick in int8.
    """
    from tinybert_jax.shrink.aim import Aim, parse_share
    from tinybert_jax.shrink.plan import described, parse_time

    aim = Aim(None if keep is None else parse_share("--keep", keep), max_ms, max_mb)
    seconds = None if budget is None else parse_time("--budget", budget)
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: give a number of at least 1")
    from tinybert_jax.shrink.report import plan_line, plan_table, reasons, results_table
    from tinybert_jax.shrink.search import prepare, search
    from tinybert_jax.training.loop import Stopped

    asked = described(teacher, task, source, aim, batch_size, max_length, seed)
    plan = prepare(asked, out, seconds, resume)
    print_table(*plan_table(plan))
    print(plan_line(plan), flush=True)
    try:
        result = search(plan, out)
    except Stopped as stopped:
        end_stopped(stopped)
    print_table(*results_table(result))
    for line in reasons(result, out):
        print(line)
    if report and result.runs:
        from tinybert_jax.reports.report import write_report

        models = [*map(str, result.runs), *([] if result.directory is None else [str(result.directory)])]
        write_page(lambda: write_report(models, out))
