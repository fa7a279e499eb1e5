"""What makes a model smaller: a dataclass for each compression method, with the numbers that only it reads."""

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
    min_steps: ClassVar[int] = 0  # of the stage in which it acts; 0: it acts before
    not_after: ClassVar[tuple[str, ...]] = ()  # methods that it cannot follow
    keeps_shapes: ClassVar[bool] = False  # parameters have the same shapes after it


@dataclass(frozen=True)
class Prune(CompressionSettings):
    """Structured pruning: whole attention heads and feed-forward units are removed, without training.

    Importance is the diagonal of the Fisher information (Kwon et al., arXiv 2204.09656). What is left of the output
    projections is fitted anew to the sums that the whole model has before each LayerNorm, by least squares.
    """

    name = "prune"
    not_after = ("gradual_prune", "low_rank", "share", "share_part", "sparse", "movement", "quantize")
    reads_head = True

    macs: float = 0.5  # share of the encoder's multiply-adds that is left
    uniform: bool = False  # every layer keeps as many heads and units: also JAX runs it faster
    rounds: int = 3  # in which the share is reached
    rows: int = 1024  # by which importance is measured

    def __post_init__(self) -> None:
        if not 0 < self.macs < 1:
            raise InputError(f"macs is {self.macs}; it must be between 0 and 1: the share that is left")
        if self.rounds < 1 or self.rows < 1:
            raise InputError(f"rounds is {self.rounds} and rows {self.rows}; they must be at least 1")


@dataclass(frozen=True)
class GradualPrune(CompressionSettings):
    """Structured pruning while the first stage trains: whole attention heads and feed-forward units are removed.

    "fisher": every 20 steps the least important are removed, by a cubic schedule (Zhu and Gupta, arXiv 1710.01878).
    Importance is a running mean of the squared gradients of masks, by the loss of the stage.
    "l0": each has a random gate, whose chance to be open is trained (Louizos et al., arXiv 1712.01312), towards a
    target that falls in a straight line (CoFi, Xia et al., arXiv 2204.00408).
    """

    name = "gradual_prune"
    not_after = ("low_rank", "share", "share_part", "sparse", "movement", "quantize")
    min_steps = 10

    macs: float = 0.5  # share of the encoder's multiply-adds that is left
    by: GradualRule = "fisher"
    until: float = 0.7  # share of the first stage's steps in which the share is reached; then nothing more is removed

    def __post_init__(self) -> None:
        check_choice("by", self.by, GradualRule)
        if not 0 < self.macs < 1:
            raise InputError(f"macs is {self.macs}; it must be between 0 and 1: the share that is left")
        if not 0 < self.until <= 0.9:
            raise InputError(f"until is {self.until}; it must be greater than 0, and at most 0.9")


@dataclass(frozen=True)
class LowRank(CompressionSettings):
    """Low-rank factorisation: matrices become products of two narrow ones, which change the outputs on the training
    rows least (whitened, as in SVD-LLM, arXiv 2403.07378), and the word table a product in which frequent words count
    more.
    """

    name = "low_rank"
    not_after = ("low_rank", "share_part", "sparse", "movement", "quantize")

    dense: float | None = 0.6  # share of the parameters of all dense matrices in the layers; None: they stay
    words: float | None = None  # share of those of the word table; None: it stays
    rows: int = 512  # by which the inputs are measured

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
    """Dense layers that multiply in int8: weights with a scale for each output, inputs with one for each token.

    In training, values are rounded as they will be, and gradients pass through (quantization-aware training).
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
    """A smaller vocabulary: the pieces that the training rows use, and those of more texts.

    All special tokens and single characters stay, so that words whose pieces are gone are cut into smaller ones.
    """

    name = "vocabulary"
    not_after = ("vocabulary",)

    texts: tuple[str, ...] = ()  # files with a text a line


@dataclass(frozen=True)
class Share(CompressionSettings):
    """Parameter sharing in groups of consecutive layers (ALBERT, Lan et al., arXiv 1909.11942).

    A BERT becomes an ALBERT. Each group has the parameters of its first layer. The model is smaller, not faster, and
    has to be trained.
    """

    name = "share"
    not_after = ("share", "share_part")

    groups: int = 1  # it divides the number of layers

    def __post_init__(self) -> None:
        _check_groups(self.groups)


@dataclass(frozen=True)
class SharePart(CompressionSettings):
    """Parameter sharing of attention alone, or of feed-forward networks alone, in groups of consecutive layers.

    Each group has that part of its first layer. The model's class stays, and stages keep equal layers equal. An ONNX
    file stores them once: it is smaller, not faster.
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

    "sparsegpt" (Frantar and Alistarh, arXiv 2301.00774) removes what costs the outputs least, and changes what is left
    to make up for it; "wanda" (Sun et al., arXiv 2306.11695) goes by weight times input, "magnitude" by the weight.
    """

    name = "sparse"
    not_after = ("low_rank", "share_part", "quantize")

    share: float = 0.5  # of the weights of each dense matrix that become zero; 0: those that are zero stay so
    pattern: str | None = None  # N:M, as 2:4: N of each M consecutive inputs of an output stay; it replaces `share`
    criterion: Criterion = "sparsegpt"
    rows: int = 512  # whose inputs of the dense layers are measured

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
        """N and M of the pattern; (0, 0) where there is none, or it is no such pattern."""
        parts = re.fullmatch("([0-9]{1,4}):([0-9]{1,4})", self.pattern or "")
        return (int(parts[1]), int(parts[2])) if parts else (0, 0)


@dataclass(frozen=True)
class Movement(CompressionSettings):
    """Movement pruning (Sanh et al., arXiv 2005.07683): while the first stage trains, the single weights become zero
    that training moves towards zero. It is for many steps and large shares; `Sparse` needs no training.

    Zeros that are there count towards the share.
    """

    name = "movement"
    not_after = ("gradual_prune", "low_rank", "share_part", "movement", "quantize")
    min_steps = 10

    share: float = 0.5  # of the weights of each dense matrix that become zero, by a cubic schedule
    until: float = 0.7  # share of the first stage's steps in which the share is reached; then the zeros are fixed

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}; it must be between 0 and 1: the share that becomes zero")
        if not 0 < self.until <= 0.9:
            raise InputError(f"until is {self.until}; it must be greater than 0, and at most 0.9")
