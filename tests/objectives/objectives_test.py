"""An objective reaches what it trains, ignores padding and filler, and adds up; official_test compares with torch."""

from __future__ import annotations

import dataclasses
import functools
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long
from small_pair import (
    STUDENT,
    STUDENT_PARAMS,
    TEACHER,
    TEACHER_PARAMS,
    assert_close,
    attention_gradients,
    make_batch,
    padded,
    value,
)

import tinybert_jax as tb
from tinybert_jax import losses
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.settings.objectives import teacher_layers

PRESETS = ["default", "paper", "official"]


def objectives(preset: str = "default") -> list[Objective]:
    return [
        transformer_objective(STUDENT, TEACHER, preset=preset),
        prediction_objective(STUDENT, TEACHER, preset),
        supervised_objective(STUDENT),
    ]


@pytest.mark.parametrize(
    ("layer_map", "m", "n", "expected"),
    [
        ("uniform", 4, 12, (3, 6, 9, 12)),
        ("uniform", 3, 4, (1, 3, 4)),
        ("uniform", 5, 12, (2, 5, 7, 10, 12)),
        ("uniform", 4, 2, (1, 1, 2, 2)),
        ("top", 3, 12, (10, 11, 12)),
        ("bottom", 3, 12, (1, 2, 3)),
        ("top", 3, 2, (1, 1, 2)),
        ("bottom", 3, 2, (1, 2, 2)),
        ((2, 2, 7), 3, 12, (2, 2, 7)),
    ],
)
def test_layer_maps_for_any_depths(layer_map, m: int, n: int, expected: tuple[int, ...]) -> None:
    assert teacher_layers(layer_map, m, n) == expected


@pytest.mark.parametrize(
    ("layer_map", "message"), [((1, 2), "a layer for each of the student's 3"), ((0, 1, 2), "from 1 to 12")]
)
def test_explicit_layer_maps_are_checked(layer_map: tuple[int, ...], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        teacher_layers(layer_map, 3, 12)


def test_transformer_loss_is_the_sum_of_equations_7_to_9() -> None:
    objective = transformer_objective(STUDENT, TEACHER, layer_map=(3, 2), preset="paper")
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    teacher = tb.BertModel(TEACHER).apply({"params": TEACHER_PARAMS["encoder"]}, *inputs)
    student = tb.BertModel(STUDENT).apply({"params": STUDENT_PARAMS["encoder"]}, *inputs)
    kernels = {name: np.asarray(p["kernel"]) for name, p in trainable["projections"].items()}
    embedding = np.mean((student.hidden_states[0] @ kernels["embedding"] - teacher.hidden_states[0]) ** 2)
    expected = {"embedding": embedding}
    for m, g in ((1, 3), (2, 2)):
        hidden = student.hidden_states[m] @ kernels["hidden"] - teacher.hidden_states[g]
        expected[f"hidden/{m}"] = np.mean(hidden**2)
        expected[f"attention/{m}"] = np.mean((student.attention_scores[m - 1] - teacher.attention_scores[g - 1]) ** 2)
    loss, metrics = objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, tb.Hyper(), None)
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "dtype"), rest_long(product(PRESETS, ["float32", "bfloat16"]), [("default", "float32")])
)
def test_gradient_of_the_attention_loss_is_that_through_the_scores(preset: str, dtype: str) -> None:
    student, compute = STUDENT, tb.Compute(dtype)
    counted = jnp.ones((4, 8)) if preset == "paper" else make_batch().attention_mask

    def plain(student_output: tb.BertOutput, teacher_output: tb.BertOutput) -> jax.Array:
        loss = jax.vmap(functools.partial(losses.attention_mse, padding="zero" if preset == "official" else "exclude"))
        pairs = (
            (student_output.attention_scores[m], teacher_output.attention_scores[g - 1]) for m, g in ((0, 3), (1, 2))
        )
        return sum(jnp.mean(loss(*pair, counted)) for pair in pairs)

    objective = transformer_objective(student, TEACHER, layer_map=(3, 2), preset=preset, compute=compute)
    assert_close(*attention_gradients(objective, student, plain, compute), 1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.long
def test_memory_grows_by_less_than_the_scores_of_a_layer_with_every_layer() -> None:
    rows, tokens = 2, 256

    def temporary_bytes(layers: int) -> int:
        student = dataclasses.replace(STUDENT, num_hidden_layers=layers)
        objective = transformer_objective(student, TEACHER)
        ids = jnp.zeros((1, 2), int)
        params = jax.eval_shape(tb.BertForSequenceClassification(student).init, jax.random.key(0), ids)["params"]
        trainable = jax.eval_shape(objective.init, jax.random.key(0), params)
        batch = make_batch(rows=rows, length=tokens)
        targets = jax.eval_shape(objective.targets, TEACHER_PARAMS, batch)

        def gradient(trainable: tb.Params, targets: Any) -> tb.Params:
            return jax.grad(objective.loss, has_aux=True)(trainable, targets, batch, tb.Hyper(), jax.random.key(1))[0]

        return jax.jit(gradient).lower(trainable, targets).compile().memory_analysis().temp_size_in_bytes

    scores_of_a_layer = 4 * rows * STUDENT.num_attention_heads * tokens**2
    assert (temporary_bytes(8) - temporary_bytes(4)) / 4 < scores_of_a_layer / 2


@pytest.mark.parametrize("preset", rest_long(PRESETS, ["default"]))
@pytest.mark.parametrize("index", [0, 1, 2], ids=["transformer", "prediction", "supervised"])
def test_a_batch_of_numpy_arrays_as_the_data_give_it_is_as_good(index: int, preset: str) -> None:
    objective, batch = objectives(preset)[index], make_batch()
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)
    of_numpy = jax.tree.map(np.asarray, batch)
    assert value(objective, trainable, of_numpy) == value(objective, trainable, batch)


