"""Everything a run reads, loaded and checked before the first compilation."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax import data, hf
from tinybert_jax.config import STUDENTS, BertConfig, Experiment, InputError, Params, student_config
from tinybert_jax.data import Tokens
from tinybert_jax.model import BertForSequenceClassification, init_params
from tinybert_jax.predict import check_classifier, check_positions
from tinybert_jax.rows import Rows, read_rows
from tinybert_jax.tasks import Task, get_task


class Teacher(NamedTuple):
    """A fine-tuned sequence classifier or regressor."""

    config: BertConfig
    params: Params


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run trains, what it learns from, and on which rows."""

    task: Task
    config: BertConfig  # of the model that is trained, with the task's labels
    loaded: Params | None  # the model's own parameters; None for a student preset, which starts at random
    keep_classifier: bool  # the model's own head has the task's labels
    tokenizer: Any
    train: Tokens
    dev: Tokens
    buckets: tuple[int, ...]
    teacher: Teacher | None
    fingerprints: dict[str, str]  # of the rows, and of the models' files


def load_inputs(experiment: Experiment) -> Inputs:
    """Load teacher, model, tokenizer and rows of an experiment.

    Raises:
        InputError: something is missing, damaged, or does not fit the rest.
    """
    task = get_task(experiment.task)
    teacher = None if experiment.teacher is None else load_teacher(experiment.teacher, task, experiment.max_length)
    loaded: Params | None = None
    if experiment.model in STUDENTS:
        assert teacher is not None, "Experiment asks for a teacher where the model is a preset"
        config = student_config(experiment.model, teacher.config)
        tokenizer = hf.load_tokenizer(str(experiment.teacher), config)
    else:
        config, loaded = hf.load_hf(experiment.model)
        tokenizer = hf.load_tokenizer(experiment.model, config)
        if teacher is not None:
            teacher_tokenizer = hf.load_tokenizer(str(experiment.teacher), teacher.config)
            if data.tokenizer_fingerprint(tokenizer) != data.tokenizer_fingerprint(teacher_tokenizer):
                raise InputError(
                    f"{experiment.model} and {experiment.teacher} have different vocabularies;"
                    " a student must read the token ids of its teacher"
                )
    check_positions(experiment.model, config, experiment.max_length)
    train, dev = _read_splits(experiment, task, config, teacher)
    if len(train.texts[0]) > config.type_vocab_size:
        raise InputError(
            f"{experiment.model}: has {config.type_vocab_size} token type, but the rows are pairs of texts"
        )
    labels = train.label_names or ("LABEL_0",)
    keep_classifier = loaded is not None and "classifier" in loaded and config.id2label == labels
    if loaded is not None and "classifier" in loaded and not keep_classifier:
        print(f"note: the classifier starts anew: its labels {config.id2label} become {labels}", file=sys.stderr)
    config = dataclasses.replace(
        config,
        id2label=labels,
        problem_type="regression" if task.is_regression else "single_label_classification",
        compute_dtype=experiment.compute_dtype,
    )
    if teacher is not None:
        own = dataclasses.replace(teacher.config, compute_dtype=experiment.compute_dtype)
        teacher = teacher._replace(config=own)
    train_tokens, dev_tokens = (data.tokenize(rows, tokenizer, experiment.max_length) for rows in (train, dev))
    models = {"teacher": experiment.teacher} | ({"model": experiment.model} if loaded is not None else {})
    return Inputs(
        task=task,
        config=config,
        loaded=loaded,
        keep_classifier=keep_classifier,
        tokenizer=tokenizer,
        train=train_tokens,
        dev=dev_tokens,
        # the means of the other presets count padding, so they need one padded length
        buckets=data.bucket_lengths(experiment.max_length)
        if experiment.preset == "default"
        else (experiment.max_length,),
        teacher=teacher,
        fingerprints={"train": train_tokens.fingerprint, "dev": dev_tokens.fingerprint}
        | {role: hf.fingerprint(name) for role, name in models.items() if name is not None},
    )


def initial_params(inputs: Inputs, seed: int) -> Params:
    """Where training starts, `{"bert", "classifier"}`: what the model brought, and random values for the rest."""
    params = init_params(BertForSequenceClassification(inputs.config), jax.random.key(seed))
    if inputs.loaded is not None:
        params["bert"] |= inputs.loaded["bert"]
        if inputs.keep_classifier:
            params["classifier"] = inputs.loaded["classifier"]
    return params


def load_teacher(name: str, task: Task, max_length: int) -> Teacher:
    """A classifier or regressor that fits the task.

    Raises:
        InputError: the directory cannot be read, or holds no model for this task and length.
    """
    config, params = hf.load_hf(name)
    check_classifier(name, config, params, max_length)
    check_outputs(name, config, task)
    return Teacher(config, params)


def check_outputs(name: str, config: BertConfig, task: Task) -> None:
    """Refuse a model whose outputs are not those of the task.

    Raises:
        InputError: classes where the task is a number, or the other way round, or another number of classes.
    """
    if task.is_regression != (config.num_labels == 1):
        wanted = "one number" if task.is_regression else "classes"
        raise InputError(f"{name}: has {config.num_labels} outputs, but task {task.name!r} asks for {wanted}")
    if task.labels and len(task.labels) != config.num_labels:
        raise InputError(f"{name}: has the labels {config.id2label}, but task {task.name!r} has {task.labels}")


def _read_splits(experiment: Experiment, task: Task, config: BertConfig, teacher: Teacher | None) -> tuple[Rows, Rows]:
    """Train and dev rows. A teacher's labels are authoritative; without one, those of a model that has the same."""
    labels = None if teacher is None or task.is_regression else teacher.config.id2label
    train = read_rows(task, experiment.source, "train", labels)
    if labels is None and set(config.id2label) == set(train.label_names):
        train = read_rows(task, experiment.source, "train", config.id2label)
    dev = read_rows(task, experiment.source, "dev", train.label_names or None)
    if dev.labels is None or len(np.unique(dev.labels)) < 2:
        raise InputError("every row of the dev set has the same label: no score can tell a good model from a bad one")
    return train, dev
