"""The similarity of a student's and its teacher's layers, on a sample of the dev rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinybert_jax.batch import Batch, Params
from tinybert_jax.data.batches import steps_per_epoch, train_batches
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.reports.similarity import attention_cosine, centred_gram, cka
from tinybert_jax.settings.objectives import LayerMap, teacher_layers
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import Task
from tinybert_jax.tasks.kinds import load_split, with_template_of
from tinybert_jax.teachers.teacher import Teacher, TeacherModel, with_pieces_of

TOKENS = 1024  # in the sample; hidden states are compared by all pairs of tokens
ROWS_AT_ONCE = 8
LEAST_TOKENS = 8  # for CKA, which needs at least 4


class Agreement(NamedTuple):
    """The similarity of two models' layers, on a number of tokens."""

    tokens: int
    hidden: np.ndarray  # CKA of states [student's layers + 1, teacher's layers + 1]; 0 is the embeddings
    attention: np.ndarray  # cosine of attention, averaged over heads [student's layers, teacher's layers]
    layer_map: tuple[int, ...]  # for each student layer, the teacher layer that it learns from, from 1


def agreement(
    student: str, teacher: str, task: Task, source: DataSource, max_length: int, layer_map: LayerMap
) -> Agreement:
    """Compare two models' hidden states and attention, on the same tokens.

    Raises:
        InputError: one of them has no layers that can be read, their tokens do not correspond, or there are too few
            rows.
    """
    config, params = load_hf(student)
    tokenizer = load_tokenizer(student, config)
    teacher_config, teacher_params = load_hf(teacher)
    model = TeacherModel(teacher_config, teacher_params, load_tokenizer(teacher, teacher_config))
    model = with_pieces_of(Teacher(teacher, "", (), model), tokenizer).model or model
    if tokenizer_fingerprint(model.tokenizer) != tokenizer_fingerprint(tokenizer):
        raise InputError(f"{student} and {teacher} read other pieces, so their tokens do not correspond")
    mapped = teacher_layers(layer_map, config.num_hidden_layers, model.config.num_hidden_layers)
    source = with_template_of(tokenizer, task, source)
    tokens = load_split(task, source, "dev", tokenizer, max_length, config.id2label).tokens
    # padded to one length: with buckets, the first batches would not be a fair sample
    order = ROWS_AT_ONCE, (max_length,), 0, 0, steps_per_epoch(len(tokens), ROWS_AT_ONCE)
    sides = [_insides(config, params), _insides(model.config, model.params)]
    hidden: list[list[np.ndarray]] = [[], []]
    attention: list[list[np.ndarray]] = [[], []]
    count = 0
    for batch in train_batches(tokens, *order):
        real = np.asarray(batch.attention_mask) > 0
        count += int(real.sum())
        for side, insides in enumerate(sides):
            states, looks = insides(batch)
            hidden[side].append(np.asarray(states)[:, real])
            attention[side].append(np.asarray(looks)[:, real])
        if count >= TOKENS:
            break
    if count < LEAST_TOKENS:
        raise InputError("the dev rows have too few tokens for their states to be compared")
    of_student, of_teacher = (np.concatenate(parts, axis=1)[:, :TOKENS] for parts in attention)
    cosines = [[attention_cosine(first, second) for second in of_teacher] for first in of_student]
    grams = [[centred_gram(states) for states in np.concatenate(parts, axis=1)[:, :TOKENS]] for parts in hidden]
    alike = [[cka(first, second) for second in grams[1]] for first in grams[0]]
    return Agreement(min(count, TOKENS), np.array(alike), np.array(cosines), mapped)


def _insides(config: BertConfig, params: Params) -> Callable[[Batch], tuple[Any, Any]]:
    """A function `batch -> hidden states [l+1, b, q, d], attention averaged over heads [l, b, q, k]` of a model."""
    model = BertModel(config, add_pooler=False)
    layers = tuple(range(config.num_hidden_layers))
    placed = jax.device_put({name: part for name, part in params["encoder"].items() if name != "pooler"})

    @jax.jit
    def compute(params: Params, inputs: Batch) -> tuple[Any, Any]:
        out = apply_model(model, params, inputs, None, score_layers=layers)
        keys = jnp.asarray(inputs.attention_mask)[None, :, None, None, :] > 0
        looks = jax.nn.softmax(jnp.where(keys, out.attention_scores, -1e9), axis=-1)
        return out.hidden_states, looks.mean(axis=2)

    return lambda batch: compute(placed, batch)