def test_weights_of_the_terms_are_those_of_hyper() -> None:
    objective = transformer_objective(STUDENT, TEACHER)
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    targets = objective.targets(TEACHER_PARAMS, batch)
    hyper = tb.Hyper(embedding_weight=2.0, attention_weight=0.0, hidden_weight=0.5)
    loss, metrics = objective.loss(trainable, targets, batch, hyper, None)
    expected = 2 * metrics["embedding"] + 0.5 * (metrics["hidden/1"] + metrics["hidden/2"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["transformer", "prediction", "supervised"])
def test_default_does_not_depend_on_how_far_the_batch_is_padded(index: int) -> None:
    objective = objectives()[index]
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    longer = padded(batch)
    np.testing.assert_allclose(value(objective, trainable, longer), value(objective, trainable, batch), rtol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_other_presets_count_padding(preset: str) -> None:
    objective = objectives(preset)[0]
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)

    def attention(batch: tb.Batch) -> float:
        targets = objective.targets(TEACHER_PARAMS, batch)
        return float(objective.loss(trainable, targets, batch, tb.Hyper(), None)[1]["attention/1"])

    # rounding changes it by less than 1e-5
    assert abs(attention(padded(make_batch())) / attention(make_batch()) - 1) > 1e-3


@pytest.mark.parametrize("index", [0, 1, 2], ids=["transformer", "prediction", "supervised"])
def test_filler_rows_change_nothing(index: int) -> None:
    objective = objectives()[index]
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]), batch)
    np.testing.assert_allclose(value(objective, trainable, filled), value(objective, trainable, batch), rtol=1e-5)


@pytest.mark.long
def test_a_batch_of_filler_alone_gives_0_and_no_gradient() -> None:
    for objective in objectives():
        trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)
        empty = jax.tree.map(jnp.zeros_like, make_batch())
        loss, grads = jax.jit(jax.value_and_grad(lambda p, o=objective, e=empty: value(o, p, e)))(trainable)
        assert float(loss) == 0.0
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_every_trainable_leaf_of_every_stage_is_reached(preset: str) -> None:
    for objective in objectives(preset):
        trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)
        grads = jax.jit(jax.grad(lambda p, o=objective: value(o, p, make_batch())))(trainable)
        unreached = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(grads) if not np.any(leaf)]
        assert not unreached


