"""Divergence: a run ends when its numbers are not finite; in a population, only the member that diverged ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinybert_jax.devices import processes
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.training import record

FILE = "diverged.txt"  # in the directory of a member


class Diverged(Exception):
    """The loss, the gradient or the parameters are not finite; the checkpoints are sound."""


class DivergedMembers:
    """Which members of a run diverged. They are still computed, because one program computes all, but are ignored.

    All processes agree, because they see the same numbers. In a state, the parameters of a diverged member are NaN
    (`step.make_end_members`), so a resumed run knows it too.
    """

    def __init__(self, experiments: Sequence[Experiment], out: Path) -> None:
        self._names = record.member_names(experiments)
        self._directories = record.member_dirs(out, len(experiments))
        self._reasons: dict[int, str] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._reasons

    @property
    def flags(self) -> list[bool]:
        """Whether each member diverged."""
        return [number in self for number in range(len(self._names))]

    @property
    def living(self) -> list[int]:
        """The members that did not diverge."""
        return [number for number in range(len(self._names)) if number not in self]

    def reason(self, number: int) -> str | None:
        """A message about where and how the member diverged; None if it did not."""
        return self._reasons.get(number)

    def add(self, lost: Mapping[int, str], stage: str, step: int | None = None) -> None:
        """Mark members as diverged. `lost` says what is not finite; it is printed, and written to their directories.

        Raises:
            Diverged: no member is left.
        """
        if {*lost} >= {*self.living}:
            number = min(lost)
            whose = "" if len(self._names) == 1 else f" of member {number}"
            where = f"step {step}{whose}: " if step is not None else ""
            raise Diverged(
                f"{where}{lost[number]}; the checkpoints before it are sound. Start a new --out with a lower learning"
                " rate"
            )
        for number, state in lost.items():
            at = "" if step is None else f" at step {step} of"
            self._reasons[number] = f"{self._names[number]} diverged{at or ' after'} stage {stage}: {state}"
            if processes.is_primary():
                advice = (
                    "It has no student, and the other members are as without it. Try a lower learning rate for it."
                )
                (self._directories[number] / FILE).write_text(f"{self._reasons[number]}\n{advice}\n", "utf-8")
                _tell(f"warning: {self._reasons[number]}; the other members go on")

    @contextlib.contextmanager
    def ended_by(self, number: int, stage: str, step: int | None = None) -> Iterator[None]:
        """A context that marks the member as diverged if `Diverged` is raised in it.

        Raises:
            Diverged: as `add`.
        """
        try:
            yield
        except Diverged as error:
            self.add({number: str(error)}, stage, step)

    def restore(self, finite: Sequence[bool], stage: str) -> None:
        """Mark members whose parameters are not finite in the restored state of a stage."""
        for number, is_finite in enumerate(finite):
            if not is_finite and number not in self:
                file = self._directories[number] / FILE
                told = file.read_text("utf-8").splitlines()[:1] if file.is_file() else []
                self._reasons[number] = next(iter(told), f"{self._names[number]} diverged in stage {stage}")

    def forget(self, number: int) -> None:
        """Remove the file about a divergence that did not happen again after a resume from an earlier checkpoint."""
        (self._directories[number] / FILE).unlink(missing_ok=True)


def _tell(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above the progress bar
