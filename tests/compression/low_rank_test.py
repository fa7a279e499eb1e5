"""Low-rank factorisation: the factors, the models that have them, their training, and their way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, distillation, rest_long

import tinybert_jax as tb
from tinybert_jax.compression.calibration import calibration_batches, id_counts
from tinybert_jax.compression.low_rank import _decompose, _factorise_words, factorise
from tinybert_jax.compression.prune import prune
from tinybert_jax.compression.walk import DENSE, at, replaced
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.export.export import program
from tinybert_jax.models.config import Ranks
from tinybert_jax.models.layers import word_table
from tinybert_jax.models.parameters import count_parameters, encoder_macs, forward_flops
from tinybert_jax.students.presets import student_config

FIXTURES = TINY.parent
MODELS = sorted(path.name for path in FIXTURES.glob("tiny-*") if "mobilebert" not in path.name)  # has factors
RANDOM = np.random.default_rng(0)


def rows(config: tb.BertConfig, count: int = 40, classes: int = 2) -> Tokens:
    """Rows of 3 to 8 tokens with labels."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 9, count).astype(np.int32)
    ids = random.integers(5, config.vocab_size, lengths.sum()).astype(np.int32)
    labels = (np.arange(count) % classes).astype(np.int32)
    return Tokens(ids, np.append(0, np.cumsum(lengths)), lengths, labels, "rows", config.pad_token_id)


def inputs_of(examples: Tokens) -> list[jax.Array]:
    return [jnp.asarray(array) for array in examples.batch(np.arange(6), 8, 0)[:3]]


def outputs(config: tb.BertConfig, params: Any, inputs: list[jax.Array]) -> np.ndarray:
    return np.asarray(program(config, params)(params, *inputs))


def multiplied(config: tb.BertConfig, params: Any) -> Any:
    """The parameters of the same model without factors."""
    layers = params["encoder"]["encoder"]["layer"]
    for path in DENSE.values():
        dense = at(layers, path)
        kernel = np.asarray(dense["down"]["kernel"]) @ dense["up"]["kernel"]
        layers = replaced(layers, path, {"kernel": kernel, "bias": dense["up"]["bias"]})
    embeddings = dict(params["encoder"]["embeddings"])
    table = np.asarray(word_table(config, embeddings))
    del embeddings["word_embeddings_projection"]
    embeddings["word_embeddings"] = {"embedding": table}
    return params | {
        "encoder": params["encoder"]
        | {"embeddings": embeddings, "encoder": params["encoder"]["encoder"] | {"layer": layers}}
    }


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_factors_change_the_outputs_least(rank: int) -> None:
    mixing = RANDOM.normal(size=(10, 10)) * np.geomspace(1, 0.01, 10)
    x, kernel = RANDOM.normal(size=(500, 10)) @ mixing, RANDOM.normal(size=(10, 8))

    def error(approximation: np.ndarray) -> float:
        return float(np.linalg.norm(x @ kernel - x @ approximation))

    down, up = _decompose(kernel, x.T @ x, rank)
    # no matrix of that rank is nearer to x @ kernel than its own best approximation, which is known (Eckart and Young)
    best = float(np.linalg.norm(np.linalg.svd(x @ kernel, compute_uv=False)[rank:]))
    assert error(down @ up) == pytest.approx(best, rel=1e-3, abs=1e-6)
    u, s, v = np.linalg.svd(kernel, full_matrices=False)
    assert error(down @ up) < error(u[:, :rank] * s[:rank] @ v[:rank])
    # all ranks are of one size, for int8
    sizes = np.linalg.norm(up, axis=1)
    assert sizes.max() < 4 * sizes.min()


def test_inputs_that_never_vary_do_no_harm() -> None:
    kernel = RANDOM.normal(size=(6, 5))
    x = np.zeros((50, 6))
    x[:, 0] = 1.0
    down, up = _decompose(kernel, x.T @ x, 1)
    np.testing.assert_allclose(x @ down @ up, x @ kernel, atol=1e-4)
    assert not _decompose(np.zeros((6, 5)), x.T @ x, 2)[0].any()


@pytest.mark.parametrize("name", rest_long(MODELS))
def test_every_family_and_head_is_factorised_and_loads_again(name: str, tmp_path: Path) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    examples = rows(config)
    smaller, factors = factorise(tb.LowRank(0.5, 0.5), config, params, examples)
    assert all(rank > 0 for rank in smaller.ranks)
    assert count_parameters(factors) < count_parameters(params)
    assert encoder_macs(smaller, factors, 6.0) < 0.7 * encoder_macs(config, params, 6.0)
    assert forward_flops(smaller, 6) == 2 * encoder_macs(smaller, factors, 6.0)
    tb.save_hf(tmp_path, smaller, factors)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"].startswith("slim-")
    again, loaded = tb.load_hf(tmp_path)
    assert again == smaller
    jax.tree.map(np.testing.assert_array_equal, loaded, factors)
    # the factors are what their products are
    inputs = inputs_of(examples)
    expected = outputs(config, multiplied(smaller, factors), inputs)
    np.testing.assert_allclose(outputs(smaller, factors, inputs), expected, atol=2e-5)