def test_transformer_stage_trains_neither_pooler_nor_head_and_exports_no_projection() -> None:
    objective = transformer_objective(STUDENT, TEACHER)
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS)
    assert set(trainable["encoder"]) == {"embeddings", "encoder"}
    moved = jax.tree.map(lambda x: x + 1, trainable)
    exported = objective.export(moved, STUDENT_PARAMS)
    assert jax.tree.structure(exported) == jax.tree.structure(STUDENT_PARAMS)
    np.testing.assert_array_equal(exported["classifier"]["kernel"], STUDENT_PARAMS["classifier"]["kernel"])
    np.testing.assert_array_equal(
        exported["encoder"]["pooler"]["dense"]["kernel"], STUDENT_PARAMS["encoder"]["pooler"]["dense"]["kernel"]
    )
    word = ("embeddings", "word_embeddings", "embedding")
    before, after = STUDENT_PARAMS["encoder"], exported["encoder"]
    for name in word:
        before, after = before[name], after[name]
    np.testing.assert_array_equal(after, before + 1)


def test_prediction_loss_is_soft_cross_entropy_and_official_divides_by_the_classes() -> None:
    batch, hyper = make_batch(), tb.Hyper(temperature=2.0)
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    logits = [
        tb.BertForSequenceClassification(config).apply({"params": params}, *inputs).logits
        for config, params in ((STUDENT, STUDENT_PARAMS), (TEACHER, TEACHER_PARAMS))
    ]
    expected = np.mean([losses.soft_cross_entropy(s, t, 2.0) for s, t in zip(*logits, strict=True)])
    default = value(prediction_objective(STUDENT, TEACHER), STUDENT_PARAMS, batch, hyper)
    official = value(prediction_objective(STUDENT, TEACHER, "official"), STUDENT_PARAMS, batch, hyper)
    np.testing.assert_allclose(default, 4 * expected, rtol=1e-5)  # temperature**2
    np.testing.assert_allclose(official, expected / 3, rtol=1e-5)


def test_regression_learns_from_the_teacher_and_officially_from_the_gold_score() -> None:
    student, teacher = (dataclasses.replace(config, id2label=("score",)) for config in (STUDENT, TEACHER))
    params = tb.init_params(tb.BertForSequenceClassification(student), jax.random.key(1))
    teacher_params = tb.init_params(tb.BertForSequenceClassification(teacher), jax.random.key(0))
    batch = make_batch()._replace(labels=jnp.array([1.0, 2.0, 3.0, 4.0]))
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    predicted = tb.BertForSequenceClassification(student).apply({"params": params}, *inputs).logits[:, 0]
    taught = tb.BertForSequenceClassification(teacher).apply({"params": teacher_params}, *inputs).logits[:, 0]
    for preset, target in (("default", taught), ("official", batch.labels)):
        objective = prediction_objective(student, teacher, preset)
        loss, _ = objective.loss(params, objective.targets(teacher_params, batch), batch, tb.Hyper(), None)
        np.testing.assert_allclose(loss, np.mean((predicted - target) ** 2), rtol=1e-5)


def test_dropout_of_the_student_comes_from_the_key_and_the_teacher_has_none() -> None:
    objective = transformer_objective(STUDENT, TEACHER)
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS), make_batch()
    targets = objective.targets(TEACHER_PARAMS, batch)
    jax.tree.map(np.testing.assert_array_equal, targets, objective.targets(TEACHER_PARAMS, batch))
    one, again, other = (
        float(objective.loss(trainable, targets, batch, tb.Hyper(), jax.random.key(k))[0]) for k in (0, 0, 1)
    )
    assert one == again != other


def test_another_number_of_labels_is_refused() -> None:
    with pytest.raises(tb.InputError, match="labels: the student has 2 and the teacher 3"):
        prediction_objective(dataclasses.replace(STUDENT, id2label=("a", "b")), TEACHER)


def fit_dense(width: int = 24) -> dict:
    random = np.random.default_rng(3)
    kernel, bias = random.normal(size=(16, width)), random.normal(size=width)
    return {"kernel": jnp.array(kernel, jnp.float32), "bias": jnp.array(bias, jnp.float32)}


def stacked_fit_dense() -> dict:
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), fit_dense())


BROUGHT = {
    "fit_dense": {"fit_dense": fit_dense()},
    "fit_denses": {"fit_denses": stacked_fit_dense()},
    "projections": {"projections": {name: {"kernel": fit_dense()["kernel"]} for name in ("embedding", "hidden")}},
}


