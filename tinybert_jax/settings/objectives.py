"""Settings of objectives: a dataclass for each, with the numbers that only this objective reads; and layer maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.settings.numbers import Number, bounds

GENERAL_STUDENT = "a general student: give this directory as --student to tinybert distill"
LayerMap = Literal["uniform", "top", "bottom"] | tuple[int, ...]
EmbeddingLoss = Literal["mse", "cosine", "similarity"]
RankingLoss = Literal["margin_mse", "listwise"]


@dataclass(frozen=True)
class ObjectiveSettings:
    """The base of the settings of an objective. A subclass adds the numbers that only its objective reads.

    The class variables are facts that a run needs before anything is built.
    """

    name: ClassVar[str]  # in logs, checkpoints and `experiment.json`
    swept: ClassVar[tuple[str, ...]] = ()  # fields that are arguments of the compiled step: members may differ in them
    distils: ClassVar[bool] = False  # it learns from a teacher
    trains_head: ClassVar[bool] = False  # it trains the task's head, so the model can be scored
    matches_tokens: ClassVar[bool] = False  # it compares states of student and teacher position by position
    reads_layer_map: ClassVar[bool] = False  # it compares several layers, as the layer map pairs them
    learns_vectors: ClassVar[bool] = False  # it trains a head that gives vectors, and no other
    on_tasks: ClassVar[bool] = True  # it learns from the rows of a task
    on_corpus: ClassVar[bool] = False  # it learns from raw text
    next_step: ClassVar[str] = ""  # printed after training on raw text: what the model can be used for
    teacher_head: ClassVar[str | None] = None  # on raw text, the head that its teacher must have: a row of `HEADS`
    drops_token_types: ClassVar[bool] = False  # a new student has no token types, if its family allows that
    method: ClassVar[str] = "[TinyBERT](https://arxiv.org/abs/1909.10351)"  # of distillation, in a model card

    @property
    def reads_outputs(self) -> bool:
        """Whether it learns from a teacher's outputs alone, so that they can be computed before training."""
        return self.distils and not self.matches_tokens

    @property
    def vector_width(self) -> int | None:
        """The width to which a teacher's vectors are projected; None: they are not projected."""
        return None

    @property
    def group_size(self) -> int | None:
        """The largest number of passages of a query in a row of a batch; None: rows are not grouped by query."""
        return None

    @property
    def asks_for_labels(self) -> bool:
        """Whether a number says that labels are learnt beside a teacher's outputs, which is in vain without any."""
        return False

    @property
    def masked_share(self) -> float:
        """The share of a corpus's tokens that are masked and predicted."""
        return 0.0

    def check_positive(self, *names: str) -> None:
        """Refuse numbers that are not finite and greater than 0.

        Raises:
            InputError: names the field.
        """
        for name in names:
            if not all(0 < bound < math.inf for bound in bounds(getattr(self, name))):  # also refuses NaN
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and greater than 0")

    def check_not_negative(self, *names: str) -> None:
        """Refuse numbers that are not finite, or negative.

        Raises:
            InputError: names the field.
        """
        for name in names:
            if not all(0 <= bound < math.inf for bound in bounds(getattr(self, name))):
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and not negative")


@dataclass(frozen=True)
class Transformer(ObjectiveSettings):
    """Transformer distillation: embeddings, attention scores and hidden states (TinyBERT, equations 7 to 9)."""

    name = "transformer"
    swept = ("embedding_weight", "attention_weight", "hidden_weight")
    distils = True
    matches_tokens = True
    reads_layer_map = True
    on_corpus = True
    next_step = GENERAL_STUDENT

    embedding_weight: Number = 1.0
    attention_weight: Number = 1.0
    hidden_weight: Number = 1.0

    def __post_init__(self) -> None:
        self.check_not_negative(*self.swept)


