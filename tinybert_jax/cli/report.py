"""The command `tinybert report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from tinybert_jax.errors import InputError

RunNames = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]


def report(runs: RunNames, /, out: Path | None = None, measure: bool = True) -> None:
    """Write what finished runs gave and lost as one page: report.html, which needs no network, and report.md.

    Teachers and students are run on the dev rows again: scores, size and speed, classes, calibration, the rows that
    one has right and the other wrong, layers, training curves, and all settings. For example:

    tinybert report runs/tiny runs/labels-alone exported/teacher-int8

    Args:
        runs: directories of tinybert distill, finetune or pretrain, of one task. Other models may stand beside them,
            such as what tinybert compress or export wrote; they are scored on the first run's dev rows.
        out: the directory of the two files, where older ones are replaced; default: that of the first run.
        measure: time the models. It takes some seconds for each.
    """
    if not runs:
        raise InputError("no run is named: give the --out of tinybert distill, finetune or pretrain")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out takes a directory")
    from tinybert_jax.reports.report import write_report

    for file in write_report(runs, out, measure):
        print(f"written to {file}")
