"""The command `tinybert report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from tinybert_jax.errors import InputError

RunNames = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")
]


def report(runs: RunNames, /, out: Path | None = None, measure: bool = True) -> None:
    """Compare finished runs with their teacher on one page: report.html, which needs no network, and report.md.

    Teachers and students are run on the dev rows again. The page shows scores, size and speed, scores by class,
    calibration, the rows that one model has right and the other wrong, similarity of layers, training curves, and all
    settings. For example:

    tinybert report runs/tiny runs/labels-alone exported/teacher-int8

    Args:
        runs: directories that tinybert distill, finetune or pretrain wrote (their --out), all of one task. Other
            models may be added, such as what tinybert compress or export wrote; they are scored on the first run's
            dev rows.
        out: directory for the two files; older ones are replaced. Default: the first run's directory.
        measure: also time the models. This takes some seconds per model.
    """
    if not runs:
        raise InputError("no run is named: give the --out of tinybert distill, finetune or pretrain")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out takes a directory")
    from tinybert_jax.reports.report import write_report

    for file in write_report(runs, out, measure):
        print(f"written to {file}")
