"""Shared layers: an ALBERT of a BERT, its parameters, its training, and its way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, distillation

import tinybert_jax as tb
from tinybert_jax.batch import Batch
from tinybert_jax.compression.share import PARTS, note_shared, share, share_part
from tinybert_jax.compression.table import build_method
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.models.parameters import count_parameters, encoder_macs, unshared
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.students.start import copy_layers

FIXTURES = TINY.parent
ALBERT = FIXTURES / "tiny-albert"
NO_ROWS: Any = Tokens(*(np.zeros(0, np.int32),) * 4, "none")
IDS = jnp.asarray(np.array([[2, 7, 9, 11, 3, 0], [2, 8, 3, 0, 0, 0]], np.int32))
MASK = jnp.asarray(np.asarray(IDS) > 0).astype(jnp.int32)


def logits(config: tb.BertConfig, params: Any) -> np.ndarray:
    return np.asarray(tb.BertForSequenceClassification(config).apply({"params": params}, IDS, MASK).logits)


def test_with_as_many_groups_as_layers_the_albert_is_the_bert(tmp_path: Path) -> None:
    config, params = tb.load_hf(TINY)
    shared = share(tb.Share(config.num_hidden_layers), config, params, NO_ROWS)
    np.testing.assert_allclose(logits(*shared), logits(config, params), atol=1e-6)
    tb.save_hf(tmp_path, *shared)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["AlbertForSequenceClassification"]
    again = tb.load_hf(tmp_path)
    assert again[0] == shared[0]
    jax.tree.map(np.testing.assert_array_equal, again[1], shared[1])


def test_a_group_has_the_parameters_of_its_first_layer() -> None:
    config, params = tb.load_hf(TINY)
    albert, shared = share(tb.Share(1), config, params, NO_ROWS)
    first, whole = (p["encoder"]["encoder"]["layer"] for p in (shared, params))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), first, whole)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(first)} == {1}
    assert encoder_macs(albert, shared, 9.0) == encoder_macs(config, params, 9.0)  # not faster
    expanded = unshared(albert, shared)
    assert expanded[0].num_hidden_groups == 3
    np.testing.assert_allclose(logits(*expanded), logits(albert, shared), atol=1e-6)


@pytest.mark.long
def test_gradients_of_shared_layers_are_the_sums_of_their_layers() -> None:
    config, params = tb.load_hf(ALBERT)
    whole = unshared(config, params)

    def loss(config: tb.BertConfig, params: Any) -> jax.Array:
        out = tb.BertForSequenceClassification(config).apply({"params": params}, IDS, MASK)
        return jnp.sum(jnp.sin(out.logits)) + jnp.sum(jnp.cos(out.hidden_states[2]))

    shared, each = (
        jax.jit(jax.grad(lambda p, c=c: loss(c, p)))(p)["encoder"]["encoder"]["layer"]
        for c, p in ((config, params), whole)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.reshape(2, 2, *b.shape[1:]).sum(axis=1), atol=2e-5), shared, each
    )


def test_states_scores_and_queries_are_those_of_every_layer() -> None:
    config, params = tb.load_hf(ALBERT)
    whole = unshared(config, params)
    layers = {"score_layers": (0, 3), "qkv_layers": (1, 2), "qkv_parts": 2}
    outputs = [
        tb.BertForSequenceClassification(c).apply({"params": p}, IDS, MASK, **layers)
        for c, p in ((config, params), whole)
    ]
    assert outputs[0].hidden_states.shape[0] == 5
    for name in ("hidden_states", "attention_scores", "qkv"):
        np.testing.assert_allclose(*(getattr(out, name) for out in outputs), atol=1e-6)


def test_a_student_of_an_albert_is_one_and_starts_as_a_copy() -> None:
    config, params = tb.load_hf(ALBERT)
    student = tb.student_config("2x8x16", config)
    assert (student.model_type, student.num_hidden_groups, student.embedding_size) == ("albert", 2, 6)
    assert tb.student_config("3x8x16", config).num_hidden_groups == 3
    copied = copy_layers(student, config, params, "uniform")["encoder"]["encoder"]["layer"]
    jax.tree.map(np.testing.assert_array_equal, copied, params["encoder"]["encoder"]["layer"])


def test_what_cannot_be_shared_is_refused() -> None:
    config, params = tb.load_hf(TINY)
    with pytest.raises(tb.InputError, match="2 groups do not divide 3 layers"):
        share(tb.Share(2), config, params, NO_ROWS)
    with pytest.raises(tb.InputError, match="groups is 0"):
        tb.Share(0)
    with pytest.raises(tb.InputError, match="A RoBERTa has no form with shared layers"):
        share(tb.Share(1), *tb.load_hf(FIXTURES / "tiny-roberta"), NO_ROWS)
    with pytest.raises(tb.InputError, match="num_hidden_groups 3 does not divide num_hidden_layers 4"):
        dataclasses.replace(tb.load_hf(ALBERT)[0], num_hidden_groups=3)
    hf = json.loads((ALBERT / "config.json").read_text())
    with pytest.raises(tb.InputError, match="inner_group_num is 2"):
        tb.BertConfig.from_hf(hf | {"inner_group_num": 2})


def test_shared_weights_are_written_once_in_onnx_and_int8_is_near() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(ALBERT)
    expected = logits(config, params)
    feed = {"input_ids": np.asarray(IDS, np.int64), "attention_mask": np.asarray(MASK, np.int64)}
    feed["token_type_ids"] = 0 * feed["input_ids"]
    for bits, tolerance in ((None, 1e-6), (7, 0.2 * expected.std())):
        model = onnx_model(config, params, bits)
        names = [tensor.name for tensor in model.graph.initializer]
        assert len([name for name in names if "intermediate.dense.weight" in name and "scale" not in name]) == 2
        got = onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], feed)[0]
        np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.long
def test_a_shared_student_learns_behind_the_whole_teacher(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    stages = (
        tb.Stage("transformer", epochs=4, learning_rate=5e-3),
        tb.Stage("prediction", epochs=6, learning_rate=5e-3),
    )
    experiment = distillation(teacher, teacher, reviews, stages=stages, compression=(tb.Share(2),))
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    config, params = tb.load_hf(result.directory)
    assert (config.model_type, config.num_hidden_groups, config.num_hidden_layers) == ("albert", 2, 4)
    assert count_parameters(params) < count_parameters(tb.load_hf(teacher)[1])
    assert tb.load_predictor(result.directory)(["we bought awful chips"])[0].label == "bad"
    again = tb.run(dataclasses.replace(experiment, model=str(result.directory), stages=stages), tmp_path / "again")
    assert again.scores["accuracy"] > 0.9


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_layers_is_shared_alone_and_onnx_stores_it_once(part: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(TINY)
    same, shared = share_part(tb.SharePart(part, 1), config, params, NO_ROWS)
    assert same == config
    layer, whole = (p["encoder"]["encoder"]["layer"] for p in (shared, params))
    for name in layer:
        expected = (lambda leaf: np.repeat(leaf[:1], 3, axis=0)) if name in PARTS[part] else np.asarray
        jax.tree.map(lambda a, b, of=expected: np.testing.assert_array_equal(a, of(b)), layer[name], whole[name])
    repeated = sum(2 * leaf[0].size for name in PARTS[part] for leaf in jax.tree.leaves(layer[name]))
    # of the model's bytes, no more than LayerNorms of ones and biases of zeros were stored once before
    sizes = [len(onnx_model(config, p).SerializeToString()) for p in (params, shared)]
    assert sizes[0] - sizes[1] > 0.9 * 4 * repeated
    assert note_shared(tb.SharePart(part, 1), config, shared).startswith(f"{repeated / 1e6:.1f} M")


@pytest.mark.long
def test_a_part_that_is_shared_stays_shared_in_training(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    stages = (
        tb.Stage("transformer", epochs=1, learning_rate=5e-3),
        tb.Stage("prediction", epochs=6, learning_rate=5e-3),
    )
    experiment = distillation(teacher, teacher, reviews, stages=stages, compression=(tb.SharePart("feed_forward", 2),))
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    layer, whole = (tb.load_hf(path)[1]["encoder"]["encoder"]["layer"] for path in (result.directory, teacher))
    for name in layer:
        for leaf, before in zip(jax.tree.leaves(layer[name]), jax.tree.leaves(whole[name]), strict=True):
            assert not np.array_equal(leaf[::2], before[::2])  # it has learnt
            assert np.array_equal(leaf[0], leaf[1]) == np.array_equal(leaf[2], leaf[3]) == (name != "attention")


def test_what_is_equal_by_chance_is_not_trained_as_one() -> None:
    """In a new model, all LayerNorms and biases are equal. Only the shared part stays so, also with other methods."""
    config, _ = tb.load_hf(TINY)
    config = dataclasses.replace(config, id2label=("a", "b"))
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    methods = (tb.Movement(0.5), tb.SharePart("attention", 1))
    objective = supervised_objective(config)
    for settings in methods:
        objective = build_method(settings).wrap(objective, config, NO_ROWS)
    trainable = objective.init(jax.random.key(1), params)
    zeros = np.zeros((2, 6), np.int32)
    batch = Batch(np.asarray(IDS), np.asarray(MASK), zeros, np.array([0, 1], np.int32), np.ones(2, np.float32))
    gradients = jax.grad(lambda tree: objective.loss(tree, {}, batch, tb.Hyper(1e-3, progress=0.5), None)[0])(
        trainable
    )
    layer = gradients["encoder"]["encoder"]["layer"]
    attention, inner = layer["attention"]["output"]["dense"]["kernel"], layer["intermediate"]["dense"]["bias"]
    assert np.any(attention[0])
    assert not np.any(attention[1:])  # they are the first layer's
    assert all(np.any(of_layer) for of_layer in inner)


def test_a_model_that_shares_whole_layers_has_no_part_to_share() -> None:
    with pytest.raises(tb.InputError, match="An ALBERT shares whole layers: leave out the part"):
        share_part(tb.SharePart("attention", 2), *tb.load_hf(ALBERT), NO_ROWS)
    with pytest.raises(tb.InputError, match="groups is 0; it must be at least 1"):
        tb.SharePart("attention", 0)
    with pytest.raises(tb.InputError, match="2 groups do not divide 3 layers"):
        share_part(tb.SharePart("attention", 2), *tb.load_hf(TINY), NO_ROWS)
