"""The options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import AXES, ComputeDtype, Criterion, GradualRule, SharedPart
from tinybert_jax.settings.compression import (
    CompressionSettings,
    GradualPrune,
    LowRank,
    Movement,
    Prune,
    Quantize,
    Share,
    SharePart,
    Sparse,
    Vocabulary,
)
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import TASKS

Source = Annotated[DataSource, tyro.conf.OmitArgPrefixes]
TaskName = Annotated[str, tyro.conf.arg(metavar="TASK", help=f"one of {', '.join(TASKS)}")]
Moving = Annotated[str | None, tyro.conf.arg(metavar="NUMBER|START:END")]  # see `settings.numbers.parse_number`


@dataclass(frozen=True)
class RunFlags:
    """The options of every training run."""

    out: Path  # directory of the run. The model is written to OUT/student
    batch_size: int = 32  # rows per step, over all devices together
    accumulation_steps: int = 1  # compute each batch in this many parts, one after the other, to save memory
    remat: bool = False  # recompute activations in the backward pass, to save memory. It takes about a third more work
    # tokens per row. Longer rows are truncated, or split for squad and ner. Default: the task's; 128 in pretrain
    max_length: int | None = None
    checkpoint_every: int = 500  # steps between checkpoints, from which --resume continues
    compute_dtype: ComputeDtype = "float32"  # dtype of activations; parameters are float32
    seed: int = 0  # seed for initial values, dropout, the order of the rows, and the variants of augmented rows
    # number of models that are trained together, with the seeds SEED, SEED + 1, ... A teacher is computed once for
    # all; model I is in OUT/memberI
    population: int = 1
    resume: bool = False  # continue the run in --out, with the same options

    @property
    def stage(self) -> dict[str, Any]:
        """The options that each stage takes."""
        return {"batch_size": self.batch_size, "accumulation_steps": self.accumulation_steps}


@dataclass(frozen=True)
class Devices:
    """The devices and processes of a run."""

    # sizes of the mesh axes data, fsdp, model and member, such as data=4,fsdp=2 (docs/scale.md). Default: axis data
    # alone, over as many devices as divide every batch evenly
    mesh: str | None = None
    # in a multi-process run: HOST:PORT of process 0, or auto to take it from the cluster's environment
    coordinator: str | None = None
    # in a multi-process run: number of processes. Not needed on SLURM, Open MPI and TPU pods
    num_processes: int | None = None
    # in a multi-process run: index of this process, from 0. Not needed on SLURM, Open MPI and TPU pods
    process_id: int | None = None
    # on GPUs: ask XLA for bitwise repeatable runs, which are slower
    deterministic: bool = False


@dataclass(frozen=True)
class Methods:
    """The compression methods, and what each leaves of the model."""

    # remove attention heads and feed-forward units; the number is the share of the encoder's multiply-adds that is
    # left, such as 0.5. Importance is measured with the task's labels, which takes about a minute for 20 million
    # parameters on 2 cores
    prune: float | None = None
    # with --prune: remove the same number of heads and units from every layer. It costs some accuracy, but gives JAX
    # the whole speed-up too; without it, layers get different sizes, and only ONNX has the whole speed-up
    uniform: bool = False
    # with --prune, in `distill`: remove heads and units during the first 70 % of the first stage, instead of before
    # it. fisher: every 20 steps, those with the least importance; l0: trained random gates decide, as in CoFi, which
    # needs long runs
    gradual: GradualRule | None = None
    # share parameters between consecutive layers, in this number of groups, as in ALBERT. The model is smaller, not
    # faster, and must be trained afterwards
    share: int | None = None
    # with --share: share only this part of the layers. The model keeps its class, and only its ONNX file is smaller
    share_part: SharedPart | None = None
    # replace the layers' dense matrices by products of two narrow ones; the number is the share of their parameters
    # that is left, such as 0.6. The model is smaller and faster
    low_rank: float | None = None
    low_rank_words: float | None = None  # the same for the word table. The model is smaller, not faster
    # set single weights of the layers' dense matrices to zero; the number is the share of each matrix that becomes
    # zero. The model is smaller when packed, not faster. In `distill`, zeros stay zeros; use 0 if --student is sparse
    # already
    sparse: float | None = None
    # with --sparse 0.5: instead of a share, keep N of each M consecutive inputs of an output; N:M, for example 2:4
    pattern: str | None = None
    # with --sparse: which weights become zero. sparsegpt: those that change the outputs least, and the others are
    # adjusted; wanda: the smallest weight times input; magnitude: the smallest; movement, in `distill`: those that the
    # first stage moves towards zero, in the first 70 % of its steps. Default: sparsegpt
    criterion: Literal[Criterion, "movement"] | None = None
    # multiply in 8 bits, with weights of 8 bits (int8) or 4 (int4). `distill` trains with values rounded in this way
    quantize: Literal["int8", "int4"] | None = None

    def settings(self, vocabulary: Vocabulary | None = None) -> tuple[CompressionSettings, ...]:
        """The methods that were asked for, in the order in which they act.

        Raises:
            InputError: an option stands without its method, two do not go together, or a number is out of range.
        """
        for option in ("uniform", "gradual"):
            if self.prune is None and getattr(self, option):
                raise InputError(f"--{option} is an option of --prune: give both, or leave it out")
        if self.share is None and self.share_part:
            raise InputError("--share-part is an option of --share: give both, or leave it out")
        for option in ("pattern", "criterion"):
            if self.sparse is None and getattr(self, option):
                raise InputError(f"--{option} is an option of --sparse: give both, or leave it out")
        if self.uniform and self.gradual:
            raise InputError(
                "--gradual leaves layers of unlike sizes, and --uniform asks for like ones: leave one out"
            )
        ranked = self.low_rank is not None or self.low_rank_words is not None
        chosen = (
            None if self.prune is None or self.gradual else Prune(self.prune, self.uniform),
            GradualPrune(self.prune, self.gradual) if self.prune is not None and self.gradual else None,
            None if self.share is None or self.share_part else Share(self.share),
            LowRank(self.low_rank, self.low_rank_words) if ranked else None,
            None if self.sparse is None else self._sparse(self.sparse),
            SharePart(self.share_part, self.share) if self.share is not None and self.share_part else None,
            vocabulary,
            None if self.quantize is None else Quantize(int(self.quantize.removeprefix("int"))),
        )
        return tuple(method for method in chosen if method is not None)

    def _sparse(self, share: float) -> CompressionSettings:
        if self.criterion == "movement":
            if self.pattern:
                raise InputError("--criterion movement has no --pattern: leave one out")
            return Movement(share)
        return Sparse(share, self.pattern, self.criterion or Sparse.criterion)


RunOptions = Annotated[RunFlags, tyro.conf.OmitArgPrefixes]
MethodOptions = Annotated[Methods, tyro.conf.OmitArgPrefixes]
DeviceOptions = Annotated[Devices, tyro.conf.OmitArgPrefixes]


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of a device mesh's axes, as a command line gives them.

    Raises:
        InputError: an axis is unknown or named twice, or a size is no positive integer.

    >>> parse_mesh("data=4,model=2")
    {'data': 4, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for item in text.split(","):
        axis, _, size = item.partition("=")
        if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(f"--mesh {text}: give sizes of {', '.join(AXES)}, for example data=4,model=2")
        sizes[axis] = int(size)
    return sizes
