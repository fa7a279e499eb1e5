"""Everything a run reads, loaded and checked before the first compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tinybert_jax.batch import Examples, Params
from tinybert_jax.data.batches import steps_per_epoch, train_batches
from tinybert_jax.data.corpus.corpus import Corpus
from tinybert_jax.data.queries import Passages
from tinybert_jax.devices import processes
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig, Compute
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.tokenizer import load_tokenizer, prompt_of, put_prompt
from tinybert_jax.models.fit import check_positions
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import init_params, resize_vocabulary
from tinybert_jax.objectives.projections import PROJECTIONS
from tinybert_jax.settings.choices import STUDENTS, NamedStart, student_shape
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.students import start
from tinybert_jax.students.presets import student_config
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.table import load_teacher
from tinybert_jax.teachers.teacher import Teacher, TeacherModel, with_pieces_of
from tinybert_jax.training.material import Lesson, Student, buckets, of_corpus, of_task
from tinybert_jax.training.population import check_members

# The word table is padded to a multiple of this on every mesh, so that a checkpoint fits all meshes.
VOCAB_MULTIPLE = 128
SAMPLE_BATCHES, SAMPLE_BATCH_SIZE = 128, 32  # largest sample for the spectral start
OF_MODEL = ("loaded", "keep_head", "fingerprints")  # fields of `Inputs` that depend on the model's parameters


@dataclass(frozen=True, eq=False)
class Inputs:
    """The model, teacher and rows of a run. Parameters are on the host until they are placed on devices."""

    head: str  # a row of `models.heads.HEADS`
    config: BertConfig  # of the model that is trained, with the task's labels
    compute: Compute
    loaded: Params | None  # the parameters in the model's files; None for a student preset or size
    keep_head: bool  # the loaded head fits the task
    tokenizer: Any
    train: Examples
    dev: dict[str, Split]  # dev sets by name; the first one chooses checkpoints; empty for a corpus
    buckets: tuple[int, ...]
    teacher: Teacher | None
    lessons: tuple[Lesson, ...]  # one for each teacher or member of an ensemble; empty for a corpus
    fingerprints: dict[str, str]  # of the rows, and of the models' files
    passages: Passages | None = None  # of the training rows, in tasks with queries
    known_dev_rows: int = 0  # rows of the dev sets whose texts are those of training rows

    @property
    def teacher_model(self) -> TeacherModel | None:
        """The model whose layers teach; None if there is none."""
        return None if self.layer_teacher is None else self.layer_teacher.model

    @property
    def layer_teacher(self) -> Teacher | None:
        """The teacher whose layers teach: the single one, or a member of the ensemble; None if none has layers."""
        if self.teacher is None or self.teacher.model is None:
            return None
        return self.teacher if self.teacher.layer_member is None else self.lessons[self.teacher.layer_member].teacher

    @property
    def knows_outputs(self) -> bool:
        """Whether the teacher's outputs are computed before training, so that no model runs for them in the step."""
        return self.teacher is not None and not self.teacher.runs_alone

    def examples(self, stage: Stage) -> Examples:
        """The training rows of a stage, with masking if the stage predicts masked tokens."""
        if not (share := stage.objective.masked_share):
            return self.train
        assert isinstance(self.train, Corpus), "Experiment allows an objective that masks tokens on a corpus only"
        return dataclasses.replace(self.train, masking_probability=share)


def load_inputs(experiment: Experiment) -> Inputs:
    """Load teacher, model, tokenizer and rows of an experiment.

    Raises:
        InputError: something is missing, damaged, or does not fit the rest.
    """
    student, teacher = _models(experiment)
    check_positions(student.name, student.config, experiment.max_length)
    if isinstance(experiment.source, CorpusSource):
        material = of_corpus(experiment, experiment.source, student, teacher)
    else:
        material = of_task(experiment, experiment.source, student, teacher)
    prints = {"train": material.train.fingerprint}
    prints |= {name: split.tokens.fingerprint for name, split in material.dev.items()}
    if material.teacher is not None:
        prints["teacher"] = material.teacher.fingerprint
    if student.loaded is not None:
        prints["model"] = fingerprint(student.name)
    compute = Compute(experiment.compute_dtype, experiment.remat, VOCAB_MULTIPLE)
    lessons = tuple(
        dataclasses.replace(lesson, teacher=_padded(lesson.teacher, compute)) for lesson in material.lessons
    )
    teacher = material.teacher
    if teacher is not None and not teacher.members:
        teacher = lessons[0].teacher if lessons else _padded(teacher, compute)
    return Inputs(
        head=material.head,
        config=material.config,
        compute=compute,
        loaded=student.loaded,
        keep_head=material.keep_head,
        tokenizer=student.tokenizer,
        train=material.train,
        dev=material.dev,
        buckets=buckets(experiment, len(material.train)),
        teacher=teacher,
        lessons=lessons,
        fingerprints=prints,
        passages=material.passages,
        known_dev_rows=material.known_dev_rows,
    )


