"""Starting points: what is copied is exact, what is projected starts near its teacher, the rest stays as it was."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import tinybert_jax as tb
from tinybert_jax.students.start import auto_start, from_teacher, start_params

TEACHER = tb.BertConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.2,
)
TEACHER_PARAMS = random_params(tb.BertForSequenceClassification(TEACHER))
HALF = dataclasses.replace(TEACHER, num_hidden_layers=2)
HALF_PARAMS = random_params(tb.BertForSequenceClassification(HALF), 1)
IDS = jnp.array(np.random.default_rng(0).integers(5, 40, (3, 9)))


def start(name, student: tb.BertConfig, params, layer_map="uniform"):
    return start_params(params, from_teacher(name, student, TEACHER, TEACHER_PARAMS, layer_map, iter(())))


def test_a_copy_of_all_layers_computes_what_the_teacher_does() -> None:
    params = start("copy", TEACHER, tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(1)))
    model = tb.BertModel(TEACHER)
    student, teacher = (model.apply({"params": p["encoder"]}, IDS) for p in (params, TEACHER_PARAMS))
    np.testing.assert_array_equal(student.pooled, teacher.pooled)


@pytest.mark.parametrize(("layer_map", "mapped"), [("uniform", (2, 4)), ("bottom", (1, 2)), ((3, 1), (3, 1))])
def test_a_copy_takes_the_mapped_layers(layer_map, mapped: tuple[int, ...]) -> None:
    params = start("copy", HALF, HALF_PARAMS, layer_map)
    layers, teacher_layers = params["encoder"]["encoder"]["layer"], TEACHER_PARAMS["encoder"]["encoder"]["layer"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.array(mapped) - 1]), layers, teacher_layers)


def test_heads_stay_random_and_so_does_everything_of_a_random_start() -> None:
    copied = start("copy", HALF, HALF_PARAMS)
    jax.tree.map(np.testing.assert_array_equal, copied["classifier"], HALF_PARAMS["classifier"])
    assert jax.tree.structure(copied) == jax.tree.structure(HALF_PARAMS)
    jax.tree.map(np.testing.assert_array_equal, start("random", HALF, HALF_PARAMS), HALF_PARAMS)


@pytest.mark.parametrize(
    ("changes", "preset", "distils", "tokens", "start", "reason"),
    [
        ({"hidden_size": 16}, "default", True, 32, "spectral", "principal directions"),
        ({}, "default", True, 1, "copy", "of the student's widths"),
        ({"intermediate_size": 16}, "default", True, 48, "spectral", "principal directions"),
        ({"hidden_size": 16}, "default", True, 31, "random", "needs 32 tokens of text, and there are 31"),
        ({"hidden_size": 28}, "default", True, 99, "random", "its hidden_size is 28, the teacher's 24"),
        ({"num_attention_heads": 2}, "default", True, 99, "random", "the student has 2, the teacher 4"),
        ({"hidden_size": 16}, "default", False, 99, "random", "no stage learns from the teacher"),
        ({"hidden_size": 16}, "paper", True, 99, "random", "preset paper"),
        ({}, "official", True, 99, "random", "preset official"),
    ],
)
def test_the_automatic_start_is_the_nearest_to_the_teacher_that_sizes_text_and_preset_allow(
    changes: dict, preset, distils: bool, tokens: int, start: str, reason: str
) -> None:
    chosen, why = auto_start(dataclasses.replace(HALF, **changes), TEACHER, preset, distils, tokens)
    assert chosen == start
    assert reason in why


def test_a_student_without_pooler_gets_none() -> None:
    params = {"encoder": {name: HALF_PARAMS["encoder"][name] for name in ("embeddings", "encoder")}}
    assert jax.tree.structure(start("copy", HALF, params)) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, "'copy' needs equal hidden_size: the student has 16, the teacher 24"),
        ({"num_attention_heads": 2}, "'copy' needs equal num_attention_heads: the student has 2, the teacher 4"),
        ({"intermediate_size": 16}, "'copy' needs equal intermediate_size: the student has 16, the teacher 32"),
    ],
)
def test_a_copy_into_another_shape_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        start("copy", dataclasses.replace(HALF, **changes), HALF_PARAMS)
