"""Structured pruning: importance, search, repair, removal, and what becomes of a pruned model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, distillation, logged

import tinybert_jax as tb
from tinybert_jax.batch import Params
from tinybert_jax.compression import prune
from tinybert_jax.compression.calibration import calibration_batches, labelled_rows
from tinybert_jax.compression.prune import Kept, select
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.export.export import program
from tinybert_jax.models.heads import CLASSES, head_losses
from tinybert_jax.models.parameters import encoder_macs

FIXTURES = TINY.parent


def rows(config: tb.BertConfig, labels: np.ndarray, seed: int = 0) -> Tokens:
    """Rows of 4 to 10 tokens, whose first is always the same."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 11, len(labels))
    if labels.ndim == 2 and labels.shape[1] == 10:  # a label for each token
        labels = np.concatenate([row[:length] for row, length in zip(labels, lengths, strict=True)])
    ids = random.integers(5, config.vocab_size, lengths.sum()).astype(np.int32)
    offsets = np.append(0, np.cumsum(lengths))
    return Tokens(ids, offsets, lengths.astype(np.int32), labels, "rows", config.pad_token_id)


def widths(params: Params, head_dim: int) -> tuple[list[int], list[int]]:
    """Heads and units of each layer that the output projections read."""
    layer = params["encoder"]["encoder"]["layer"]
    kernels = (layer["attention"]["output"]["dense"]["kernel"], layer["output"]["dense"]["kernel"])
    read = [np.any(np.asarray(kernel) != 0, axis=-1) for kernel in kernels]
    heads = read[0].reshape(len(read[0]), -1, head_dim).any(axis=2)
    return heads.sum(axis=1).tolist(), read[1].sum(axis=1).tolist()


def test_mask_gradients_are_the_changes_of_the_loss_by_finite_differences() -> None:
    config, params = tb.load_hf(TINY)
    loss_of = head_losses("sequence", config)
    batch = rows(config, np.array([0, 1, 2, 1], np.int32)).batch(np.arange(4), 10)
    batch = jax.tree.map(jnp.asarray, batch._replace(example_mask=np.array([1, 1, 0, 1], np.float32)))
    gradients = prune._mask_gradients(config, "sequence", loss_of)(params, batch)

    def loss(masks: Kept) -> float:
        logits = program(config, params)(prune.masked(params, masks), *batch[:3])
        return float(jnp.sum(loss_of.hard(logits, batch) * batch.example_mask))

    ones = Kept(*(np.ones(leaf.shape, np.float32) for leaf in gradients))
    for name, at in (("heads", (1, 2)), ("units", (0, 5)), ("units", (2, 40))):
        sides = []
        for change in (1e-2, -1e-2):
            mask = getattr(ones, name).copy()
            mask[at] += change
            sides.append(loss(ones._replace(**{name: jnp.asarray(mask)})))
        np.testing.assert_allclose(getattr(gradients, name)[at], (sides[0] - sides[1]) / 2e-2, atol=1e-3)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_the_search_finds_the_largest_importance_within_the_budget(share: float, uniform: bool) -> None:
    random = np.random.default_rng(0)
    importance = Kept(random.random((2, 3)), random.random((2, 4)))
    every, cost = Kept(np.ones((2, 3), bool), np.ones((2, 4), bool)), (3.0, 2.0)
    chosen = select(importance, every, cost, share, uniform)
    budget = share * (6 * cost[0] + 8 * cost[1])

    def worth(kept: Kept) -> tuple[float, float]:
        spent = sum(c * mask.sum() for c, mask in zip(cost, kept, strict=True))
        return spent, sum(float(values[mask].sum()) for values, mask in zip(importance, kept, strict=True))

    best = 0.0
    for bits in range(2**14):  # all subsets
        mask = np.array([bits >> i & 1 for i in range(14)], bool)
        kept = Kept(mask[:6].reshape(2, 3), mask[6:].reshape(2, 4))
        if uniform and any(len({*part.sum(axis=1).tolist()}) > 1 or not part.any() for part in kept):
            continue
        spent, value = worth(kept)
        best = max(best, value) if spent <= budget else best
    spent, value = worth(chosen)
    assert spent <= budget
    assert value == pytest.approx(best)


def test_what_was_removed_is_not_chosen_again() -> None:
    importance = Kept(np.array([[9.0, 1.0]]), np.array([[9.0, 8.0, 1.0]]))
    before = Kept(np.array([[False, True]]), np.array([[True, False, True]]))
    chosen = select(importance, before, (1.0, 1.0), 0.99, uniform=False)
    assert not (chosen.heads & ~before.heads).any()
    assert not (chosen.units & ~before.units).any()


