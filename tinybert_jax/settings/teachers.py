"""Teachers that need more than a name: ensembles and functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.settings.paths import expand_paths

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class FunctionTeacher:
    """A function from texts to class probabilities or numbers. It runs before training, and its outputs are cached.

    Args:
        function: takes a list of texts, or of pairs of texts, and returns probabilities [n, c] in the order of
            `labels`; in regression, numbers [n].
        fingerprint: names the function's version. Outputs cached under the same fingerprint are not computed again, so
            change it when the function changes.
        labels: the class names; () in regression.
        batch_size: number of texts in a call.
    """

    name: ClassVar[str] = "function"

    function: Callable[[Sequence[Any]], Any] = dataclasses.field(repr=False)
    fingerprint: str
    labels: tuple[str, ...] = ()
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not callable(self.function) or not self.fingerprint:
            raise InputError("a function as teacher needs a function, and a fingerprint that names its version")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels) or self.batch_size < 1:
            raise InputError(
                f"labels are {self.labels} and batch_size {self.batch_size}; give the names of two classes or more,"
                " each once, or none in regression; and at least 1 text for a call"
            )

    def __str__(self) -> str:
        return f"function {self.fingerprint}"

    def described(self) -> dict[str, Any]:
        """The fields that determine its outputs, as plain values."""
        return {"name": self.name, "fingerprint": self.fingerprint, "labels": self.labels}


Named = str | FunctionTeacher


@dataclass(frozen=True)
class Ensemble:
    """Several teachers. Each uses its own tokenizer. The student learns from the mean of their outputs.

    Args:
        members: two or more directories, hub ids, files of predictions or functions.
        weights: one for each member; default: equal weights. They are divided by their sum.
        average: whether to average probabilities or logits. In regression the outputs are averaged.
        layer_teacher: the member whose layers teach: a Transformer stage and the student's start use them. Default:
            the first member that has layers.
    """

    name: ClassVar[str] = "ensemble"

    members: tuple[Named, ...]
    weights: tuple[float, ...] | None = None
    average: Average = "probabilities"
    layer_teacher: str | None = None

    def __post_init__(self) -> None:
        expand_paths(self, "members", "layer_teacher")
        check_choice("average", self.average, Average)
        if len(self.members) < 2 or len(set(map(str, self.members))) < len(self.members):
            raise InputError(f"the teachers are {self}; an ensemble has two members or more, each once")
        if self.weights is not None and (
            len(self.weights) != len(self.members) or not all(0 < weight < math.inf for weight in self.weights)
        ):
            raise InputError(f"the teachers' weights are {self.weights}; give {len(self.members)} greater than 0")
        if self.layer_teacher is not None and self.layer_teacher not in self.members:
            raise InputError(f"the layers' teacher is {self.layer_teacher!r}; it must be one of {self}")

    def __str__(self) -> str:
        return ", ".join(map(str, self.members))

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, which add up to 1."""
        weights = self.weights or (1.0,) * len(self.members)
        return tuple(weight / sum(weights) for weight in weights)

    def described(self) -> dict[str, Any]:
        """The fields as plain values."""
        members = [member if isinstance(member, str) else member.described() for member in self.members]
        return {
            "name": self.name,
            "members": members,
            "weights": self.shares,
            "average": self.average,
            "layer_teacher": self.layer_teacher,
        }


AnyTeacher = Named | Ensemble


def all_teachers(teacher: AnyTeacher | None) -> tuple[Named, ...]:
    """The members of an ensemble, the single teacher, or none."""
    if isinstance(teacher, Ensemble):
        return teacher.members
    return () if teacher is None else (teacher,)
