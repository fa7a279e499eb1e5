"""Everything a run reads, loaded and checked before the first compilation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from tinybert_jax import data, hf
from tinybert_jax.config import STUDENTS, BertConfig, Experiment, InputError, Params, student_config
from tinybert_jax.data import Tokens
from tinybert_jax.model import BertForSequenceClassification, init_params
from tinybert_jax.predict import check_classifier
from tinybert_jax.rows import Rows, read_rows
from tinybert_jax.tasks import Task, get_task


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
    teacher_config: BertConfig | None
    teacher_params: Params | None


def load_inputs(experiment: Experiment) -> Inputs:
    """Load teacher, model, tokenizer and rows of an experiment.

    Raises:
        InputError: something is missing, damaged, or does not fit the rest.
    """
    task = get_task(experiment.task)
    teacher_config, teacher_params = _load_teacher(experiment, task)
    loaded: Params | None = None
    if experiment.model in STUDENTS and teacher_config is not None and experiment.teacher is not None:
        config = student_config(experiment.model, teacher_config)
        tokenizer = hf.load_tokenizer(experiment.teacher, config)
    else:
        config, loaded = hf.load_hf(experiment.model)
        tokenizer = hf.load_tokenizer(experiment.model, config)
        if experiment.teacher is not None and teacher_config is not None:
            teacher_tokenizer = hf.load_tokenizer(experiment.teacher, teacher_config)
            if data.tokenizer_fingerprint(tokenizer) != data.tokenizer_fingerprint(teacher_tokenizer):
                raise InputError(
                    f"{experiment.model} and {experiment.teacher} have different vocabularies;"
                    " a student must read the token ids of its teacher"
                )
    if config.max_position_embeddings < experiment.max_length:
        raise InputError(
            f"{experiment.model}: has {config.max_position_embeddings} positions,"
            f" fewer than max_length {experiment.max_length}"
        )
    train, dev = _read_splits(experiment, task, config, teacher_config)
    labels = train.label_names or ("LABEL_0",)
    keep_classifier = loaded is not None and "classifier" in loaded and config.id2label == labels
    problem_type = "regression" if task.is_regression else "single_label_classification"
    dtype = experiment.compute_dtype
    config = dataclasses.replace(config, id2label=labels, problem_type=problem_type, compute_dtype=dtype)
    if teacher_config is not None:
        teacher_config = dataclasses.replace(teacher_config, compute_dtype=dtype)
    # the means of the other presets count padding, so they need one padded length
    buckets = (
        data.bucket_lengths(experiment.max_length) if experiment.preset == "default" else (experiment.max_length,)
    )
    return Inputs(
        task=task,
        config=config,
        loaded=loaded,
        keep_classifier=keep_classifier,
        tokenizer=tokenizer,
        train=data.tokenize(train, tokenizer, experiment.max_length),
        dev=data.tokenize(dev, tokenizer, experiment.max_length),
        buckets=buckets,
        teacher_config=teacher_config,
        teacher_params=teacher_params,
    )


def initial_params(inputs: Inputs, seed: int) -> Params:
    """Where training starts, `{"bert", "classifier"}`: what the model brought, and random values for the rest."""
    params = init_params(BertForSequenceClassification(inputs.config), jax.random.key(seed))
    if inputs.loaded is not None:
        params["bert"] |= inputs.loaded["bert"]
        if inputs.keep_classifier:
            params["classifier"] = inputs.loaded["classifier"]
    return params


def _load_teacher(experiment: Experiment, task: Task) -> tuple[BertConfig | None, Params | None]:
    if experiment.teacher is None:
        return None, None
    config, params = hf.load_hf(experiment.teacher)
    check_classifier(experiment.teacher, config, params, experiment.max_length)
    if task.is_regression != (config.num_labels == 1):
        kind = "one number" if task.is_regression else "classes"
        raise InputError(f"{experiment.teacher}: has {config.num_labels} outputs, but task {task.name!r} is {kind}")
    return config, params


def _read_splits(
    experiment: Experiment, task: Task, config: BertConfig, teacher_config: BertConfig | None
) -> tuple[Rows, Rows]:
    """Train and dev rows. A teacher's labels are authoritative; without one, those of a model that has the same."""
    labels = None
    if teacher_config is not None and not task.is_regression:
        labels = teacher_config.id2label
    train = read_rows(task, experiment.source, "train", labels)
    if labels is None and set(config.id2label) == set(train.label_names):
        train = read_rows(task, experiment.source, "train", config.id2label)
    dev = read_rows(task, experiment.source, "dev", train.label_names or None)
    return train, dev
