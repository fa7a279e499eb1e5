"""What a run does: where its rows come from, its stages, and all else that determines its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from tinybert_jax.config import (
    MIN_LENGTH,
    STUDENTS,
    ComputeDtype,
    Hyper,
    InputError,
    LayerMap,
    ObjectiveName,
    Preset,
    ScheduleName,
    Start,
    check_choice,
    check_seed,
)


@dataclass(frozen=True)
class DataSource:
    """Where rows come from: one of a directory in the GLUE layout, files of the user's own, or a prepared TFDS set.

    Raises:
        InputError: none, or more than one, of the three is given; there are more than two text columns.
    """

    data: str | None = None  # directory with the task's files: train.tsv, dev.tsv (and test.tsv)
    train: str | None = None  # .tsv, .csv or .jsonl; for squad .json; for ner a CoNLL file
    dev: str | None = None  # likewise; it selects the best checkpoint and is scored
    test: str | None = None  # likewise: what `evaluate --split test` predicts
    tfds: str | None = None  # name of a prepared TensorFlow Datasets set, for example glue/sst2
    text_columns: tuple[str, ...] = ()  # one or two; default: the task's
    label_column: str | None = None  # default: the task's

    @property
    def names_columns(self) -> bool:
        """Whether a column is named, so that files have a header."""
        return bool(self.text_columns) or self.label_column is not None

    def __post_init__(self) -> None:
        files = any(file is not None for file in (self.train, self.dev, self.test))
        if sum([self.data is not None, files, self.tfds is not None]) != 1:
            raise InputError("give the data in one way: --data DIR, or --train FILE --dev FILE, or --tfds NAME")
        if len(self.text_columns) > 2:
            raise InputError(f"text_columns are {', '.join(self.text_columns)}; BERT reads one text, or a pair")


@dataclass(frozen=True)
class CorpusSource:
    """Raw text for general distillation and masked-LM training, and how it is cut into sequences.

    Raises:
        InputError: no file is given, a probability lies outside [0, 1], or `processes` is below 1.
    """

    files: tuple[str, ...]  # UTF-8 text, .gz too; or one directory of shards that were built before
    one_document_per_line: bool = False  # else documents are separated by blank lines
    pairs: bool = False  # half of the sequences are A and its continuation B, half A and a random B, as BERT's were
    short_sequence_probability: float = 0.1  # of a sequence that is cut to a random shorter length
    processes: int = 1  # that build the shards; the shards do not depend on it

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("a corpus needs at least one text file: give --corpus FILE")
        if not 0 <= self.short_sequence_probability <= 1:
            raise InputError(f"short_sequence_probability is {self.short_sequence_probability}; it must be in [0, 1]")
        if self.processes < 1:
            raise InputError(f"processes is {self.processes}; it must be at least 1")


@dataclass(frozen=True)
class Stage:
    """One call of the training loop: what it minimises, for how long, how fast."""

    objective: ObjectiveName
    epochs: int = 3
    max_steps: int | None = None  # end the stage after this many steps, should that come before `epochs`
    batch_size: int = 32
    learning_rate: float = 5e-5
    schedule: ScheduleName = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    temperature: float = 1.0
    embedding_weight: float = 1.0
    attention_weight: float = 1.0
    hidden_weight: float = 1.0
    masking_probability: float = 0.15  # of a token in `masked_lm`; in the other stages nothing is masked
    accumulation_steps: int = 1  # parts that a batch is computed in, one after the other, to save memory
    evaluate_every: int | None = None  # steps; None: after every epoch

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ObjectiveName)
        check_choice("schedule", self.schedule, ScheduleName)
        optional = [name for name in ("max_steps", "evaluate_every") if getattr(self, name) is not None]
        for name in ("epochs", "batch_size", "accumulation_steps", *optional):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}; it must be a whole number, at least 1")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is not either
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and greater than 0")
        for name in ("weight_decay", "embedding_weight", "attention_weight", "hidden_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"accumulation_steps {self.accumulation_steps} does not divide the batch size {self.batch_size}"
            )
        if not 0 < self.masking_probability <= 0.2:  # the decoder runs on 1 / MASKED_SHARE of the positions
            raise InputError(f"masking_probability is {self.masking_probability}; it must be above 0, and at most 0.2")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher."""
        return self.objective in ("transformer", "prediction")

    @property
    def hyper(self) -> Hyper:
        return Hyper(
            self.learning_rate, self.temperature, self.embedding_weight, self.attention_weight, self.hidden_weight
        )


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run's result, beside the data itself and the device count."""

    task: str  # a row of the task table; "corpus" for general distillation and masked-LM training
    source: DataSource | CorpusSource
    model: str  # what is trained: a Hugging Face directory, a hub id, or (with a teacher) a student preset
    stages: tuple[Stage, ...]
    teacher: str | None = None  # a Hugging Face directory or hub id
    preset: Preset = "default"
    layer_map: LayerMap = "uniform"
    start: Start = "random"  # where a student preset starts
    augmented: str | None = None  # a directory that `tinybert augment` wrote; its variants are trained on
    max_length: int = 128
    compute_dtype: ComputeDtype = "float32"
    remat: bool = False  # compute activations again in the backward pass: less memory, a third more work
    checkpoint_every: int = 500  # steps; a checkpoint is also written at every evaluation and on SIGTERM and Ctrl-C
    teacher_cache_gb: float = 20.0  # of disk for the teacher's outputs, where rows are read more than once
    seed: int = 0
    data_seed: int | None = None  # of the order of the rows, masking and augmentation; default: `seed`

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, Preset)
        check_choice("compute_dtype", self.compute_dtype, ComputeDtype)
        if isinstance(self.layer_map, str):
            check_choice("layer_map", self.layer_map, get_args(LayerMap)[0])
        if not self.stages:
            raise InputError("an experiment needs at least one stage")
        check_choice("start", self.start, Start)
        corpus = isinstance(self.source, CorpusSource)
        if corpus != (self.task == "corpus"):
            raise InputError(f"task {self.task!r} and a {type(self.source).__name__} do not go together")
        allowed = {"masked_lm", "transformer"} if corpus else {"supervised", "transformer", "prediction"}
        for stage in self.stages:
            if stage.objective not in allowed:
                raise InputError(f"stage {stage.objective!r} is not one of task {self.task!r}")
        if self.start != "random" and self.model not in STUDENTS:
            raise InputError(f"start {self.start!r} is for a student preset; {self.model!r} brings its own parameters")
        if any(stage.distils for stage in self.stages) and self.teacher is None:
            raise InputError("what is distilled needs a teacher: give --teacher DIR")
        if self.model in STUDENTS and self.teacher is None:
            raise InputError(
                f"student preset {self.model!r} takes its vocabulary from a teacher: give --teacher DIR, or a"
                " directory as --student"
            )
        if self.max_length < MIN_LENGTH:
            raise InputError(f"max_length is {self.max_length}; it must be at least {MIN_LENGTH}")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every is {self.checkpoint_every}; it must be at least 1")
        if not self.teacher_cache_gb >= 0:
            raise InputError(f"teacher_cache_gb is {self.teacher_cache_gb}; it must not be negative")
        check_seed("seed", self.seed)
        check_seed("data_seed", self.order_seed)
