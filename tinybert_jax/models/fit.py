"""Checks that a model fits a task: its head, outputs, token types and positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.config import BertConfig, TextVector
from tinybert_jax.models.files.hub import resolve
from tinybert_jax.models.files.sentence import read_embedding
from tinybert_jax.models.heads import HEADS
from tinybert_jax.settings.tasks import Task


def check_has_head(name: str, config: BertConfig, params: Params, head: str) -> None:
    """Refuse a model without the head.

    Raises:
        InputError: the head is missing (the message says how to train it), or `modules.json` is not supported.
    """
    row = HEADS[head]
    if not row.is_in(params, config):
        if row.gives_vectors:
            read_embedding(resolve(name))
        raise InputError(f"{name}: holds no {row.title}; train one first: {row.training.format(model=name)}")


def check_family(name: str, config: BertConfig, head: str) -> None:
    """Refuse a model whose family computes that head in an unsupported way.

    Raises:
        InputError: it does.
    """
    family = config.family
    if head in family.other_heads:
        raise InputError(f"{name}: {family.title} with a {HEADS[head].title} is not supported: take a BERT")


def check_head(name: str, config: BertConfig, params: Params, head: str, max_length: int) -> None:
    """Refuse a model without the head, or with fewer positions than `max_length`.

    Raises:
        InputError: one of these is missing.
    """
    check_has_head(name, config, params, head)
    check_positions(name, config, max_length)


def names_head(config: BertConfig, architectures: Sequence[str], head: str) -> bool:
    """Whether the `architectures` of a config name the class of `transformers` with this head. For heads that give
    vectors, the config's `embedding` must be set too.
    """
    row = HEADS[head]
    named = config.family.architecture + row.architecture in architectures
    return named and (config.embedding is not None or not row.gives_vectors)


def check_architecture(
    name: str, config: BertConfig, architectures: Sequence[str], head: str, max_length: int
) -> None:
    """`check_head` for an exported model, whose head is known only from the `architectures` of its config.

    Raises:
        InputError: head or positions are missing.
    """
    if not names_head(config, architectures, head):
        named = f"holds a {', '.join(architectures)}" if architectures else "its config.json names no architectures"
        raise InputError(f"{name}: {named}, and no {HEADS[head].title}: export another model")
    check_positions(name, config, max_length)


def check_token_types(name: str, config: BertConfig, pairs: bool) -> None:
    """Refuse a model with only one token type if rows are pairs of texts.

    Raises:
        InputError: it has one token type.
    """
    if pairs and config.type_vocab_size == 1:
        raise InputError(f"{name}: has 1 token type, but the rows are pairs of texts: take a model with two")


def check_positions(name: str, config: BertConfig, max_length: int) -> None:
    """Refuse a model that has fewer positions than `max_length`.

    Raises:
        InputError: it has fewer.
    """
    if config.max_tokens < max_length:
        raise InputError(
            f"{name}: has {config.max_tokens} positions, fewer than max_length {max_length}: give a"
            " smaller --max-length"
        )


def check_outputs(name: str, config: BertConfig, task: Task) -> None:
    """Refuse a model whose outputs are not those of the task.

    Raises:
        InputError: the model has classes and the task needs a number, or the other way round; or the task needs
            another number of classes, or another problem type.
    """
    if not HEADS[task.head].labelled:
        return
    if task.is_regression != (config.num_labels == 1):
        asked = "one number" if task.is_regression else "classes"
        raise InputError(
            f"{name}: has {config.num_labels} outputs, but task {task.name!r} asks for {asked}: take a model that was"
            " fine-tuned on it"
        )
    if task.is_multi_label != config.is_multi_label and not HEADS[task.head].per_token:
        several = "any number of classes" if config.is_multi_label else "one class"
        raise InputError(
            f"{name}: gives a text {several} (problem_type {config.problem_type!r} in its config.json), and task"
            f" {task.name!r} does not: take another --task, or correct problem_type"
        )
    if task.labels and len(task.labels) != config.num_labels:
        raise InputError(
            f"{name}: has the labels {config.id2label}, but task {task.name!r} has {task.labels}: take a model that"
            " was fine-tuned on it"
        )


def fit_head(
    name: str,
    config: BertConfig,
    loaded: Params | None,
    task: Task,
    label_names: tuple[str, ...],
    teacher: BertConfig | None = None,
) -> tuple[BertConfig, bool]:
    """The config with the task's labels, and whether the loaded head already fits, so that it is kept.

    For tasks with vectors, a model without the head gets the pooling of its teacher. A reranker gets its teacher's
    activation for sentence-transformers.
    """
    row = HEADS[task.head]
    has_head = loaded is not None and row.is_in(loaded, config)
    if row.gives_vectors:
        return (config if has_head or teacher is None else _with_vectors_of(config, teacher)), has_head
    config = dataclasses.replace(config, embedding=None)
    if task.kind.by_query and teacher is not None:
        config = dataclasses.replace(config, score_activation=teacher.score_activation)
    if not row.labelled:
        return config, has_head
    labels = label_names or (config.id2label if config.num_labels == 1 else ("LABEL_0",))
    keep = has_head and config.id2label == labels and config.is_multi_label == task.is_multi_label
    if has_head and not keep:
        several = ", any number of them a text"
        before = f"{config.id2label}{several if config.is_multi_label else ''}"
        rows = f"the labels {labels}{several if task.is_multi_label else ''}" if label_names else "numbers as labels"
        note(f"{name}: a new classifier takes the place of its own, whose labels are {before}: the rows have {rows}")
    problem = task.kind.problem_type or config.problem_type
    return dataclasses.replace(config, id2label=labels, problem_type=problem), keep


def _with_vectors_of(config: BertConfig, teacher: BertConfig) -> BertConfig:
    """The config with the teacher's pooling and normalisation.

    There is a dense layer if the student's states are as wide as the teacher's and the teacher has one, or if they are
    not as wide as the teacher's vectors.
    """
    how, width = teacher.embedding or TextVector(), teacher.vector_width
    is_like = config.hidden_size == teacher.hidden_size
    needs_dense = how.width is not None if is_like else config.hidden_size != width
    if not needs_dense:
        return dataclasses.replace(config, embedding=how._replace(width=None, activation=TextVector().activation))
    return dataclasses.replace(config, embedding=how._replace(width=width))
