"""The options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import AXES, ComputeDtype
from tinybert_jax.settings.compression import CompressionSettings, Criterion, Prune, Share, Sparse
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


RunOptions = Annotated[RunFlags, tyro.conf.OmitArgPrefixes]
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


def methods_of(
    prune: float | None,
    uniform: bool,
    share: int | None,
    sparse: float | None = None,
    pattern: str | None = None,
    criterion: Criterion | None = None,
) -> tuple[CompressionSettings, ...]:
    """The compression methods that the options of these names ask for, in the order in which they act.

    Raises:
        InputError: an option of a method stands alone, or a number is out of its range.
    """
    if prune is None and uniform:
        raise InputError("--uniform is an option of --prune: give both, or leave it out")
    if sparse is None and (pattern is not None or criterion is not None):
        raise InputError("--pattern and --criterion are options of --sparse: give it too, or leave them out")
    methods: list[CompressionSettings] = [] if prune is None else [Prune(prune, uniform)]
    if share is not None:
        methods.append(Share(share))
    if sparse is not None:
        methods.append(Sparse(sparse, pattern, Sparse.criterion if criterion is None else criterion))
    return tuple(methods)