def test_the_fit_is_better_than_no_fit_on_held_out_tokens_and_else_changes_nothing() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 12)).astype(np.float32)
    y = (x @ random.normal(size=(12, 5)) + 3.0).astype(np.float32)
    kernel, bias = prune._fit(x, y, np.zeros((12, 5), np.float32), np.zeros(5, np.float32))
    np.testing.assert_allclose(x @ kernel + bias, y, atol=0.01)
    # targets that nothing predicts: a change could only be worse
    for tokens in (1, 20, 40, 110):
        noise = random.normal(size=(tokens, 5)).astype(np.float32)
        kernel, bias = prune._fit(x[:tokens], noise, np.zeros((12, 5), np.float32), np.zeros(5, np.float32))
        assert not kernel.any()
    kernel, bias = prune._fit(x[:, :0], y, np.zeros((0, 5), np.float32), np.zeros(5, np.float32))
    np.testing.assert_allclose(bias, y.mean(axis=0))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("tiny-bert", np.arange(40, dtype=np.int32) % 3, marks=pytest.mark.long),
        pytest.param("tiny-bert-token", np.arange(400, dtype=np.int32).reshape(40, 10) % 5, marks=pytest.mark.long),
        ("tiny-bert-qa", np.tile(np.array([[1, 2]], np.int32), (40, 1))),
        pytest.param("tiny-roberta", np.arange(40, dtype=np.int32) % 3, marks=pytest.mark.long),
        pytest.param("tiny-distilbert", np.arange(40, dtype=np.int32) % 3, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("uniform", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_kind_of_task_and_family_is_pruned_to_its_share(name: str, labels: np.ndarray, uniform: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(FIXTURES / name)
    examples = rows(config, labels)
    settings = tb.Prune(macs=0.6, uniform=uniform, rounds=2)
    smaller, pruned = prune.prune(settings, config, params, examples)
    again = prune.prune(settings, config, params, examples)[1]
    jax.tree.map(np.testing.assert_array_equal, pruned, again)  # nothing is random
    tokens = float(examples.lengths.mean())
    share = encoder_macs(smaller, pruned, tokens) / encoder_macs(config, params, tokens)
    assert 0.3 < share <= 0.6 or uniform
    heads, units = widths(pruned, config.attention_head_dim)
    assert (smaller.num_attention_heads, smaller.intermediate_size) == (max(1, *heads), max(1, *units))
    if uniform:
        assert len({*heads}) == len({*units}) == 1
    # what is written without the zeros is the same function
    batch = examples.batch(np.arange(6), 10)
    arrays = [jnp.asarray(array) for array in batch[:3]]
    expected = np.asarray(program(smaller, pruned)(pruned, *arrays))
    session = onnxruntime.InferenceSession(onnx_model(smaller, pruned).SerializeToString())
    named = dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch[:3], strict=True))
    feed = {put.name: named[put.name].astype(np.int64) for put in session.get_inputs()}
    outputs = session.run(None, feed)
    got = np.stack(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    real = batch.attention_mask > 0 if expected.ndim == 3 else slice(None)
    np.testing.assert_allclose(got[real], expected[real], atol=2e-6)


def test_layers_without_heads_or_units_are_written_as_their_bias() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(TINY)
    layer = params["encoder"]["encoder"]["layer"]
    layer["attention"]["output"]["dense"]["kernel"] = layer["attention"]["output"]["dense"]["kernel"].copy()
    layer["output"]["dense"]["kernel"] = layer["output"]["dense"]["kernel"].copy()
    layer["attention"]["output"]["dense"]["kernel"][0] = 0
    layer["output"]["dense"]["kernel"][1] = 0
    ids = np.arange(5, 13, dtype=np.int64)[None]
    expected = tb.BertForSequenceClassification(config).apply({"params": params}, jnp.asarray(ids.astype(np.int32)))
    model = onnx_model(config, params)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    logits = onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], feed)[0]
    np.testing.assert_allclose(logits, expected.logits, atol=1e-6)
    assert not [tensor.name for tensor in model.graph.initializer if "layer.0.attention.self" in tensor.name]


