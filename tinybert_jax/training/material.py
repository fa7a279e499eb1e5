"""The rows of a run, and the lessons that its teacher gives on them."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.data import tokens
from tinybert_jax.data.augmentation import variants
from tinybert_jax.data.batches import bucket_lengths, stage_steps
from tinybert_jax.data.corpus import corpus
from tinybert_jax.data.labels import named_by
from tinybert_jax.data.queries import Passages
from tinybert_jax.data.rows import Rows, names_from
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.models.fit import check_family, check_token_types, fit_head
from tinybert_jax.models.heads import HEADS
from tinybert_jax.objectives.objective import Context
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource, DataSource
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.tasks.kinds import load_split, second_task, set_name
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.cache import with_known_targets
from tinybert_jax.teachers.projected import with_projected_vectors
from tinybert_jax.teachers.teacher import Teacher, TeacherModel, UnknownRow


class Student(NamedTuple):
    """The model that is trained, as its files or its size describe it."""

    name: str
    config: BertConfig
    loaded: Params | None  # the parameters in its files; None for a preset or size
    tokenizer: Any


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


class Material(NamedTuple):
    """The rows of a run, and what follows from them for student and teacher."""

    head: str  # a row of `models.heads.HEADS`
    config: BertConfig  # the student's, with the task's labels
    keep_head: bool  # the loaded head fits the task
    teacher: Teacher | None
    train: Examples
    dev: dict[str, Split]
    lessons: tuple[Lesson, ...] = ()
    passages: Passages | None = None
    known_dev_rows: int = 0


def of_corpus(experiment: Experiment, source: CorpusSource, student: Student, teacher: Teacher | None) -> Material:
    """The material of training on raw text.

    Raises:
        InputError: the text cannot be read, or student, teacher and stages do not fit together.
    """
    head = "masked_lm" if experiment.masks_tokens else "encoder"
    config = dataclasses.replace(student.config, embedding=None)  # raw text trains no vectors
    model = None if teacher is None else teacher.model
    check_family(student.name, config, head)
    has_types = source.pairs and frame_of(student.tokenizer).has_types
    check_token_types(student.name, config, has_types)
    if experiment.distils and model is not None:
        check_token_types(str(experiment.teacher), model.config, has_types)
    if experiment.distils and not _same_tokenizer(student.tokenizer, model):
        remedy = "raw text is learnt token by token: take a student with the teacher's vocabulary"
        raise InputError(_different_vocabularies(experiment, str(experiment.teacher), remedy))
    teacher_config, facts = None if model is None else model.config, arithmetic(experiment.preset)
    for stage in experiment.stages:
        build_objective(stage.objective, Context(config, teacher_config, head, experiment.layer_map, facts))
    # last, because gigabytes of text take hours
    train = corpus.prepare(source, student.tokenizer, experiment.max_length, experiment.order_seed)
    keep_head = student.loaded is not None and HEADS[head].is_in(student.loaded, config)
    return Material(head, config, keep_head, teacher, train, {})


def of_task(experiment: Experiment, source: DataSource, student: Student, teacher: Teacher | None) -> Material:
    """The material of training on a task's rows.

    Raises:
        InputError: rows cannot be read, or rows, student, teacher and stages do not fit together.
    """
    task = get_task(experiment.task)
    split, dev = _read_splits(experiment, task, student.tokenizer, student.config, teacher)
    train: Examples = split.tokens
    check_token_types(student.name, student.config, any(part.tokens.has_pairs for part in (split, *dev.values())))
    if experiment.augmented is not None:
        train = _augmented(experiment, task, split, student.tokenizer)
    _check_numbers(experiment, task, source, teacher)
    lessons: tuple[Lesson, ...] = ()
    if teacher is not None:
        members = teacher.members or (teacher,)
        lessons = tuple(
            _lesson(experiment, task, teacher, one, student.tokenizer, split, train, dev) for one in members
        )
        if teacher.runs_alone:
            train = lessons[0].train
        if (width := experiment.vector_width) is not None and HEADS[task.head].gives_vectors:
            teacher = with_projected_vectors(teacher, train, width, buckets(experiment, len(train)))
            lessons = (dataclasses.replace(lessons[0], teacher=teacher),)
    teacher_config = None if teacher is None or teacher.model is None else teacher.model.config
    config, keep_head = fit_head(student.name, student.config, student.loaded, task, split.label_names, teacher_config)
    known_dev_rows = sum(part.rows_also_in(split) for part in dev.values())
    return Material(task.head, config, keep_head, teacher, train, dev, lessons, split.passages, known_dev_rows)


def _check_numbers(experiment: Experiment, task: Task, source: DataSource, teacher: Teacher | None) -> None:
    """Refuse a teacher's outputs in regression where the preset learns numbers from labels alone.

    Raises:
        InputError: they are what the run learns from.
    """
    from_labels = task.is_regression and task.kind.learns_labels
    if not from_labels or not arithmetic(experiment.preset).regression_from_labels:
        return
    remedies = [f"leave out {source.adding_option}"] if source.adding_option else []
    if experiment.distils and teacher is not None and not teacher.runs_alone:
        remedies.append("take one model as --teacher")
    if remedies:
        raise InputError(
            f"preset {experiment.preset!r} learns numbers from labels alone: {' and '.join(remedies)}, or take another"
            " --preset"
        )


def _read_splits(
    experiment: Experiment, task: Task, tokenizer: Any, config: BertConfig, teacher: Teacher | None
) -> tuple[Split, dict[str, Split]]:
    """The train split, and the dev sets by name. The order of the labels is the teacher's; without one, the model's if
    it has the same labels."""

    source = experiment.source
    assert isinstance(source, DataSource), "a task's rows"

    def load(task: Task, split: Literal["train", "dev"], labels: tuple[str, ...] | None) -> Split:
        with named_by(names_from(task, source) if teacher is None else teacher.name, is_model=teacher is not None):
            return load_split(task, source, split, tokenizer, experiment.max_length, labels)

    train = load(task, "train", None if teacher is None else teacher.label_names)
    if teacher is None and config.id2label != train.label_names and set(config.id2label) == set(train.label_names):
        train = load(task, "train", config.id2label)
    dev = {"dev": load(task, "dev", train.label_names or None)}
    if task.kind.learns_labels and not train.labelled:
        raise InputError("the training set has no labels: nothing can be learnt from it")
    dev["dev"].check_measurable()
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
            raise InputError(f"{member.name}: its outputs are for rows, not for augmented ones: leave out --augmented")
        outputs = {}
        for name, part in dev.items():
            with contextlib.suppress(UnknownRow):  # a file need not have the dev rows
                outputs[name] = member.outputs_of(_rows(part))
        return Lesson(member, with_known_targets(train, member.outputs_of(split.rows)), dev, outputs)
    assert model is not None, "a teacher is a model, or knows outputs"
    splits = [split, *dev.values()]
    if not _same_tokenizer(tokenizer, model):
        layers_teach = experiment.matches_tokens and model is teacher.model
        reads_tokens = layers_teach or HEADS[task.head].per_token or experiment.augmented is not None
        if experiment.distils and reads_tokens:
            remedy = "only a sequence task's predictions can be distilled, without augmentation (--stage prediction)"
            raise InputError(_different_vocabularies(experiment, member.name, remedy))
        other, dev = _read_splits(experiment, task, model.tokenizer, model.config, teacher)
        splits = [other, *dev.values()]
        train = tokens.TwoVocabularies(split.tokens, other.tokens) if teacher.runs_alone else other.tokens
    if experiment.distils:
        check_token_types(member.name, model.config, any(part.tokens.has_pairs for part in splits))
    return Lesson(member, train, dev, {})


def _rows(split: Split) -> Rows:
    assert split.rows is not None, "a split of texts has rows"
    return split.rows


def _augmented(experiment: Experiment, task: Task, split: Split, tokenizer: Any) -> Examples:
    if split.rows is None:
        raise InputError(f"task {task.name!r} is trained on its own rows; leave out --augmented")
    return variants.load_augmented(
        str(experiment.augmented), split.rows, tokenizer, experiment.max_length, experiment.order_seed
    )


def buckets(experiment: Experiment, rows: int) -> tuple[int, ...]:
    """The lengths to which batches of a run with this number of rows are padded."""
    if arithmetic(experiment.preset).padding != "exclude":  # if means include padding, all rows need one length
        return (experiment.max_length,)
    return bucket_lengths(experiment.max_length, sum(stage_steps(stage, rows) for stage in experiment.stages))


def _different_vocabularies(experiment: Experiment, teacher: str, remedy: str) -> str:
    return (
        f"{experiment.model} and {teacher} have different vocabularies, or default prompts, so their tokens do not"
        f" correspond: {remedy}"
    )


def _same_tokenizer(tokenizer: Any, teacher: TeacherModel | None) -> bool:
    return teacher is None or tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(teacher.tokenizer)
