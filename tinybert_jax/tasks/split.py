"""One split of any task, ready for a model: its tokens, and the meaning of a model's logits on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import Tokens

LOW_F1 = 0.05  # of answers and tags, which guesses hardly ever hit


Table = tuple[list[str], list[list[str]]]  # header, and cells of each row


class Judged(NamedTuple):
    """A row, what is right for it, what the model said, and how good that is."""

    text: str
    label: str
    said: str
    score: float  # 1: right, 0: wrong, or between for a part of an answer; of a number, minus its distance
    probability: float | None = None  # by the model, of what it said


class Reading(NamedTuple):
    """The rows of a split as judged, and the model's decisions: of rows, of words, or of each class of a row."""

    rows: list[Judged]
    unit: str = ""  # what is decided: "texts", "words"; "" where nothing is, as of numbers
    confidence: np.ndarray = np.zeros(0)  # the model's probability of each decision [m]
    right: np.ndarray = np.zeros(0, bool)  # [m]


@dataclass(frozen=True, eq=False)
class Split:
    """Tokens, and pure functions of a model's logits on them, in the order of the rows.

    `score` gives the task's metrics, `skill` how far the model is above chance (0) on the way to perfection (1), and
    `predictions` the content of a predictions file. `majority` gives the accuracy, and the share of the largest class.
    `tables` tell what the model does with each class, and `reading` what it says of each row.
    """

    tokens: Tokens
    label_names: tuple[str, ...]  # by id; () in regression and for answers
    labelled: bool
    score: Callable[[np.ndarray], dict[str, float]]
    skill: Callable[[np.ndarray], float]
    predictions: Callable[[np.ndarray], str]
    selection: str  # the score by which the best state is chosen
    measure: str = "F1"  # what `skill` is
    chance: float = LOW_F1  # the skill that guesses reach
    majority: Callable[[np.ndarray], tuple[float, float]] | None = None  # None: the outputs are no classes of rows
    rows: Rows | None = None  # what the tokens were made of, where it was rows
    tables: Callable[[np.ndarray], list[Table]] = lambda logits: []
    reading: Callable[[np.ndarray], Reading] | None = None  # None: nobody can judge single rows
    passages: Passages | None = None  # where rows are passages for queries

    @property
    def is_constant(self) -> bool:
        """Whether all rows have the same label, so that no score can tell a good model from a bad one."""
        return self.rows is not None and len(np.unique(self.tokens.labels, axis=0)) < 2

    def rows_also_in(self, other: Split) -> int:
        """How many of its rows have the texts of a row of another split."""
        if self.rows is None or other.rows is None:
            return 0
        texts = set(self.rows.texts)
        both = {row for row in other.rows.texts if row in texts}
        return sum(row in both for row in self.rows.texts)

    def doubt(self, name: str, logits: np.ndarray, label_names: Sequence[str], split: str = "dev") -> str:
        """A line on a model that knows nothing of the split's task, or has its classes in another order; "" where its
        predictions are better than chance. `label_names` are its classes by id, `()` where it has none.
        """
        if not (skill := self.skill(logits)) < self.chance:
            return ""
        order = f", or check its label order {tuple(label_names)}" if len(label_names) > 1 else ""
        return (
            f"{name}: its predictions on the {split} set are no better than chance ({self.measure} {skill:.3f}, and"
            f" guesses reach {self.chance:.3f}); train it on this task, or for longer{order}"
        )

    def failure(self, logits: np.ndarray) -> str:
        """How a model is no better than one that never read a text, or "" where it is better."""
        skill = self.skill(logits)
        numbers = [f"{self.measure} {skill:.3f}, and guesses reach {self.chance:.3f}"] if skill < self.chance else []
        if self.majority is not None:
            accuracy, share = self.majority(logits)
            # with scores for skewed classes, such as F1, a good model may have fewer rows right
            if numbers or (self.selection == "accuracy" and accuracy <= share):
                numbers.append(f"accuracy {accuracy:.3f}, and the majority class has {share:.3f}")
        return f"it is no better than chance ({'; '.join(numbers)})" if numbers else ""
