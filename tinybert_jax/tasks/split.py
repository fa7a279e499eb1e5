"""One split of any task, ready for a model: its tokens, and the meaning of a model's logits on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.errors import InputError

LOW_F1 = 0.05  # chance level for answers and tags, which guesses hardly ever hit
Table = tuple[list[str], list[list[str]]]  # header, and cells of each row


def chance_level(count: int) -> float:
    """The correlation with the truth that guesses about `count` independent rows reach in 1 of 40 cases, at most 0.5.

    >>> chance_level(100), chance_level(4)
    (0.2, 0.5)
    """
    return min(0.5, 2 / math.sqrt(max(count, 1)))


def predictions_file(values: Iterable[object], numbers: Iterable[int] | None = None) -> str:
    """The content of a predictions file: a line for each row, with its number and its prediction.

    >>> predictions_file(["good", "bad"])
    'index\\tprediction\\n0\\tgood\\n1\\tbad\\n'
    """
    numbered = enumerate(values) if numbers is None else zip(numbers, values, strict=True)
    return "\n".join(["index\tprediction", *(f"{number}\t{value}" for number, value in numbered)]) + "\n"


class Judged(NamedTuple):
    """A row with the right answer, the model's prediction, and its score."""

    text: str
    label: str
    said: str
    score: float  # 1: right, 0: wrong; in between for a part of an answer; in regression, minus the distance
    probability: float | None = None  # the model's probability of its prediction


class Reading(NamedTuple):
    """The judged rows of a split, and the model's decisions: about rows, words, or each class of a row."""

    rows: list[Judged]
    unit: str = ""  # what decisions are about: "texts", "words"; "" in regression, which has none
    confidence: np.ndarray = np.zeros(0)  # the model's probability of each decision [m]
    right: np.ndarray = np.zeros(0, bool)  # [m]


@dataclass(frozen=True, eq=False)
class Split:
    """Tokens, and pure functions of a model's logits on them, in the order of the rows.

    `score` returns the task's metrics, `skill` a number from chance (0) to perfection (1), and `predictions` the
    content of a predictions file. `majority` returns the accuracy and the share of the largest class. `tables` are
    results for each class, and `reading` has the prediction for each row.
    """

    tokens: Tokens
    label_names: tuple[str, ...]  # by id; () in regression and for answers
    labelled: bool
    score: Callable[[np.ndarray], dict[str, float]]
    skill: Callable[[np.ndarray], float]
    predictions: Callable[[np.ndarray], str]
    selection: str  # the score that chooses the best checkpoint
    measure: str = "F1"  # the name of `skill`
    chance: float = LOW_F1  # the skill that guesses reach
    majority: Callable[[np.ndarray], tuple[float, float]] | None = None  # None: the outputs are not classes of rows
    rows: Rows | None = None  # the rows of the tokens; None if the source has no rows of texts
    tables: Callable[[np.ndarray], list[Table]] = lambda logits: []
    reading: Callable[[np.ndarray], Reading] | None = None  # None: single rows cannot be judged
    passages: Passages | None = None  # in tasks with queries

    @property
    def is_constant(self) -> bool:
        """Whether all rows have the same label, so that no score can tell a good model from a bad one."""
        return self.rows is not None and len(np.unique(self.tokens.labels, axis=0)) < 2

    def check_measurable(self) -> None:
        """Refuse a dev set on which no model can be measured.

        Raises:
            InputError: its rows have no labels, or all the same.
        """
        if not self.labelled:
            raise InputError("the dev set has no labels: nothing can be measured on it")
        if self.is_constant:
            raise InputError(
                "every row of the dev set has the same label: give rows of others, or a greater --dev-share"
            )

    def rows_also_in(self, other: Split) -> int:
        """How many of its rows have the texts of a row of another split."""
        if self.rows is None or other.rows is None:
            return 0
        texts = set(self.rows.texts)
        both = {row for row in other.rows.texts if row in texts}
        return sum(row in both for row in self.rows.texts)

    def doubt(self, name: str, logits: np.ndarray, label_names: Sequence[str], split: str = "dev") -> str:
        """A line on a model that knows nothing of the split's task, or has its classes in another order; "" where its
        predictions are better than chance. `label_names` are its classes by id; they count in tasks with classes.
        """
        if not (skill := self.skill(logits)) < self.chance:
            return ""
        order = f", or check its label order {tuple(label_names)}" if self.label_names and len(label_names) > 1 else ""
        return (
            f"{name}: its predictions on the {split} set are no better than chance ({self.measure} {skill:.3f};"
            f" guesses at random reach {self.chance:.3f}); train it on this task, or for longer{order}"
        )

    def failure(self, logits: np.ndarray) -> str:
        """A message if a model is no better than chance or the majority class; "" if it is better."""
        skill = self.skill(logits)
        numbers = (
            [f"{self.measure} {skill:.3f}; guesses at random reach {self.chance:.3f}"] if skill < self.chance else []
        )
        if self.majority is not None:
            accuracy, share = self.majority(logits)
            # with scores for skewed classes, such as F1, a good model may have fewer rows right
            if numbers or (self.selection == "accuracy" and accuracy <= share):
                numbers.append(f"accuracy {accuracy:.3f}; always the largest class gives {share:.3f}")
        return f"it is no better than chance ({'; '.join(numbers)})" if numbers else ""