def _models(experiment: Experiment) -> tuple[Student, Teacher | None]:
    """Load the student, and the teacher if there is one, which gets the pieces of the student's vocabulary.

    Raises:
        InputError: one of them cannot be read, or a size has no teacher to take its vocabulary from.
    """
    teacher = None if experiment.teacher is None else load_teacher(experiment)
    model = None if teacher is None else teacher.model
    if student_shape(experiment.model) is not None:
        if model is None:
            raise InputError(
                f"{experiment.teacher}: brings no vocabulary, which student {experiment.model!r} needs: give a"
                " directory as --student"
            )
        config = student_config(experiment.model, model.config, token_types=not experiment.drops_token_types)
        start.check_start(experiment.start, config, model.config)
        return Student(experiment.model, config, None, model.tokenizer), teacher
    if experiment.model.startswith("tinybert-") and not Path(experiment.model).is_dir():
        raise InputError(
            f"unknown student preset {experiment.model!r}; known are {', '.join(STUDENTS)}; or give a size, as"
            " 6x384, or a directory"
        )
    config, loaded = load_hf(experiment.model)
    tokenizer = load_tokenizer(experiment.model, config)
    if teacher is not None:
        if config.embedding is None and model is not None:  # then texts get the teacher's prompt
            put_prompt(tokenizer, prompt_of(model.tokenizer))
        teacher = with_pieces_of(teacher, tokenizer)
    return Student(experiment.model, config, loaded, tokenizer), teacher


def _padded(teacher: Teacher, compute: Compute) -> Teacher:
    """The teacher with its vocabulary padded like the student's."""
    if (model := teacher.model) is None:
        return teacher
    params = resize_vocabulary(model.params, compute.vocab_rows(model.config))
    return dataclasses.replace(teacher, model=model._replace(params=params))


def load_population(experiments: Sequence[Experiment]) -> list[Inputs]:
    """The inputs of runs that train together. Shared inputs are loaded once.

    Raises:
        InputError: as `load_inputs`; or the experiments, their models or their rows do not fit together.
    """
    check_members(experiments)
    first = load_inputs(experiments[0])
    by_model = {experiments[0].model: first}
    for experiment in experiments[1:]:
        if experiment.model not in by_model:
            loaded = load_inputs(experiment)
            config = loaded.config
            if config.num_labels == first.config.num_labels == 1:  # in regression the label's name may differ
                config = dataclasses.replace(config, id2label=first.config.id2label)
            if config != first.config or loaded.fingerprints["train"] != first.fingerprints["train"]:
                raise InputError(
                    f"{experiment.model}: is of another shape or vocabulary than {experiments[0].model}; the members"
                    " of a population differ in parameters only"
                )
            by_model[experiment.model] = dataclasses.replace(
                first, **{name: getattr(loaded, name) for name in OF_MODEL}
            )
    return [by_model[experiment.model] for experiment in experiments]


def named_start(experiment: Experiment, inputs: Inputs) -> tuple[NamedStart, str]:
    """The start of the experiment's student, and the reason if it was "auto"."""
    if experiment.start != "auto":
        return experiment.start, ""
    if inputs.loaded is not None or inputs.teacher_model is None:
        return "random", ""  # not used: the model has parameters
    student, teacher = inputs.config, inputs.teacher_model.config
    return start.auto_start(student, teacher, experiment.preset, experiment.distils, int(inputs.train.lengths.sum()))


def initial_params(experiments: Sequence[Experiment], members: Sequence[Inputs]) -> list[Params]:
    """The initial parameters of each member, on the host. A start from the teacher is computed once for all."""
    from_teacher: dict[NamedStart, Params] = {}
    params = []
    for experiment, inputs in zip(experiments, members, strict=True):
        name, _ = named_start(experiment, inputs)
        if inputs.loaded is None and name not in from_teacher:
            from_teacher[name] = processes.tree_from_primary(_from_teacher(name, experiment, inputs))
        params.append(jax.device_get(_initial_params(experiment, inputs, from_teacher.get(name, {}))))
    return params


def _initial_params(experiment: Experiment, inputs: Inputs, from_teacher: Params) -> Params:
    """The parameters of the model or of the start, and random values for all others."""
    params = init_params(HEADS[inputs.head].model(inputs.config), jax.random.key(experiment.seed))
    params = {"encoder": params} if HEADS[inputs.head].key is None else params
    if inputs.loaded is not None:
        head_key = HEADS[inputs.head].key
        for name in ("encoder", *([head_key] if inputs.keep_head and head_key in params else [])):
            params[name] |= {key: value for key, value in inputs.loaded[name].items() if key in params[name]}
        params |= {name: inputs.loaded[name] for name in PROJECTIONS if name in inputs.loaded}
    else:
        params = start.start_params(params, from_teacher)
    return resize_vocabulary(params, inputs.compute.vocab_rows(inputs.config))


def _from_teacher(name: NamedStart, experiment: Experiment, inputs: Inputs) -> Params:
    """The parameters that a start takes from the teacher, without padding of the vocabulary."""
    assert inputs.teacher_model is not None, "a student without parameters is refused where no model teaches"
    # padded to one length: with buckets, the first batches would not be a fair sample
    order = SAMPLE_BATCH_SIZE, inputs.buckets[-1:], experiment.order_seed
    batches = min(SAMPLE_BATCHES, steps_per_epoch(len(inputs.train), SAMPLE_BATCH_SIZE))
    sample = train_batches(inputs.train, *order, 0, batches)
    student, teacher = inputs.config, inputs.teacher_model.config
    params = resize_vocabulary(inputs.teacher_model.params, teacher.vocab_size)
    return start.from_teacher(name, student, teacher, params, experiment.layer_map, sample)
