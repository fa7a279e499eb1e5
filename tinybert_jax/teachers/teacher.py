"""Teachers, which give objectives their targets: a model that runs in the step, or outputs computed in advance."""

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
    """A teacher that has outputs for certain rows only is asked for another row."""


class TeacherModel(NamedTuple):
    """A teacher that is a model: fine-tuned on the task, or only pretrained for raw text."""

    config: BertConfig
    params: Params  # on the host
    tokenizer: Any


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher: a model, a function from rows to outputs, or an ensemble.

    A single model may run in the step. All other outputs are computed before training.
    """

    name: str
    fingerprint: str  # of all that determines its outputs, except the rows
    label_names: tuple[str, ...]  # the classes in the order of its outputs
    model: TeacherModel | None = None  # in an ensemble, the model of `layer_member`
    outputs_of: Callable[[Rows], np.ndarray] | None = None  # -> logits float32 [n, c]; in regression numbers [n]
    order: np.ndarray | None = None  # in a member: for each class of the ensemble, its index in the member's outputs
    members: tuple[Teacher, ...] = ()  # of an ensemble
    layer_member: int | None = None  # in an ensemble, the index of the member whose layers teach
    average: Callable[..., np.ndarray] | None = None  # in an ensemble: see `ensemble.average`

    @property
    def runs_alone(self) -> bool:
        """Whether it is a single model, which can run in every step."""
        return self.model is not None and not self.members

    def in_order(self, outputs: np.ndarray) -> np.ndarray:
        """A member's outputs [..., c], with the classes in the ensemble's order."""
        return outputs if self.order is None else outputs[..., self.order]


def with_pieces_of(teacher: Teacher, tokenizer: Any) -> Teacher:
    """The teacher with the student's token ids, if the student's vocabulary is a subset of the teacher's.

    Its word table then has only the student's pieces. So student and teacher read the same tokens, and layers can be
    compared. A teacher with another vocabulary, or without one, is returned unchanged.
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
    """Load a teacher from a Hugging Face directory or hub id, and check that it fits the task.

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
