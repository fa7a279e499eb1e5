"""What a stage shows and writes: the progress bar, `metrics.jsonl`, TensorBoard, `speed.jsonl`."""

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
    """Every logged number of one stage, in `metrics.jsonl` and in TensorBoard; written when `write` returns."""

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued_log(out / "metrics.jsonl", stage, start_step)
        folder = out / "tensorboard" / stage
        folder.mkdir(parents=True, exist_ok=True)
        # not by a SummaryWriter: its thread would die of a full disk in silence, and the run wait for it forever
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        restart = SessionLog(status=SessionLog.START)  # has TensorBoard forget the steps that come again
        self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers as of `step`, the count of steps done."""
        self._file.write(json.dumps({"stage": self._stage, "step": step} | numbers) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _continued_log(path: Path, stage: str, start_step: int) -> TextIO:
    """A log of JSON lines, to be appended to: a resumed stage logs the steps after its checkpoint again."""
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= start_step]
        shortened = path.with_suffix(".tmp")
        shortened.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        shortened.replace(path)
    return path.open("a", encoding="utf-8")


class SpeedLog:
    """How fast a stage trained, in `speed.jsonl`: apart from the metrics, which repeat to the bit where time does not.

    A line covers the steps since the last one, without evaluations and checkpoints: real tokens (no padding), the
    share that they are of all positions, the real tokens a second, and floating-point operations by count, padding
    included (`cost.step_flops`). The first lines include compilation.
    """

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued_log(out / "speed.jsonl", stage, start_step)
        self._tokens, self._positions, self._flops, self._seconds = 0.0, 0, 0.0, 0.0
        self.restart()

    def restart(self) -> None:
        """What was done since the last step is not counted."""
        self._last = time.perf_counter()

    def add(self, positions: int, flops: float, real: float) -> None:
        """Count a step that is done, of so many operations, on that many positions, of which a share is real."""
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._tokens, self._positions = self._tokens + positions * real, self._positions + positions
        self._flops += flops

    def write(self, step: int) -> None:
        """Log what was counted, as of `step`, and start anew."""
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
    """What a stage shows and writes: a progress bar, every member's numbers, and the speed."""

    def __init__(self, out: Path, diverged: DivergedMembers, name: str, done: int, total: int) -> None:
        directories = record.member_dirs(out, len(diverged.flags)) if processes.is_primary() else []
        self._name, self._diverged = name, diverged
        self._members = [MetricsLog(directory, name, done) for directory in directories]
        self._speed = SpeedLog(out, name, done) if processes.is_primary() else None
        self._bar = progress(name, done, total)
        self._first = done + 1
        if done < total:
            self._bar.set_postfix_str("compiling")

    def compiled(self) -> None:
        """What was done since the bar moved was no training, so its estimate of the time leaves it out."""
        self._bar.unpause()

    def step(self, step: int, positions: int, flops: float, numbers: dict[str, jax.Array]) -> None:
        """Fetch the numbers of a step of so many operations, whose batch has that many positions; show and log them.

        A member whose loss, gradient or updated parameters are not finite diverges.

        Raises:
            Diverged: no other is left.
        """
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
            for i in living if self._members else ():  # no logs but the primary's
                self._members[i].write(step, members[i])
            if self._speed is not None:
                self._speed.write(step)

    def scores(self, step: int, scores: Mapping[int, dict[str, float]], selection: str) -> list[float]:
        """Show and log the scores by member, and return those that select; NaN of members that have none."""
        for i, member_scores in scores.items() if self._members else ():  # no logs but the primary's
            self._members[i].write(step, {f"dev/{name}": value for name, value in member_scores.items()})
        self._bar.set_postfix({selection: _range([member_scores[selection] for member_scores in scores.values()])})
        return [scores[i][selection] if i in scores else math.nan for i in range(len(self._diverged.flags))]

    def restart_clock(self) -> None:
        """What was done since the last step was no training."""
        if self._speed is not None:
            self._speed.restart()

    def close(self) -> None:
        self._bar.close()
        for log in self._members:
            log.close()
        if self._speed is not None:
            self._speed.close()


def _range(values: Sequence[float]) -> str:
    """The value of a single run; of a population, the least and the largest where they differ."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"


def progress(name: str, done: int, total: int) -> Any:
    """A progress bar on stderr, of the primary process; where that is no terminal, a line now and then."""
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
