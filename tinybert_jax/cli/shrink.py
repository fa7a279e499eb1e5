"""The command `tinybert shrink`."""

from __future__ import annotations

import sys
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
    """Search for the student that meets one aim for quality, speed or size, and write it as ONNX in int8.

    Give one of --keep, --max-ms and --max-mb. Students of several sizes, and the teacher pruned, are trained for a few
    steps. The better half is trained with twice the steps, and half of these again. All are measured as they would be
    deployed: in int8, in ONNX Runtime, one text at a time, with texts as long as the dev rows. For example:

    tinybert shrink --teacher runs/teacher/student --task classification --train reviews.csv --dev-share 0.2 \\
        --keep 97% --out runs/small

    It needs the packages of `pip install '.[onnx]'`.

    Args:
        teacher: Hugging Face directory or hub id of a model that was fine-tuned on the task.
        task: the task.
        source: where the rows are. The dev rows score the candidates.
        out: directory of the search. OUT/export will be the ONNX model, OUT/student the model it was exported from,
            and OUT/pick.py its experiment file: `tinybert run OUT/pick.py --seed 1` trains it again with another seed.
        keep: aim: the fastest model that keeps this share of the teacher's score, such as 97% or 0.97.
        max_ms: aim: the best model that takes at most this many milliseconds per text on this machine.
        max_mb: aim: the best model of at most this many megabytes.
        budget: roughly how long the training may take, such as 2h or 45m, not counting compilation and scoring.
            Default: 100, then 200, then 400 steps on layers and half as many on outputs, however long they take.
        batch_size: rows per step.
        max_length: tokens per row; longer rows are truncated. Default: the length that the teacher was trained with.
        seed: seed for initial values, dropout and the order of the rows.
        resume: continue the search in --out.
        report: write report.html and report.md at the end, as `tinybert report` does, about all trained models and the
            chosen one in int8.
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

    plan = prepare(described(teacher, task, source, aim, batch_size, max_length, seed, seconds), out, resume)
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
    if result.pick is None:
        sys.exit(1)
