"""Settings of compression methods: a dataclass for each, with the numbers that only this method reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.settings.choices import WEIGHT_BITS, Criterion, GradualRule, SharedPart


@dataclass(frozen=True)
class CompressionSettings:
    """The base of the settings of a compression method. A subclass adds the numbers that only its method reads."""

    name: ClassVar[str]  # in `experiment.json`
    reads_head: ClassVar[bool] = False  # it needs a head that is trained on the task
    min_steps: ClassVar[int] = 0  # least number of steps of the stage in which it acts; 0: it acts before the stage
    not_after: ClassVar[tuple[str, ...]] = ()  # methods that it cannot follow
    keeps_shapes: ClassVar[bool] = False  # it does not change the shapes of parameters


@dataclass(frozen=True)
class Prune(CompressionSettings):
    """Structured pruning: whole attention heads and feed-forward units are removed, without training.

    Importance is the diagonal of the Fisher information (Kwon et al., arXiv 2204.09656). Then the output projections
    of the remaining heads and units are refitted by least squares, so that the inputs of each LayerNorm stay close to
    those of the whole model.
    """

    name = "prune"
    not_after = ("gradual_prune", "low_rank", "share", "share_part", "sparse", "movement", "quantize")
    reads_head = True

    macs: float = 0.5  # share of the encoder's multiply-adds that is left
    uniform: bool = False  # every layer keeps the same number of heads and units, so that JAX runs it faster too
    rounds: int = 3  # number of rounds in which the share is reached
    rows: int = 1024  # number of training rows on which importance is measured

    def __post_init__(self) -> None:
        if not 0 < self.macs < 1:
            raise InputError(f"macs is {self.macs}; it must be between 0 and 1: the share that is left")
        if self.rounds < 1 or self.rows < 1:
            raise InputError(f"rounds is {self.rounds} and rows {self.rows}; they must be at least 1")


@dataclass(frozen=True)
class GradualPrune(CompressionSettings):
    """Structured pruning during the first stage: whole attention heads and feed-forward units are removed.

    "fisher": every 20 steps the least important ones are removed, on a cubic schedule (Zhu and Gupta, arXiv
    1710.01878). Importance is a running mean of the squared gradients of the stage's loss with respect to masks.
    "l0": each head and unit has a random gate, whose probability to be open is trained (Louizos et al., arXiv
    1712.01312). The expected share follows a target that falls linearly (CoFi, Xia et al., arXiv 2204.00408).
    """

    name = "gradual_prune"
    not_after = ("low_rank", "share", "share_part", "sparse", "movement", "quantize")
    min_steps = 10

    macs: float = 0.5  # share of the encoder's multiply-adds that is left
    by: GradualRule = "fisher"
    until: float = 0.7  # the share is reached after this part of the first stage's steps; then nothing more is removed

    def __post_init__(self) -> None:
        check_choice("by", self.by, GradualRule)
        if not 0 < self.macs < 1:
            raise InputError(f"macs is {self.macs}; it must be between 0 and 1: the share that is left")
        if not 0 < self.until <= 0.9:
            raise InputError(f"until is {self.until}; it must be greater than 0, and at most 0.9")


@dataclass(frozen=True)
class LowRank(CompressionSettings):
    """Low-rank factorisation: dense matrices, and if asked the word table, become products of two narrow ones.

    The factors of dense matrices change the outputs on training rows as little as possible (singular values after
    whitening, as in SVD-LLM, arXiv 2403.07378). Those of the word table are most exact for frequent words.
    """

    name = "low_rank"
    not_after = ("low_rank", "share_part", "sparse", "movement", "quantize")

    dense: float | None = 0.6  # share of the layers' dense parameters that is left; None: not factorised
    words: float | None = None  # share of the word table's parameters that is left; None: not factorised
    rows: int = 512  # number of training rows on which inputs are measured

    def __post_init__(self) -> None:
        for share in (self.dense, self.words):
            if share is not None and not 0 < share < 1:
                raise InputError(f"low rank {share}; it must be between 0 and 1: the share of parameters that is left")
        if self.dense is None and self.words is None:
            raise InputError("low rank of nothing: give a share for dense layers, for words, or for both")
        if self.rows < 1:
            raise InputError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True)
class Quantize(CompressionSettings):
    """Dense layers that multiply in int8: weights have one scale for each output, inputs one for each token.

    Training rounds values in the same way, and gradients pass through (quantization-aware training).
    """

    name = "quantize"
    not_after = ("quantize",)
    keeps_shapes = True

    weight_bits: int = 8  # 2 to 8; inputs have 8

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise InputError(f"weight_bits is {self.weight_bits}; it must be {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]}")


@dataclass(frozen=True)
class Vocabulary(CompressionSettings):
    """A smaller vocabulary: only the pieces that occur in the training rows and in `texts` are kept.

    All special tokens and single characters are kept too, so any other word can be cut into smaller pieces.
    """

    name = "vocabulary"
    not_after = ("vocabulary",)

    texts: tuple[str, ...] = ()  # files with a text a line


@dataclass(frozen=True)
class Share(CompressionSettings):
    """Parameter sharing in groups of consecutive layers (ALBERT, Lan et al., arXiv 1909.11942).

    A BERT becomes an ALBERT. Each group takes the parameters of its first layer. The model is smaller, not faster, and
    must be trained afterwards.
    """

    name = "share"
    not_after = ("share", "share_part")

    groups: int = 1  # it divides the number of layers

    def __post_init__(self) -> None:
        _check_groups(self.groups)


@dataclass(frozen=True)
class SharePart(CompressionSettings):
    """Sharing of attention parameters alone, or of feed-forward parameters alone, in groups of consecutive layers.

    Each group takes that part of its first layer. The model keeps its class, and training keeps equal layers equal.
    An ONNX file stores equal matrices once, so it is smaller, not faster.
    """

    name = "share_part"
    not_after = ("share", "share_part")

    part: SharedPart = "attention"
    groups: int = 1  # it divides the number of layers

    def __post_init__(self) -> None:
        _check_groups(self.groups)
        check_choice("part", self.part, SharedPart)


def _check_groups(groups: int) -> None:
    if groups < 1:
        raise InputError(f"groups is {groups}; it must be at least 1")


@dataclass(frozen=True)
class Sparse(CompressionSettings):
    """Single weights of the encoder's dense layers become zero. The model is smaller when packed, not faster.

    "sparsegpt" (Frantar and Alistarh, arXiv 2301.00774) removes the weights that change the outputs least, and adjusts
    the others. "wanda" (Sun et al., arXiv 2306.11695) removes the smallest products of weight and input norm,
    "magnitude" the smallest weights.
    """

    name = "sparse"
    not_after = ("low_rank", "share_part", "quantize")

    share: float = 0.5  # share of the weights of each dense matrix that become zero; 0: only keep zeros as they are
    pattern: str | None = None  # N:M, such as 2:4: N of each M consecutive inputs of an output stay; replaces `share`
    criterion: Criterion = "sparsegpt"
    rows: int = 512  # number of training rows on which inputs are measured

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, Criterion)
        if not 0 <= self.share < 1:
            raise InputError(f"share is {self.share}; it must be in [0, 1): the share of the weights that become zero")
        if self.rows < 1:
            raise InputError(f"rows is {self.rows}; it must be at least 1")
        if self.pattern is None:
            return
        kept, size = self.group
        if not 0 < kept < size:
            raise InputError(f"pattern is {self.pattern!r}; give N:M with 0 < N < M, for example 2:4: N of M stay")
        if self.share != Sparse.share:
            raise InputError(f"share is {self.share} and pattern {self.pattern!r}: give one of the two")

    @property
    def group(self) -> tuple[int, int]:
        """N and M of the pattern; (0, 0) if there is no pattern or it is malformed."""
        parts = re.fullmatch("([0-9]{1,4}):([0-9]{1,4})", self.pattern or "")
        return (int(parts[1]), int(parts[2])) if parts else (0, 0)


@dataclass(frozen=True)
class Movement(CompressionSettings):
    """Movement pruning (Sanh et al., arXiv 2005.07683): the single weights that the first stage moves towards zero
    become zero. It needs many steps, and is meant for large shares; `Sparse` needs no training.

    Weights that are already zero count towards the share.
    """

    name = "movement"
    not_after = ("gradual_prune", "low_rank", "share_part", "movement", "quantize")
    min_steps = 10

    share: float = 0.5  # share of the weights of each dense matrix that become zero, on a cubic schedule
    until: float = 0.7  # the share is reached after this part of the first stage's steps; then the zeros are fixed

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}; it must be between 0 and 1: the share that becomes zero")
        if not 0 < self.until <= 0.9:
            raise InputError(f"until is {self.until}; it must be greater than 0, and at most 0.9")