@dataclass(frozen=True)
class Prediction(ObjectiveSettings):
    """Prediction-layer distillation: the teacher's outputs (TinyBERT, equation 10) and, with a weight, the labels.

    The loss is `soft_weight * CE(teacher, student; temperature) + hard_weight * CE(label, student)` (Hinton et al.,
    arXiv 1503.02531). In regression both terms are squared errors.
    """

    name = "prediction"
    swept: ClassVar[tuple[str, ...]] = ("temperature", "soft_weight", "hard_weight")
    distils = True
    trains_head = True

    temperature: Number = 1.0  # divides the logits of both sides in the soft term
    soft_weight: Number = 1.0
    hard_weight: Number = 0.0
    temperature_squared: bool | None = None  # multiply the soft term by temperature**2; None: as the preset says

    @property
    def asks_for_labels(self) -> bool:
        return max(bounds(self.hard_weight)) > 0 and self.hard_weight != type(self).hard_weight

    def __post_init__(self) -> None:
        self.check_positive("temperature")
        self.check_not_negative("soft_weight", "hard_weight")
        if max(*bounds(self.soft_weight), *bounds(self.hard_weight)) == 0:
            raise InputError("soft_weight and hard_weight are both 0, so there is nothing to learn: raise one of them")


@dataclass(frozen=True)
class Patient(Prediction):
    """Patient knowledge distillation (PKD; Sun et al., arXiv 1908.09355).

    The loss is that of `Prediction`, plus `patience_weight` times the mean squared error of the normalised states of
    [CLS] after all student layers except the last. The defaults are within the ranges that the paper searched.
    """

    name = "patient"
    swept = (*Prediction.swept, "patience_weight")
    matches_tokens = True
    reads_layer_map = True
    method = "[PKD](https://arxiv.org/abs/1908.09355)"

    temperature: Number = 10.0
    soft_weight: Number = 0.5
    hard_weight: Number = 0.5
    patience_weight: Number = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("patience_weight")


@dataclass(frozen=True)
class Embedding(ObjectiveSettings):
    """Distillation of a teacher's text vectors.

    The loss compares the numbers of the vectors ("mse"), their directions ("cosine"), or the cosines between the texts
    of a batch ("similarity"). For vectors of length 1, "mse" and "cosine" differ only by a factor.
    With `embedding_width`, the targets are the teacher's vectors, projected onto that many principal directions.
    With `matryoshka_dims`, vectors can be truncated to these lengths (Kusupati et al., arXiv 2205.13147): the whole
    vector and each truncated one learn the same cosines, and the loss is the mean over all lengths.
    """

    name = "embedding"
    distils = True
    trains_head = True
    learns_vectors = True
    method = "[sentence-transformers](https://arxiv.org/abs/2004.09813)"

    embedding_loss: EmbeddingLoss = "mse"
    embedding_width: int | None = None  # None: the teacher's
    matryoshka_dims: tuple[int, ...] = ()  # lengths to which vectors can be truncated

    @property
    def vector_width(self) -> int | None:
        return self.embedding_width

    def __post_init__(self) -> None:
        check_choice("embedding_loss", self.embedding_loss, EmbeddingLoss)
        if self.embedding_width is not None and self.embedding_width < 1:
            raise InputError(f"embedding_width is {self.embedding_width}; it must be at least 1")
        if self.matryoshka_dims and self.embedding_loss != "similarity":
            raise InputError(
                f"matryoshka_dims have no loss {self.embedding_loss!r}: the first numbers of a vector learn the"
                " cosines of whole ones; add --embedding-loss similarity"
            )
        if any(dim < 1 for dim in self.matryoshka_dims):
            raise InputError(f"matryoshka_dims are {self.matryoshka_dims}; each must be at least 1")


@dataclass(frozen=True)
class RankingLabels(ObjectiveSettings):
    """Training of a reranker on labels alone: cross-entropy of a query's scores against the relevance of its passages.

    The target of a passage is its share of the query's summed relevance. With one relevant passage, this is the loss
    of Gao et al. (arXiv 2101.08751).
    """

    name = "ranking_labels"
    trains_head = True

    candidates: int = 8  # largest number of passages of a query that are compared at once

    @property
    def group_size(self) -> int | None:
        return self.candidates

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise InputError(f"candidates is {self.candidates}; it must be at least 2, which are compared")


@dataclass(frozen=True)
class Ranking(RankingLabels):
    """Distillation of a teacher's scores for the passages of a query.

    The loss compares the margins of a relevant passage over each other one ("margin_mse", Hofstätter et al., arXiv
    2010.02666), or the softmax over all passages at a temperature ("listwise").
    """

    name = "ranking"
    swept = ("temperature",)
    distils = True
    method = "[margin-MSE](https://arxiv.org/abs/2010.02666)"

    ranking_loss: RankingLoss = "margin_mse"
    temperature: Number = 1.0  # for "listwise": divides the scores of both sides

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ranking_loss", self.ranking_loss, RankingLoss)
        self.check_positive("temperature")
        if self.ranking_loss == "margin_mse" and self.temperature != 1.0:
            raise InputError(
                f"temperature is {self.temperature}, and margin_mse has none: take listwise, or leave it out"
            )


