"""An experiment: everything that determines the result of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from tinybert_jax.errors import InputError, check_choice, check_seed
from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.settings.choices import FROM_LAYERS, MIN_LENGTH, ComputeDtype, Preset, Start, student_shape
from tinybert_jax.settings.compression import CompressionSettings
from tinybert_jax.settings.objectives import LayerMap
from tinybert_jax.settings.paths import expand_paths
from tinybert_jax.settings.sources import CORPUS, CorpusSource, DataSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.teachers import AnyTeacher


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run's result, except the data itself and the number of devices."""

    task: str  # a row of the task table; CORPUS for general distillation and masked-LM training
    source: DataSource | CorpusSource
    model: str  # what is trained: a Hugging Face directory, a hub id, or (with a teacher) a student preset or size
    stages: tuple[Stage, ...]
    teacher: AnyTeacher | None = None  # a Hugging Face directory, a hub id, a file, a function, or an ensemble
    preset: Preset = "default"
    layer_map: LayerMap = "uniform"
    start: Start = "auto"  # where a student preset or size starts; "auto": `students.start.auto_start`
    augmented: str | None = None  # a directory that `tinybert augment` wrote; stages also train on its variants
    max_length: int = 128  # tokens per row
    compute_dtype: ComputeDtype = "float32"
    remat: bool = False  # recompute activations in the backward pass: less memory, a third more work
    checkpoint_every: int = 500  # steps; a checkpoint is also written at every evaluation and after a stop signal
    teacher_cache_gb: float = 20.0  # disk space for the teacher's outputs, if rows are read more than once
    seed: int = 0
    data_seed: int | None = None  # seed for the order of the rows, masking and augmentation; default: `seed`

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def compression(self) -> tuple[CompressionSettings, ...]:
        """The compression methods of all stages, in the order in which they are applied."""
        return tuple(method for stage in self.stages for method in stage.compression)

    @property
    def distils(self) -> bool:
        """Whether a stage learns from the teacher."""
        return any(stage.objective.distils for stage in self.stages)

    @property
    def matches_tokens(self) -> bool:
        """Whether a stage compares student and teacher position by position, layer by layer."""
        return any(stage.objective.matches_tokens for stage in self.stages)

    @property
    def masks_tokens(self) -> bool:
        """Whether a stage predicts masked tokens of a corpus."""
        return any(stage.objective.masked_share > 0 for stage in self.stages)

    @property
    def drops_token_types(self) -> bool:
        """Whether a student that has no parameters yet is made without token types."""
        return any(stage.objective.drops_token_types for stage in self.stages)

    @property
    def vector_width(self) -> int | None:
        """The width to which the teacher's vectors are projected; None: they are not projected."""
        return next((stage.objective.vector_width for stage in self.stages if stage.objective.learns_vectors), None)

    @property
    def trains_head(self) -> bool:
        """Whether a stage trains the task's head, so the model can be scored."""
        return any(stage.objective.trains_head for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values. Objectives and methods get an entry "name"."""
        named = None if self.teacher is None else str(self.teacher)  # asdict would copy a function and its closure
        fields = dataclasses.asdict(dataclasses.replace(self, teacher=named))
        fields["teacher"] = self.teacher if isinstance(self.teacher, str | None) else self.teacher.described()
        for stage, described in zip(self.stages, fields["stages"], strict=True):
            described["objective"] = {"name": stage.objective.name} | described["objective"]
            for method, numbers in zip(stage.compression, described["compression"], strict=True):
                numbers["name"] = method.name
        return fields

    def __post_init__(self) -> None:
        expand_paths(self, "model", "teacher", "augmented")
        check_choice("preset", self.preset, Preset)
        check_choice("compute_dtype", self.compute_dtype, ComputeDtype)
        if isinstance(self.layer_map, str):
            check_choice("layer_map", self.layer_map, get_args(LayerMap)[0])
        if not self.stages:
            raise InputError("an experiment needs at least one stage")
        check_choice("start", self.start, Start)
        corpus = isinstance(self.source, CorpusSource)
        if corpus != (self.task == CORPUS):
            raise InputError(f"task {self.task!r} and a {type(self.source).__name__} do not go together")
        for stage in self.stages:
            if not (stage.objective.on_corpus if corpus else stage.objective.on_tasks):
                raise InputError(f"stage {stage.objective.name!r} is not one of task {self.task!r}")
        if isinstance(self.source, DataSource) and (option := self.source.adding_option):
            if not all(stage.objective.distils for stage in self.stages):
                raise InputError(f"rows without labels are for stages with a teacher alone: leave out {option}")
            if self.augmented is not None:
                raise InputError(f"rows without labels have no variants: leave out --augmented, or {option}")
            if not self.source.has_labelled and any(stage.objective.asks_for_labels for stage in self.stages):
                raise InputError(
                    "no training row has a label, and hard_weight is that of labels: leave out --hard-weight, or add"
                    " --train FILE"
                )
        if any(s.objective.vector_width != self.vector_width for s in self.stages if s.objective.learns_vectors):
            raise InputError("stages have unlike embedding_width: the teacher's vectors have one; give all the same")
        shape = student_shape(self.model)
        if self.start in FROM_LAYERS and shape is None:
            raise InputError(
                f"start {self.start!r} is for a student preset or size; {self.model!r} brings its own parameters"
            )
        if self.distils and self.teacher is None:
            raise InputError("what is distilled needs a teacher: give --teacher DIR")
        if shape is not None and self.teacher is None:
            raise InputError(
                f"student {self.model!r} takes its vocabulary from a teacher: give --teacher DIR, or a"
                " directory as --student"
            )
        starts_from_layers = self.start in FROM_LAYERS or (
            self.start == "auto" and shape is not None and self.distils and PRESETS[self.preset].start_from_teacher
        )
        reads_layer_map = any(stage.objective.reads_layer_map for stage in self.stages)
        if self.layer_map != "uniform" and not (reads_layer_map or starts_from_layers):
            raise InputError(f"layer_map is {self.layer_map!r}, but no stage and no start reads it: leave it out")
        if self.max_length < MIN_LENGTH:
            raise InputError(f"max_length is {self.max_length}; it must be at least {MIN_LENGTH}")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every is {self.checkpoint_every}; it must be at least 1")
        if self.teacher_cache_gb != Experiment.teacher_cache_gb and not self.distils:
            raise InputError(f"teacher_cache_gb is {self.teacher_cache_gb}, but no stage has a teacher: leave it out")
        if not self.teacher_cache_gb >= 0:
            raise InputError(f"teacher_cache_gb is {self.teacher_cache_gb}; it must not be negative")
        check_seed("seed", self.seed)
        check_seed("data_seed", self.order_seed)