@pytest.mark.parametrize(
    ("name", "preset"),
    rest_long(product(BROUGHT, PRESETS), [("projections", "default")]),
)
def test_projections_that_a_student_brings_are_trained_on_and_not_exported(name: str, preset: str) -> None:
    """The original code starts the `fit_denses` of its own second-version checkpoints anew, and says nothing."""
    objective = transformer_objective(STUDENT, TEACHER, preset=preset)
    trainable = objective.init(jax.random.key(2), STUDENT_PARAMS | BROUGHT[name])
    brought = BROUGHT[name]["projections"] if name == "projections" else BROUGHT[name]
    jax.tree.map(np.testing.assert_array_equal, trainable["projections"], brought)
    grads = jax.jit(jax.grad(lambda p: value(objective, p, make_batch())))(trainable)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["projections"]))
    exported = objective.export(trainable, STUDENT_PARAMS | BROUGHT[name])
    assert jax.tree.structure(exported) == jax.tree.structure(STUDENT_PARAMS)


@pytest.mark.parametrize("name", ["fit_dense", pytest.param("fit_denses", marks=pytest.mark.long)])
def test_every_state_passes_its_own_projection_or_the_shared_one(name: str) -> None:
    objective = transformer_objective(STUDENT, TEACHER, layer_map=(3, 2), preset="paper")
    trainable, batch = objective.init(jax.random.key(2), STUDENT_PARAMS | BROUGHT[name]), make_batch()
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    teacher = tb.BertModel(TEACHER).apply({"params": TEACHER_PARAMS["encoder"]}, *inputs)
    student = tb.BertModel(STUDENT).apply({"params": STUDENT_PARAMS["encoder"]}, *inputs)
    _, metrics = objective.loss(trainable, objective.targets(TEACHER_PARAMS, batch), batch, tb.Hyper(), None)
    kernel, bias = (np.asarray(fit_dense()[part]) for part in ("kernel", "bias"))
    for m, (g, metric) in enumerate([(0, "embedding"), (3, "hidden/1"), (2, "hidden/2")]):
        times = m + 1 if name == "fit_denses" else 1
        projected = np.asarray(student.hidden_states[m]) @ (times * kernel) + times * bias
        np.testing.assert_allclose(metrics[metric], np.mean((projected - teacher.hidden_states[g]) ** 2), rtol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_projections_to_another_width_than_the_teachers_are_refused(preset: str) -> None:
    objective = transformer_objective(STUDENT, TEACHER, preset=preset)
    with pytest.raises(tb.InputError, match="fit_dense leads from width 16 to 32, but the teacher is 24 wide"):
        objective.init(jax.random.key(2), STUDENT_PARAMS | {"fit_dense": fit_dense(32)})


@pytest.mark.long
@pytest.mark.parametrize(("depth", "mapped"), [(6, (1, 1, 2, 3, 3, 4)), (3, (1, 3, 4))])
def test_depths_that_do_not_divide_and_deeper_students_learn_from_the_mapped_layers(depth: int, mapped) -> None:
    config = dataclasses.replace(STUDENT, num_hidden_layers=depth)
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(1))
    objective = transformer_objective(config, TEACHER)
    trainable, batch = objective.init(jax.random.key(2), params), make_batch()
    targets = objective.targets(TEACHER_PARAMS, batch)
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    teacher = tb.BertModel(TEACHER).apply({"params": TEACHER_PARAMS["encoder"]}, *inputs, qkv_layers=(0, 1, 2, 3))
    queries_and_keys = np.moveaxis(np.asarray(teacher.qkv)[:, :2], 2, 0)
    np.testing.assert_array_equal(targets["attention"], queries_and_keys[:, np.array(mapped) - 1])
    np.testing.assert_array_equal(targets["hidden"], teacher.hidden_states.swapaxes(0, 1)[:, np.array(mapped)])
    assert np.isfinite(objective.loss(trainable, targets, batch, tb.Hyper(), None)[0])


def test_layers_cannot_be_taught_across_vocabularies() -> None:
    batch = make_batch()._replace(teacher_inputs=tuple(make_batch()[:3]))
    with pytest.raises(ValueError, match="do not correspond"):
        transformer_objective(STUDENT, TEACHER).targets(TEACHER_PARAMS, batch)