@dataclass(frozen=True)
class Supervised(ObjectiveSettings):
    """Training on labels alone."""

    name = "supervised"
    trains_head = True


@dataclass(frozen=True)
class MaskedLM(ObjectiveSettings):
    """Masked-LM training on raw text (Devlin et al., arXiv 1810.04805)."""

    name = "masked_lm"
    on_tasks = False
    on_corpus = True
    next_step = "it has a masked-LM head: give this directory as --model to tinybert augment"

    masking_probability: float = 0.15  # for each token

    @property
    def masked_share(self) -> float:
        return self.masking_probability

    def __post_init__(self) -> None:
        if not 0 < self.masking_probability <= 0.2:  # the decoder runs on a quarter of the positions
            raise InputError(f"masking_probability is {self.masking_probability}; it must be above 0, and at most 0.2")


@dataclass(frozen=True)
class DistilBert(MaskedLM):
    """Masked-LM training with a masked-LM teacher (DistilBERT, Sanh et al., arXiv 1910.01108).

    The loss is `soft_weight * temperature**2 * CE(teacher, student; temperature) + hard_weight * CE(token, student)`
    over masked tokens, plus `cosine_weight * (1 - cos(student, teacher))` over the last hidden states of all tokens.
    The default weights are those of the authors' code.
    """

    name = "distilbert"
    swept = ("temperature", "soft_weight", "hard_weight", "cosine_weight")
    distils = True
    matches_tokens = True
    next_step = GENERAL_STUDENT
    teacher_head = "masked_lm"
    drops_token_types = True
    method = "[DistilBERT](https://arxiv.org/abs/1910.01108)"

    temperature: Number = 2.0
    soft_weight: Number = 5.0
    hard_weight: Number = 2.0
    cosine_weight: Number = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("temperature")
        self.check_not_negative("soft_weight", "hard_weight", "cosine_weight")


WORDS: dict[str, type[ObjectiveSettings]] = {
    row.name: row
    for row in (
        Supervised,
        MaskedLM,
        Transformer,
        Prediction,
        Patient,
        Embedding,
        Ranking,
        RankingLabels,
        DistilBert,
    )
}


def named_objective(word: str) -> ObjectiveSettings:
    """The objective of this name, with its default settings.

    Raises:
        InputError: the word is unknown.
    """
    if word not in WORDS:
        raise InputError(f"objective is {word!r}; it must be one of {', '.join(WORDS)}")
    return WORDS[word]()


def teacher_layers(layer_map: LayerMap, student_depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The layer map g(1), ..., g(M): which teacher layer, counted from 1, each student layer learns from.

    Args:
        layer_map: "uniform": g(m) = m N / M, rounded to the nearest layer; "top": the last M layers; "bottom": the
            first M; or g itself. If M > N, layers repeat.
        student_depth: M, the number of student layers.
        teacher_depth: N, the number of teacher layers.

    Raises:
        InputError: an explicit map has another length than M, or names a layer outside 1..N.

    >>> teacher_layers("uniform", 4, 12), teacher_layers("uniform", 4, 6)
    ((3, 6, 9, 12), (2, 3, 5, 6))
    >>> teacher_layers("top", 2, 6), teacher_layers("bottom", 2, 6)
    ((5, 6), (1, 2))
    """
    m_layers = range(1, student_depth + 1)
    match layer_map:
        case "uniform":
            # in integers, with halves rounded up: the same on every machine
            return tuple(max(1, (2 * m * teacher_depth + student_depth) // (2 * student_depth)) for m in m_layers)
        case "top":
            return tuple(max(1, teacher_depth - student_depth + m) for m in m_layers)
        case "bottom":
            return tuple(min(m, teacher_depth) for m in m_layers)
        case str():
            raise InputError(f"unknown layer map {layer_map!r}; use uniform, top, bottom or a list of teacher layers")
    if len(layer_map) != student_depth:
        raise InputError(f"the layer map {layer_map} must name a layer for each of the student's {student_depth}")
    if not all(1 <= g <= teacher_depth for g in layer_map):
        raise InputError(
            f"the layer map {layer_map} names a layer that the teacher lacks: give numbers from 1 to {teacher_depth}"
        )
    return tuple(layer_map)
