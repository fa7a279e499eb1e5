"""Configs survive the trip to Hugging Face and back, and refuse by name what they do not understand."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tinybert_jax as tb
from tinybert_jax.models import config, layers


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
        ({"id2label": {"0": "a", "00": "b"}}, "count from 0 without a gap"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "a"}},
            "id2label has the name 'a' more than once; give each class its",
        ),
        ({"id2label": ["a", "b"]}, "id2label is .*; it must be an object of ids and names"),
        ({"id2label": {"0": "\ud800"}}, "id2label.* it must be a string without NUL and without half a surrogate"),
        ({"num_labels": 10**9}, r"num_labels is 1000000000; it must be in \[1, 1048576\]"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648; it must be at most 2147483647"),
        ({"vocab_size": True}, "vocab_size is True; it must be a whole number"),
        ({"hidden_size": 768.0}, "hidden_size is 768.0; it must be a whole number"),
        ({"head_dim": 0}, "head_dim is 0; it must be at least 1"),
        ({"pad_token_id": -1}, r"pad_token_id is -1; it must be in \[0, vocab_size = 30522\)"),
        ({"hidden_dropout_prob": -0.5}, r"hidden_dropout_prob is -0.5; it must be in \[0, 1\)"),
        ({"classifier_dropout": float("nan")}, r"classifier_dropout is nan; it must be in \[0, 1\)"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it must be finite and greater than 0"),
        ({"initializer_range": 10**400}, "initializer_range is inf; it must be finite and not negative"),
        ({"problem_type": ["regression"]}, "problem_type is .*; it must be a string"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(hf: dict, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.BertConfig.from_hf(hf)


REFUSED = {
    "tb.Stage('transfomer')": (
        "objective is 'transfomer'; it must be one of supervised, masked_lm, transformer, prediction, patient,"
        " embedding, ranking, ranking_labels, distilbert"
    ),
    "tb.Stage(('transformer',))": (
        "objective is ('transformer',); it must be settings such as Prediction(), or their name"
    ),
    "tb.Stage('transformer', evaluate_every=5)": (
        "evaluate_every is 5, but stage 'transformer' trains no head and is not evaluated: leave it out"
    ),
    "tb.Stage('transformer', schedule='constant', warmup_ratio=0.2)": (
        "warmup_ratio is 0.2, but schedule 'constant' has no warm-up: leave it out"
    ),
    "experiment(teacher_cache_gb=1.0)": "teacher_cache_gb is 1.0, but no stage has a teacher: leave it out",
    "tb.Transformer(hidden_weight=-1.0)": "hidden_weight is -1.0; it must be finite and not negative",
    "experiment(layer_map='top')": "layer_map is 'top', but no stage and no start reads it: leave it out",
    (
        "tb.Experiment('corpus', tb.CorpusSource(('a.txt',)), 'dir', (tb.Stage('distilbert'),), 't', layer_map='top')"
    ): "layer_map is 'top', but no stage and no start reads it: leave it out",
    "tb.Stage('supervised', schedule='cosine')": "schedule is 'cosine'; it must be one of constant, linear",
    "tb.Stage('supervised', learning_rate=float('nan'))": "learning_rate is nan; it must be finite and greater than 0",
    "tb.Stage(tb.Prediction(temperature=float('inf')))": "temperature is inf; it must be finite and greater than 0",
    "tb.Ranking(ranking_loss='pairs')": "ranking_loss is 'pairs'; it must be one of margin_mse, listwise",
    "tb.Stage('supervised', epochs=0.5)": "epochs is 0.5; it must be a whole number, at least 1",
    "tb.Stage('supervised', min_steps=0)": "min_steps is 0; it must be a whole number, at least 1",
    "tb.Stage('supervised', max_steps=9, min_steps=5)": (
        "max_steps 9 is the length of the stage already: leave out min_steps"
    ),
    "tb.Stage('supervised', batch_size=0)": "batch_size is 0; it must be a whole number, at least 1",
    "tb.Stage('supervised', evaluate_every=2.0)": "evaluate_every is 2.0; it must be a whole number, at least 1",
    "tb.Stage('supervised', weight_decay=-1.0)": "weight_decay is -1.0; it must be finite and not negative",
    "experiment(preset='offical')": "preset is 'offical'; it must be one of default, paper, official",
    "experiment(layer_map='middle')": "layer_map is 'middle'; it must be one of uniform, top, bottom",
    "experiment(compute_dtype='float16')": "compute_dtype is 'float16'; it must be one of float32, bfloat16",
    "tb.Stage('transformer', batch_size=32, accumulation_steps=5)": (
        "accumulation_steps 5 does not divide the batch size 32"
    ),
    "tb.MaskedLM(masking_probability=0.0)": ("masking_probability is 0.0; it must be above 0, and at most 0.2"),
    "tb.MaskedLM(masking_probability=0.5)": ("masking_probability is 0.5; it must be above 0, and at most 0.2"),
    "tb.CorpusSource(())": "a corpus needs at least one text file: give --corpus FILE",
    "tb.Experiment('sst2', tb.CorpusSource(('f',)), 'bert', (tb.Stage('masked_lm'),))": (
        "task 'sst2' and a CorpusSource do not go together"
    ),
    "tb.Experiment('corpus', tb.CorpusSource(('f',)), 'bert', (tb.Stage('supervised'),))": (
        "stage 'supervised' is not one of task 'corpus'"
    ),
    "experiment(start='spectral')": (
        "start 'spectral' is for a student preset or size; 'bert' brings its own parameters"
    ),
    "experiment(seed=-1)": "seed is -1; it must be a whole number in [0, 2**32)",
    "experiment(data_seed=2**32)": "data_seed is 4294967296; it must be a whole number in [0, 2**32)",
    "experiment(checkpoint_every=0)": "checkpoint_every is 0; it must be at least 1",
    "tb.Sparse(criterion='size')": "criterion is 'size'; it must be one of sparsegpt, wanda, magnitude",
    "tb.DataSource('d', text_columns=('a', 'b', 'c'))": (
        "text_columns are a, b, c; BERT reads one text, or a pair; a --text-template joins columns"
    ),
}


def test_experiment_files_are_checked_like_a_command_line() -> None:
    """A process of its own checks them: in this one, the type checks of the tests would come first."""
    code = f"""
