"""What gives an objective its targets: a model that runs beside the student, or outputs that are known ahead."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.tokenizer import ids_in, load_tokenizer, tokenizer_fingerprint
from tinybert_jax.models.fit import check_has_head, check_head, check_outputs, check_positions
from tinybert_jax.models.parameters import select_pieces
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.tasks import get_task


class UnknownRow(InputError):
    """A teacher that knows certain rows is asked about another."""


class TeacherModel(NamedTuple):
    """A teacher that runs: fine-tuned on the task, or, for a corpus, as pretrained."""

    config: BertConfig
    params: Params  # on the host
    tokenizer: Any


@dataclass(frozen=True, eq=False)
class Teacher:
    """What is learnt from: a model, outputs that are known for rows, or several teachers.

    A single model may run in the step. All other outputs are known ahead of training.
    """

    name: str
    fingerprint: str  # of all that determines its outputs, beside the rows
    label_names: tuple[str, ...]  # the classes in the order of its outputs
    model: TeacherModel | None = None  # of several teachers, that of `layer_member`
    outputs_of: Callable[[Rows], np.ndarray] | None = None  # -> logits float32 [n, c]; in regression numbers [n]
    order: np.ndarray | None = None  # of a member: for each class of the ensemble, its number among the outputs
    members: tuple[Teacher, ...] = ()  # of several teachers
    layer_member: int | None = None  # of several teachers, the number of the member whose layers teach
    average: Callable[..., np.ndarray] | None = None  # of several teachers: see `ensemble.average`

    @property
    def runs_alone(self) -> bool:
        """Whether it is one model, which can run in every step."""
        return self.model is not None and not self.members

    def in_order(self, outputs: np.ndarray) -> np.ndarray:
        """A member's outputs [..., c], with the classes in the ensemble's order."""
        return outputs if self.order is None else outputs[..., self.order]


def with_pieces_of(teacher: Teacher, tokenizer: Any) -> Teacher:
    """A teacher that reads a student's token ids, if the student's vocabulary is a part of its own.

    Its word table has the student's pieces alone, so each position means the same to both, and layers can be compared.
    A teacher with another vocabulary, or none, stays as it is.
    """
    if teacher.members:
        members = tuple(with_pieces_of(member, tokenizer) for member in teacher.members)
        model = None if teacher.layer_member is None else members[teacher.layer_member].model
        return dataclasses.replace(teacher, members=members, model=model)
    model, student = teacher.model, tokenizer_fingerprint(tokenizer)
    if model is None or tokenizer_fingerprint(model.tokenizer) == student:
        return teacher
    if (ids := ids_in(tokenizer, model.tokenizer)) is None:
        return teacher
    config, params = select_pieces(model.config, model.params, ids, tokenizer.pad_token_id)
    digest = hashlib.sha256(f"{teacher.fingerprint} {student}".encode()).hexdigest()
    return dataclasses.replace(teacher, model=TeacherModel(config, params, tokenizer), fingerprint=digest)


def load_model_teacher(experiment: Experiment) -> Teacher:
    """The teacher in a Hugging Face directory or hub id, checked to fit the task.

    Raises:
        InputError: it cannot be read, or does not fit the task.
    """
    name = str(experiment.teacher)
    config, params = load_hf(name)
    if isinstance(experiment.source, CorpusSource):
        for head in (stage.objective.teacher_head for stage in experiment.stages):
            if head is not None:
                check_has_head(name, config, params, head)
        check_positions(name, config, experiment.max_length)
    else:
        task = get_task(experiment.task)
        check_head(name, config, params, task.head, experiment.max_length)
        check_outputs(name, config, task)
    model = TeacherModel(config, params, load_tokenizer(name, config))
    return Teacher(name, fingerprint(name), config.id2label, model)
