"""The last part of all commands that train: run the experiment, print its scores or how it was stopped."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tinybert_jax.cli.options import Devices, parse_mesh
from tinybert_jax.errors import InputError, note
from tinybert_jax.reports.tables import print_table, scores_table
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource

if TYPE_CHECKING:
    from tinybert_jax.training.loop import Stopped

# disables non-deterministic reductions and autotuned kernels
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
NO_HEAD = "its head is not trained yet: give this directory as --student to tinybert distill --stage prediction"


def execute(
    experiments: Sequence[Experiment],
    out: Path,
    resume: bool,
    devices: Devices,
    opening: str | None = None,
    with_page: bool = False,
) -> None:
    """Run an experiment, or a population of them, and print the scores, or how it was stopped.

    `opening` is printed when everything is checked. `with_page` writes the report page at the end.
    """
    mesh = None if devices.mesh is None else parse_mesh(devices.mesh)
    if devices.deterministic:  # jax reads the flags when it makes its first device, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    from tinybert_jax.devices.processes import join
    from tinybert_jax.training.diverged import Diverged
    from tinybert_jax.training.loop import Stopped
    from tinybert_jax.training.run import run_population

    # When a read or write fails, Orbax and asyncio log tracebacks before Orbax raises the error, and TensorStore logs
    # more when the event loop is closed. The one line that says what to do would be lost among them.
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_late_io(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # for writes not begun
    join(devices.coordinator, devices.num_processes, devices.process_id)
    try:
        results = run_population(experiments, out, resume, mesh, opening)
    except Stopped as stopped:
        end_stopped(stopped)
    except Diverged as diverged:
        raise InputError(str(diverged)) from None
    if any(result.scores for result in results):
        print_table(*scores_table(results))
    else:
        experiment = experiments[0]
        print(experiment.stages[-1].objective.next_step if isinstance(experiment.source, CorpusSource) else NO_HEAD)
    for result in results:
        print(result.diverged or f"written to {result.directory}")
    if with_page:
        import jax

        if jax.process_count() > 1:  # a single process cannot compute on the devices of all processes
            print(f"tinybert report {out} writes a page of the run")
        else:
            from tinybert_jax.reports.report import write_report

            write_page(lambda: write_report([str(out)]))


def end_stopped(stopped: Stopped) -> NoReturn:
    """Say how to continue, and exit as a program does that its signal ends."""
    print(f"{stopped}\ncontinue with the same command and --resume")
    sys.exit(128 + stopped.signal)


def write_page(write: Callable[[], Sequence[Path]]) -> None:
    """Write the report page. An error is only printed, because the work itself is done."""
    try:
        for file in write():
            print(f"written to {file}")
    except (InputError, OSError, ValueError) as error:
        note(f"no page is written: {error}")


def _without_late_io(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda unraisable: None if "Event loop is closed" in str(unraisable.exc_value) else hook(unraisable)
