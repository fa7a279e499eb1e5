"""A run whose numbers are not finite any more ends; a member of a population ends alone."""

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
    """Which members of a run diverged: they are computed on, since the program is for all, and count no more.

    It is the same in all processes, as it is told by numbers that are. A state tells it by the parameters, which are
    made NaN where a member diverged (`step.make_end_members`), so a run that is resumed knows it too.
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
        """The members that count."""
        return [number for number in range(len(self._names)) if number not in self]

    def reason(self, number: int) -> str | None:
        """Which member diverged where and how; None: it did not."""
        return self._reasons.get(number)

    def add(self, lost: Mapping[int, str], stage: str, step: int | None = None) -> None:
        """Members that diverge now, with what is not finite. Each is told, and its directory says so.

        Raises:
            Diverged: none is left.
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
        """Where outputs of the member may turn out not to be finite, which ends it.

        Raises:
            Diverged: as `add`.
        """
        try:
            yield
        except Diverged as error:
            self.add({number: str(error)}, stage, step)

    def restore(self, finite: Sequence[bool], stage: str) -> None:
        """Members whose parameters are not finite in a state of the stage that is continued."""
        for number, is_finite in enumerate(finite):
            if not is_finite and number not in self:
                file = self._directories[number] / FILE
                told = file.read_text("utf-8").splitlines()[:1] if file.is_file() else []
                self._reasons[number] = next(iter(told), f"{self._names[number]} diverged in stage {stage}")

    def forget(self, number: int) -> None:
        """Remove what the directory says of a member that did not diverge, when it was resumed from before."""
        (self._directories[number] / FILE).unlink(missing_ok=True)


def _tell(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above the progress bar
