"""Everything a run reads, loaded and checked before the first compilation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.data import tokens
from tinybert_jax.data.augmentation import variants
from tinybert_jax.data.batches import bucket_lengths, stage_steps, steps_per_epoch, train_batches
from tinybert_jax.data.corpus import corpus
from tinybert_jax.data.corpus.corpus import Corpus
from tinybert_jax.data.labels import named_by
from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows, names_from
from tinybert_jax.devices import processes
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig, Compute
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.tokenizer import load_tokenizer, prompt_of, put_prompt, tokenizer_fingerprint
from tinybert_jax.models.fit import check_family, check_positions, check_token_types, fit_head
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import init_params, resize_vocabulary
from tinybert_jax.objectives.objective import Context
from tinybert_jax.objectives.projections import PROJECTIONS
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.choices import STUDENTS, NamedStart, student_shape
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.students import start
from tinybert_jax.students.presets import student_config
from tinybert_jax.tasks.kinds import load_split, second_task, set_name
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.cache import with_known_targets
from tinybert_jax.teachers.projected import with_projected_vectors
from tinybert_jax.teachers.table import load_teacher
from tinybert_jax.teachers.teacher import Teacher, TeacherModel, UnknownRow, with_pieces_of
from tinybert_jax.training.population import check_members

# The word table is padded to a multiple of this on every mesh, so that a checkpoint fits all meshes.
VOCAB_MULTIPLE = 128
SAMPLE_BATCHES, SAMPLE_BATCH_SIZE = 128, 32  # largest sample for the spectral start
OF_MODEL = ("loaded", "keep_head", "fingerprints")  # fields of `Inputs` that depend on the model's parameters


@dataclass(frozen=True, eq=False)
class Lesson:
    """One teacher with the rows for it: in its tokens, or, if it is not a model, with its outputs."""

    teacher: Teacher
    train: Examples
    dev: dict[str, Split]
    dev_outputs: dict[str, np.ndarray]  # by dev set; {} if the teacher is a model

    @property
    def name(self) -> str:
        return self.teacher.name


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
    source = experiment.source
    teacher = None if experiment.teacher is None else load_teacher(experiment)
    model = None if teacher is None else teacher.model
    loaded: Params | None = None
    if student_shape(experiment.model) is not None:
        if model is None:
            raise InputError(
                f"{experiment.teacher}: brings no vocabulary, which student {experiment.model!r} needs: give a"
                " directory as --student"
            )
        config = student_config(experiment.model, model.config, token_types=not experiment.drops_token_types)
        tokenizer = model.tokenizer
        start.check_start(experiment.start, config, model.config)
    else:
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
            model = teacher.model
    check_positions(experiment.model, config, experiment.max_length)
    facts = arithmetic(experiment.preset)

    lessons: tuple[Lesson, ...] = ()
    if isinstance(source, CorpusSource):
        head = "masked_lm" if experiment.masks_tokens else "encoder"
        config = dataclasses.replace(config, embedding=None)  # raw text trains no vectors
        check_family(experiment.model, config, head)
        has_types = source.pairs and frame_of(tokenizer).has_types
        check_token_types(experiment.model, config, has_types)
        if experiment.distils and model is not None:
            check_token_types(str(experiment.teacher), model.config, has_types)
        if not _same_tokenizer(tokenizer, model):
            raise InputError(_different_vocabularies(experiment, str(experiment.teacher)))
        for stage in experiment.stages:
            teacher_config = None if model is None else model.config
            build_objective(stage.objective, Context(config, teacher_config, head, experiment.layer_map, facts))
        # last, because gigabytes of text take hours
        train: Examples = corpus.prepare(source, tokenizer, experiment.max_length, experiment.order_seed)
        dev: dict[str, Split] = {}
        passages, known_dev_rows = None, 0
        keep_head = loaded is not None and HEADS[head].is_in(loaded, config)
    else:
        task = get_task(experiment.task)
        head = task.head
        split, dev = _read_splits(experiment, task, source, tokenizer, config, teacher)
        train, passages = split.tokens, split.passages
        known_dev_rows = sum(part.rows_also_in(split) for part in dev.values())
        check_token_types(experiment.model, config, any(part.tokens.has_pairs for part in (split, *dev.values())))
        if experiment.augmented is not None:
            train = _augmented(experiment, task, split, tokenizer)
        from_labels = task.is_regression and task.kind.learns_labels and facts.regression_from_labels
        knows = experiment.distils and teacher is not None and not teacher.runs_alone
        if from_labels and (source.adding_option or knows):
            raise InputError(
                f"preset {experiment.preset!r} learns numbers from labels alone: leave out"
                f" {source.adding_option or '--unlabelled'}, and take one model as --teacher, or another --preset"
            )
        if teacher is not None:
            members = teacher.members or (teacher,)
            lessons = tuple(_lesson(experiment, task, teacher, one, tokenizer, split, train, dev) for one in members)
            if teacher.runs_alone:
                train = lessons[0].train
            if (width := experiment.vector_width) is not None and HEADS[head].gives_vectors:
                teacher = with_projected_vectors(teacher, train, width, _buckets(experiment, len(train)))
                model, lessons = teacher.model, (dataclasses.replace(lessons[0], teacher=teacher),)
        teacher_config = None if model is None else model.config
        config, keep_head = fit_head(experiment.model, config, loaded, task, split.label_names, teacher_config)
    compute = Compute(experiment.compute_dtype, experiment.remat, VOCAB_MULTIPLE)
    prints = {"train": train.fingerprint} | {name: split.tokens.fingerprint for name, split in dev.items()}
    if teacher is not None:
        prints["teacher"] = teacher.fingerprint
    if loaded is not None:
        prints["model"] = fingerprint(experiment.model)
    lessons = tuple(dataclasses.replace(lesson, teacher=_padded(lesson.teacher, compute)) for lesson in lessons)
    if teacher is not None and not teacher.members:
        teacher = lessons[0].teacher if lessons else _padded(teacher, compute)
    return Inputs(
        head=head,
        config=config,
        compute=compute,
        loaded=loaded,
        keep_head=keep_head,
        tokenizer=tokenizer,
        train=train,
        dev=dev,
        buckets=_buckets(experiment, len(train)),
        teacher=teacher,
        lessons=lessons,
        fingerprints=prints,
        passages=passages,
        known_dev_rows=known_dev_rows,
    )


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


def _read_splits(
    experiment: Experiment, task: Task, source: Any, tokenizer: Any, config: BertConfig, teacher: Teacher | None
) -> tuple[Split, dict[str, Split]]:
    """The train split, and the dev sets by name. The order of the labels is the teacher's; without one, the model's if
    it has the same labels."""

    def load(task: Task, split: Literal["train", "dev"], labels: tuple[str, ...] | None) -> Split:
        with named_by(names_from(task, source) if teacher is None else teacher.name, is_model=teacher is not None):
            return load_split(task, source, split, tokenizer, experiment.max_length, labels)

    train = load(task, "train", teacher.label_names if teacher is not None and task.kind.names_classes else None)
    if teacher is None and config.id2label != train.label_names and set(config.id2label) == set(train.label_names):
        train = load(task, "train", config.id2label)
    dev = {"dev": load(task, "dev", train.label_names or None)}
    for split, loaded, is_labelled in (("training", train, task.kind.learns_labels), ("dev", dev["dev"], True)):
        if is_labelled and not loaded.labelled:
            raise InputError(f"the {split} set has no labels: nothing can be learnt from it, or measured on it")
    if dev["dev"].is_constant:
        raise InputError("every row of the dev set has the same label: give rows of others, or a greater --dev-share")
    if (second := second_task(task, source)) is not None:
        dev[set_name(task, second)] = load(second, "dev", train.label_names or None)
    return train, dev


def _lesson(
    experiment: Experiment,
    task: Task,
    teacher: Teacher,
    member: Teacher,
    tokenizer: Any,
    split: Split,
    train: Examples,
    dev: dict[str, Split],
) -> Lesson:
    """A teacher or ensemble member with the rows for it. For a single model, rows have its tokens and the student's.

    Raises:
        InputError: it has outputs for the training rows only, and rows are missing or are augmented; or its tokens are
            not the student's, and layers or tokens are compared.
    """
    model = member.model
    if member.outputs_of is not None:
        if not experiment.distils:  # no stage needs its outputs
            return Lesson(member, train, dev, {})
        if split.rows is None or experiment.augmented is not None:
            raise InputError(f"{member.name}: its outputs are for the rows alone: leave out --augmented")
        outputs = {}
        for name, part in dev.items():
            with contextlib.suppress(UnknownRow):  # a file need not have the dev rows
                outputs[name] = member.outputs_of(_rows(part))
        return Lesson(member, with_known_targets(train, member.outputs_of(split.rows)), dev, outputs)
    assert model is not None, "a teacher is a model, or knows outputs"
    splits = [split, *dev.values()]
    if not _same_tokenizer(tokenizer, model):
        layers_teach = experiment.matches_tokens and model is teacher.model
        if layers_teach or HEADS[task.head].per_token or experiment.augmented is not None:
            raise InputError(_different_vocabularies(experiment, member.name))
        other, dev = _read_splits(experiment, task, experiment.source, model.tokenizer, model.config, teacher)
        splits = [other, *dev.values()]
        train = tokens.TwoVocabularies(split.tokens, other.tokens) if teacher.runs_alone else other.tokens
    if experiment.distils:
        check_token_types(member.name, model.config, any(part.tokens.has_pairs for part in splits))
    return Lesson(member, train, dev, {})


def _padded(teacher: Teacher, compute: Compute) -> Teacher:
    """The teacher with its vocabulary padded like the student's."""
    if (model := teacher.model) is None:
        return teacher
    params = resize_vocabulary(model.params, compute.vocab_rows(model.config))
    return dataclasses.replace(teacher, model=model._replace(params=params))


def _rows(split: Split) -> Rows:
    assert split.rows is not None, "a split of texts has rows"
    return split.rows


def _augmented(experiment: Experiment, task: Task, split: Split, tokenizer: Any) -> Examples:
    if split.rows is None:
        raise InputError(f"task {task.name!r} is trained on its own rows; leave out --augmented")
    return variants.load_augmented(
        str(experiment.augmented), split.rows, tokenizer, experiment.max_length, experiment.order_seed
    )


def _buckets(experiment: Experiment, rows: int) -> tuple[int, ...]:
    if arithmetic(experiment.preset).padding != "exclude":  # if means include padding, all rows need one length
        return (experiment.max_length,)
    return bucket_lengths(experiment.max_length, sum(stage_steps(stage, rows) for stage in experiment.stages))


def _different_vocabularies(experiment: Experiment, teacher: str) -> str:
    return (
        f"{experiment.model} and {teacher} have different vocabularies, or default prompts, so their tokens do not"
        " correspond: only a sequence task's predictions can be distilled, without augmentation (--stage prediction)"
    )


def _same_tokenizer(tokenizer: Any, teacher: TeacherModel | None) -> bool:
    return teacher is None or tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(teacher.tokenizer)