@pytest.mark.long
def test_a_pruned_teacher_keeps_its_skill_and_learns_on_with_its_zeros(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    """In one run: pruned at once, then both stages behind the whole model; and on the command line."""
    stages = (
        tb.Stage("transformer", max_steps=4, learning_rate=1e-3),
        tb.Stage("prediction", max_steps=12, learning_rate=1e-3),
    )
    experiment = distillation(teacher, teacher, reviews, stages=stages, compression=(tb.Prune(0.4, rounds=2),))
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    config, trained = tb.load_hf(result.directory)
    whole = tb.load_hf(teacher)
    assert encoder_macs(config, trained, 12.0) <= 0.45 * encoder_macs(*whole, 12.0)
    source, methods = tb.DataSource(data=str(reviews)), experiment.compression
    alone = tb.compress(
        str(teacher), "classification", source, methods, tmp_path / "alone", max_length=experiment.max_length
    )
    assert [link.name for link in alone] == ["whole", "prune"]
    assert alone[1].scores["accuracy"] > 0.85
    of_both = (tb.load_hf(path)[1] for path in (tmp_path / "alone", result.directory))
    before, after = (widths(params, config.attention_head_dim) for params in of_both)
    assert before == after  # zeros stayed zeros
    assert logged(tmp_path / "run")
    described = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["stages"][0]["compression"]
    assert described == [{"name": "prune", "macs": 0.4, "uniform": False, "rounds": 2, "rows": 1024}]


def test_importance_is_that_of_the_labelled_rows_however_few_they_are() -> None:
    config, params = tb.load_hf(TINY)
    labels = np.full(400, -1, np.int32)
    labels[[50, 200]] = 1, 2
    both = rows(config, labels)
    chosen = [np.arange(both.offsets[row], both.offsets[row + 1]) for row in (50, 200)]
    lengths = both.lengths[[50, 200]]
    offsets = np.append(0, np.cumsum(lengths))
    alone = Tokens(both.input_ids[np.concatenate(chosen)], offsets, lengths.astype(np.int32), labels[[50, 200]], "two")
    gradients = [calibration_batches(labelled_rows(each, CLASSES.labelled, 16), 16) for each in (both, alone)]
    jax.tree.map(np.testing.assert_array_equal, *gradients)
    pruned = prune.prune(tb.Prune(rows=16), config, params, both)
    assert encoder_macs(*pruned, 8.0) < 0.6 * encoder_macs(config, params, 8.0)


def test_rows_without_labels_and_models_without_a_head_are_refused() -> None:
    config, params = tb.load_hf(TINY)
    unlabelled = rows(config, np.full(20, -1, np.int32))
    with pytest.raises(tb.InputError, match="importance by the labels, and no row has one"):
        prune.prune(tb.Prune(), config, params, unlabelled)
    with pytest.raises(tb.InputError, match="prune needs a model with the head of a task"):
        prune.prune(tb.Prune(), config, {"encoder": params["encoder"]}, unlabelled)


def test_a_student_that_is_not_fine_tuned_is_not_pruned(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    for student in (blank_student, Path("2x32")):
        experiment = distillation(teacher, student, reviews, compression=(tb.Prune(),))
        with pytest.raises(tb.InputError, match="'prune' needs a model that is fine-tuned on the task"):
            tb.run(experiment, tmp_path / "run")


@pytest.mark.parametrize(("changes", "message"), [({"macs": 1.0}, "macs is 1.0"), ({"rounds": 0}, "rounds is 0")])
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Prune(**changes)


def test_heads_keep_their_numbers_where_the_largest_layer_keeps_all() -> None:
    """The layer losses compare heads of the same number with the teacher's."""
    config, params = tb.load_hf(TINY)
    heads = np.ones((config.num_hidden_layers, config.num_attention_heads), bool)
    heads[0, 0] = False
    units = np.ones((config.num_hidden_layers, config.intermediate_size), bool)
    smaller, model = prune.removed(config, jax.tree.map(np.asarray, params), prune.Kept(heads, units))
    assert smaller.num_attention_heads == config.num_attention_heads
    query, whole = (p["encoder"]["encoder"]["layer"]["attention"]["self"]["query"]["kernel"] for p in (model, params))
    width = config.attention_head_dim
    assert not np.any(query[0, :, :width])
    np.testing.assert_array_equal(query[0, :, width:], np.asarray(whole)[0, :, width:])
    np.testing.assert_array_equal(query[1:], np.asarray(whole)[1:])


@pytest.mark.long
def test_a_pruned_model_of_unlike_layers_is_pruned_to_the_share_of_what_is_left() -> None:
    config, params = tb.load_hf(TINY)
    examples = rows(config, np.arange(40, dtype=np.int32) % 3)
    first = prune.prune(tb.Prune(0.6, rounds=1), config, params, examples)
    tokens = float(examples.lengths.mean())
    before = encoder_macs(*first, tokens)
    assert before < 0.9 * encoder_macs(first[0], jax.tree.map(np.ones_like, first[1]), tokens)  # padded with zeros
    second = prune.prune(tb.Prune(0.5, rounds=1), *first, examples)
    assert 0.3 * before < encoder_macs(*second, tokens) <= 0.5 * before