import tinybert_jax as tb
experiment = lambda **c: tb.Experiment("sst2", tb.DataSource(data="d"), "bert", (tb.Stage("supervised"),), **c)
for expression in {list(REFUSED)}:
    try:
        print(eval(expression))
    except tb.InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(REFUSED.values())


def test_the_activations_that_configs_allow_are_those_of_the_model() -> None:
    assert set(layers.ACTIVATIONS) == set(config.ACTIVATIONS)


def test_a_number_without_a_fraction_is_a_float_where_one_is_asked_for() -> None:
    assert type(tb.BertConfig.from_hf({"hidden_dropout_prob": 0}).hidden_dropout_prob) is float


def test_an_input_error_is_one_line_of_text_whatever_it_quotes() -> None:
    line = str(tb.InputError("a\nb\r\u2028\x1b[0m\ud800 \u00e4\u3000\u4e2d"))
    assert line == "a\\nb\\r\\u2028\\x1b[0m\\ud800 \u00e4\u3000\u4e2d"


def test_null_values_of_a_hugging_face_config_are_the_defaults() -> None:
    assert tb.BertConfig.from_hf({"pad_token_id": None}) == tb.BertConfig()


@pytest.mark.parametrize(("teacher_heads", "heads"), [(16, 12), (12, 12), (4, 4)])
def test_a_preset_has_its_teachers_heads_or_where_they_do_not_divide_its_width_12(
    teacher_heads: int, heads: int
) -> None:
    teacher = tb.BertConfig(hidden_size=1536, num_attention_heads=teacher_heads)
    assert tb.student_config("tinybert-4l-312d", teacher).num_attention_heads == heads


def test_student_takes_all_but_its_shape_from_the_teacher() -> None:
    teacher = tb.BertConfig(vocab_size=99, max_position_embeddings=64, id2label=("x", "y", "z"))
    student = tb.student_config("tinybert-4l-312d", teacher)
    shape = (student.num_hidden_layers, student.hidden_size, student.num_attention_heads, student.intermediate_size)
    assert shape == (4, 312, 12, 1200)
    assert (student.vocab_size, student.max_position_embeddings, student.id2label) == (99, 64, ("x", "y", "z"))


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(tb.InputError, match="tinybert-4l-312d"):
        tb.student_config("tinybert-5l", tb.BertConfig())


def test_without_data_the_hint_says_what_evaluate_needs() -> None:
    with pytest.raises(tb.InputError, match=r"^no data are given: .*; evaluate scores the rows of --dev FILE"):
        tb.DataSource()


@pytest.mark.parametrize("options", [{"data": "d", "tfds": "glue/sst2"}, {"data": "d", "train": "t"}])
def test_data_is_given_in_exactly_one_way(options: dict) -> None:
    with pytest.raises(tb.InputError, match="in one way"):
        tb.DataSource(**options)


@pytest.mark.parametrize("stage", ["transformer", "prediction"])
def test_distillation_needs_a_teacher(stage: str) -> None:
    with pytest.raises(tb.InputError, match="needs a teacher: give --teacher DIR"):
        tb.Experiment("sst2", tb.DataSource(data="d"), "bert", (tb.Stage(stage),))
