"""Configs survive the trip to Hugging Face and back, and refuse by name what they do not understand."""

from __future__ import annotations

import pytest

import tinybert_jax as tb


def test_config_survives_the_trip_to_hugging_face_and_back() -> None:
    config = tb.BertConfig(hidden_size=24, num_attention_heads=4, id2label=("a", "b", "c"), problem_type="regression")
    assert tb.BertConfig.from_hf(config.to_hf()) == config


def test_an_explicit_head_dim_survives_and_lifts_the_divisibility_rule() -> None:
    config = tb.BertConfig(hidden_size=30, num_attention_heads=4, head_dim=8)
    assert tb.BertConfig.from_hf(config.to_hf()) == config
    assert config.attention_head_dim == 8


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"num_attention_heads": 7}, "num_attention_heads 7 does not divide hidden_size 768"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"id2label": {"0": "a", "2": "b"}}, "count from 0 without a gap"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(hf: dict, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.BertConfig.from_hf(hf)


def test_student_takes_all_but_its_shape_from_the_teacher() -> None:
    teacher = tb.BertConfig(vocab_size=99, max_position_embeddings=64, id2label=("x", "y", "z"))
    student = tb.student_config("tinybert-4l-312d", teacher)
    shape = (student.num_hidden_layers, student.hidden_size, student.num_attention_heads, student.intermediate_size)
    assert shape == (4, 312, 12, 1200)
    assert (student.vocab_size, student.max_position_embeddings, student.id2label) == (99, 64, ("x", "y", "z"))


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(tb.InputError, match="tinybert-4l-312d"):
        tb.student_config("tinybert-5l", tb.BertConfig())


@pytest.mark.parametrize("given", [{}, {"data": "d", "tfds": "glue/sst2"}, {"data": "d", "train": "t"}])
def test_data_is_given_in_exactly_one_way(given: dict) -> None:
    with pytest.raises(tb.InputError, match="in one way"):
        tb.DataSource(**given)


@pytest.mark.parametrize("stage", ["transformer", "prediction"])
def test_distillation_needs_a_teacher(stage: str) -> None:
    with pytest.raises(tb.InputError, match="need a teacher"):
        tb.Experiment("sst2", tb.DataSource(data="d"), "bert", (tb.Stage(stage),))
