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
Moving = Annotated[str, tyro.conf.arg(metavar="NUMBER|START:END")]  # see `settings.numbers.parse_number`


@dataclass(frozen=True)
class RunFlags:
    """The options of every training run."""

    out: Path  # directory of the run; the model is written to OUT/student
    batch_size: int = 32  # rows per step, over all devices together
    accumulation_steps: int = 1  # compute each batch in this many parts, one after the other, to save memory
    remat: bool = False  # recompute activations in the backward pass: less memory, more work
    max_length: int | None = None  # tokens per row; longer rows are cut; default: the task's; 128 in pretrain
    checkpoint_every: int = 500  # steps between checkpoints
    compute_dtype: ComputeDtype = "float32"  # dtype of activations; parameters are float32
    seed: int = 0  # decides initial values, dropout, the order of the rows, and variants
    population: int = 1  # number of models, with seeds SEED, SEED + 1, ..., trained together behind one teacher
    resume: bool = False  # continue the run in --out

    @property
    def stage(self) -> dict[str, Any]:
        """The options that each stage takes."""
        return {"batch_size": self.batch_size, "accumulation_steps": self.accumulation_steps}


@dataclass(frozen=True)
class Devices:
    """The devices and processes of a run."""

    mesh: str | None = None  # e.g. data=4,fsdp=2; default: all devices along data that divide every batch evenly
    coordinator: str | None = None  # HOST:PORT of process 0, in a run of several; auto: as the cluster says
    num_processes: int | None = None  # number of processes; SLURM, Open MPI and TPU pods say it themselves
    process_id: int | None = None  # number of this process, from 0; SLURM, Open MPI and TPU pods say it
    deterministic: bool = False  # on GPUs: the same bits in every run, but slower; CPUs and TPUs always repeat


@dataclass(frozen=True)
class Methods:
    """The compression methods, each by what it leaves."""

    # remove attention heads and feed-forward units; the number is the share of the encoder's multiply-adds that is
    # left. The task's labels say what matters. Half costs about a minute for 20 million parameters on 2 cores
    prune: float | None = None
    # prune as many heads and units in every layer: less exact, but JAX, too, runs it faster; without this, only ONNX
    # is faster by all that was removed
    uniform: bool = False
    # with --prune: remove them in the first 70 % of a stage's steps, instead of before it. fisher: those that the loss
    # depends on least, a few every 20 steps; l0: those whose random gates close, under a penalty on open ones, as in
    # CoFi, for long runs
    gradual: GradualRule | None = None
    # let consecutive layers share their parameters, in so many groups, as an ALBERT: smaller, not faster, and worse
    # until it is trained
    share: int | None = None
    # with --share: share that part of the layers alone. The model's class stays, and an ONNX file stores once what is
    # shared
    share_part: SharedPart | None = None
    # make the layers' matrices products of two narrow ones; the number is the share of their parameters that is left
    low_rank: float | None = None
    low_rank_words: float | None = None  # the same for the word table: smaller, not faster
    # make single weights of the layers' matrices zero; the number is the share of each matrix that becomes zero. The
    # model is smaller when it is packed, not faster. In `distill`, zeros stay zeros; 0: those of --student
    sparse: float | None = None
    # with --sparse 0.5: instead of a share, all but N of each M consecutive inputs, given as N:M, for example 2:4
    pattern: str | None = None
    # with --sparse. sparsegpt: what costs the outputs least becomes zero, and the rest makes up for it; wanda: weight
    # times input; magnitude: the weight alone; movement, in `distill`: what the first stage moves towards zero becomes
    # zero in the first 70 % of its steps. Default: sparsegpt
    criterion: Literal[Criterion, "movement"] | None = None
    # multiply in 8 bits, with weights of 8 or 4; in training, values are rounded as they will be
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