@pytest.mark.parametrize(
    "name", rest_long(["tiny-bert", "tiny-bert-mlm", "tiny-albert", "tiny-roberta"], ["tiny-bert"])
)
@pytest.mark.parametrize("pruned", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_onnx_file_is_the_model(name: str, pruned: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(FIXTURES / name)
    examples = rows(config, classes=config.num_labels)
    if pruned:
        if "classifier" not in params:
            pytest.skip("a masked LM cannot be pruned")
        config, params = prune(tb.Prune(0.5, rounds=1), config, params, examples)
    before = encoder_macs(config, params, 6.0)
    config, params = factorise(tb.LowRank(0.6, 0.5), config, params, examples)
    model = onnx_model(config, params)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    inputs = inputs_of(examples)
    named = zip(("input_ids", "attention_mask", "token_type_ids"), inputs, strict=True)
    asked = {put.name for put in session.get_inputs()}
    feed = {key: np.asarray(array, np.int64) for key, array in named if key in asked}
    expected = outputs(config, params, inputs)
    real = np.asarray(inputs[1], bool) if expected.ndim == 3 else slice(None)
    np.testing.assert_allclose(session.run(None, feed)[0][real], expected[real], atol=2e-6)
    if pruned:  # rows and columns of zeros are factors of zeros
        assert encoder_macs(config, params, 6.0) < before
        heads = np.asarray(params["encoder"]["encoder"]["layer"]["attention"]["self"]["query"]["up"]["kernel"])
        assert (heads == 0).any(axis=(0, 1)).any() or config.num_attention_heads * config.attention_head_dim <= 8


def test_frequent_words_are_nearer_to_what_they_were() -> None:
    config, params = tb.load_hf(TINY)
    counts = np.zeros(config.vocab_size, np.int64)
    counts[10:16] = 1000
    table = np.asarray(params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    errors = []
    for weights in (counts, np.zeros_like(counts)):
        rank, factors = _factorise_words(0.3, params, weights)
        config = dataclasses.replace(config, ranks=Ranks(word_embeddings=rank))
        product = np.asarray(word_table(config, factors["encoder"]["embeddings"]))
        errors.append(np.abs(product - table)[10:16].mean())
    assert errors[0] < 0.5 * errors[1]


def test_ids_are_counted_and_padding_is_not() -> None:
    config, _ = tb.load_hf(TINY)
    examples = rows(config, 7)
    expected = np.bincount(examples.input_ids, minlength=config.vocab_size)
    np.testing.assert_array_equal(id_counts(examples, config.vocab_size), expected)
    assert sum(int(batch.attention_mask.sum()) for batch in calibration_batches(examples, 3)) > 0


def test_methods_that_cannot_follow_say_so() -> None:
    config, params = tb.load_hf(TINY)
    examples = rows(config)
    factors = factorise(tb.LowRank(0.5), config, params, examples)
    with pytest.raises(tb.InputError, match="low rank cannot follow low rank: the dense layers are factors already"):
        factorise(tb.LowRank(0.5), *factors, examples)
    with pytest.raises(tb.InputError, match="pruning cannot follow low rank"):
        prune(tb.Prune(0.5), *factors, examples)
    quantised = dataclasses.replace(config, weight_bits=8)
    with pytest.raises(tb.InputError, match="low rank cannot follow quantize: the model is in 8 bits already"):
        factorise(tb.LowRank(0.5), quantised, params, examples)
    with pytest.raises(tb.InputError, match="padding heads"):
        tb.pad_heads(*factors)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1.0,), "low rank 1.0; it must be between 0 and 1"),
        ((None, float("nan")), "low rank nan; it must be between 0 and 1"),
        ((None, None), "low rank of nothing"),
    ],
)
def test_shares_out_of_range_are_refused(numbers: tuple[Any, ...], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.LowRank(*numbers)
    with pytest.raises(tb.InputError, match="rows is 0"):
        tb.LowRank(0.5, rows=0)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [({"keys": 3}, "it must be an object of word_embeddings"), ({"key": -1}, "key is -1"), ({"key": "3"}, "whole")],
)
def test_ranks_in_a_config_are_checked(ranks: Any, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.BertConfig.from_hf({"model_type": "slim-bert", "ranks": ranks})


def test_a_student_of_another_size_has_no_factors() -> None:
    config, _ = tb.load_hf(TINY)
    teacher = dataclasses.replace(config, ranks=Ranks(key=3), weight_bits=8)
    student = student_config("2x8", teacher)
    assert (student.ranks, student.weight_bits) == (Ranks(), None)


@pytest.mark.long
def test_factors_are_trained_in_one_run(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    experiment = distillation(teacher, teacher, reviews, compression=(tb.LowRank(0.6, 0.5),))
    result = tb.run(experiment, tmp_path / "out")
    config, params = tb.load_hf(result.directory)
    assert config.ranks.key > 0
    assert set(params["encoder"]["encoder"]["layer"]["intermediate"]["dense"]) == {"down", "up"}
    start = factorise(tb.LowRank(0.6, 0.5), *tb.load_hf(teacher), rows(config))[1]
    path = ("encoder", "encoder", "layer", "output", "dense", "down", "kernel")
    trained, before = params, start
    for name in path:
        trained, before = trained[name], before[name]
    assert trained.shape == before.shape
    assert tb.load_predictor(result.directory)(["we bought lovely chips"])[0].label in config.id2label
