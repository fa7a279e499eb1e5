"""The logs of a stage: the progress bar, `metrics.jsonl`, TensorBoard and `speed.jsonl`."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from tinybert_jax.devices import processes
from tinybert_jax.training import record
from tinybert_jax.training.diverged import DivergedMembers


class MetricsLog:
    """The logged numbers of one stage, in `metrics.jsonl` and TensorBoard. They are on disk when `write` returns."""

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued_log(out / "metrics.jsonl", stage, start_step)
        folder = out / "tensorboard" / stage
        folder.mkdir(parents=True, exist_ok=True)
        # not a SummaryWriter: on a full disk its thread dies silently, and the run would wait for it forever
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        restart = SessionLog(status=SessionLog.START)  # TensorBoard then drops the steps that are logged again
        self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers after `step` steps."""
        self._file.write(json.dumps({"stage": self._stage, "step": step} | numbers) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _continued_log(path: Path, stage: str, start_step: int) -> TextIO:
    """A log of JSON lines, opened to append, without the lines after a resumed stage's checkpoint."""
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= start_step]
        shortened = path.with_suffix(".tmp")
        shortened.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        shortened.replace(path)
    return path.open("a", encoding="utf-8")


class SpeedLog:
    """The speed of a stage, in `speed.jsonl`. It is not in the metrics, because these are bitwise repeatable.

    A line covers the steps since the last line, without evaluations and checkpoints: the number of real tokens (no
    padding), their share of all positions, real tokens per second, and counted floating-point operations with padding
    (`cost.step_flops`). The first lines include compilation.
    """

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued_log(out / "speed.jsonl", stage, start_step)
        self._tokens, self._positions, self._flops, self._seconds = 0.0, 0, 0.0, 0.0
        self.restart()

    def restart(self) -> None:
        """Restart the clock: the time since the last step is not counted."""
        self._last = time.perf_counter()

    def add(self, positions: int, flops: float, real: float) -> None:
        """Count a finished step: its positions, operations, and the share `real` of positions that are real tokens."""
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._tokens, self._positions = self._tokens + positions * real, self._positions + positions
        self._flops += flops

    def write(self, step: int) -> None:
        """Log the counts after `step` steps, and reset them."""
        numbers = {
            "tokens": round(self._tokens),
            "real_tokens": round(self._tokens / self._positions, 4),
            "seconds": round(self._seconds, 4),
            "tokens_per_second": round(self._tokens / self._seconds, 1),
            "flops": self._flops,
        }
        self._file.write(json.dumps({"stage": self._stage, "step": step} | numbers) + "\n")
        self._file.flush()
        self._tokens, self._positions, self._flops, self._seconds = 0.0, 0, 0.0, 0.0

    def close(self) -> None:
        self._file.close()


LOG_EVERY = 10  # steps


class StageLog:
    """All logs of a stage: a progress bar, the numbers of every member, and the speed."""

    def __init__(self, out: Path, diverged: DivergedMembers, name: str, done: int, total: int) -> None:
        directories = record.member_dirs(out, len(diverged.flags)) if processes.is_primary() else []
        self._name, self._diverged = name, diverged
        self._members = [MetricsLog(directory, name, done) for directory in directories]
        self._speed = SpeedLog(out, name, done) if processes.is_primary() else None
        self._bar = progress(name, done, total)
        self._first = done + 1
        self._waiting: tuple[int, int, float, dict[str, jax.Array]] | None = None  # the last step
        if done < total:
            self._bar.set_postfix_str("compiling")

    def compiled(self) -> None:
        """Leave compilation out of the bar's estimate of the time."""
        self._bar.unpause()

    def step(self, step: int, positions: int, flops: float, numbers: dict[str, jax.Array]) -> None:
        """Log a step, whose batch has `positions` positions and costs `flops`, in the next call or in `flush`.

        The numbers are fetched after the next step is dispatched, so the device never waits.

        Raises:
            Diverged: as `flush`.
        """
        self.flush()
        self._waiting = step, positions, flops, numbers

    def flush(self) -> None:
        """Fetch, show and log the numbers of the last step, unless it is done already.

        A member diverges if its loss, gradient or updated parameters are not finite.

        Raises:
            Diverged: no member is left.
        """
        if self._waiting is None:
            return
        (step, positions, flops, numbers), self._waiting = self._waiting, None
        fetched = {name: np.atleast_1d(value).tolist() for name, value in jax.device_get(numbers).items()}
        members = [dict(zip(fetched, values, strict=True)) for values in zip(*fetched.values(), strict=True)]
        lost = {}
        for i in self._diverged.living:
            watched = {name: members[i][name] for name in ("loss", "gradient_norm", "parameter_norm")}
            if not all(math.isfinite(value) for value in watched.values()):
                lost[i] = ", ".join(f"{name} is {value}" for name, value in watched.items())
        if lost:
            self._diverged.add(lost, self._name, step)
        living = self._diverged.living
        self._bar.update()
        if self._speed is not None:
            self._speed.add(positions, flops, members[0]["real_tokens"])
        log_now = step % LOG_EVERY == 0 or step == self._bar.total
        if log_now or step == self._first:
            self._bar.set_postfix(loss=_range([members[i]["loss"] for i in living]), refresh=False)
        if log_now:
            for i in living if self._members else ():  # only the primary process has logs
                self._members[i].write(step, members[i])
            if self._speed is not None:
                self._speed.write(step)

    def scores(self, step: int, scores: Mapping[int, dict[str, float]], selection: str) -> list[float]:
        """Show and log the scores of the members. Returns those that choose checkpoints, NaN for diverged members."""
        for i, member_scores in scores.items() if self._members else ():  # only the primary process has logs
            self._members[i].write(step, {f"dev/{name}": value for name, value in member_scores.items()})
        self._bar.set_postfix({selection: _range([member_scores[selection] for member_scores in scores.values()])})
        return [scores[i][selection] if i in scores else math.nan for i in range(len(self._diverged.flags))]

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the speed."""
        if self._speed is not None:
            self._speed.restart()

    def close(self) -> None:
        self._bar.close()
        for log in self._members:
            log.close()
        if self._speed is not None:
            self._speed.close()


def _range(values: Sequence[float]) -> str:
    """The value if all are equal, else the smallest and the largest."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"


def progress(name: str, done: int, total: int) -> Any:
    """The primary process's progress bar on stderr. If stderr is not a terminal, it prints a line every 30 seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(
        initial=done,
        total=total,
        desc=name,
        unit="step",
        mininterval=interval,
        dynamic_ncols=True,
        disable=not processes.is_primary(),
    )
