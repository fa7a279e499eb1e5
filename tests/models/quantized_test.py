"""Models that multiply in int8: the integers, the rounding that training sees, and where they are used."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, distillation, rest_long

import tinybert_jax as tb
from tinybert_jax.export.export import program
from tinybert_jax.inference import predictor
from tinybert_jax.models.quantized import int8_bytes, int8_is_faster, quantized
from tinybert_jax.precision import Dense, int8_product, quantise, rounded

FIXTURES = TINY.parent
MODELS = sorted(path.name for path in FIXTURES.glob("tiny-*"))
RANDOM = np.random.default_rng(0)
TEXTS = ["we bought lovely chips", "we bought stale chips", "it was tasty"]


def inputs_of(config: tb.BertConfig) -> list[jax.Array]:
    ids = RANDOM.integers(5, config.vocab_size, (3, 6)).astype(np.int32)
    mask = (np.arange(6) < np.array([[6], [4], [3]])).astype(np.int32)
    return [jnp.asarray(np.where(mask, ids, config.pad_token_id)), jnp.asarray(mask), jnp.zeros((3, 6), jnp.int32)]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_integers_are_within_their_range_and_half_a_step(bits: int) -> None:
    x = jnp.asarray(RANDOM.normal(size=(20, 7)), jnp.float32).at[3].set(0.0)
    integers, scale = quantise(x, bits, axis=-1)
    assert jnp.abs(integers).max() == 2 ** (bits - 1) - 1
    assert jnp.all(jnp.abs(integers * scale - x) <= scale / 2 + 1e-6)
    np.testing.assert_allclose(rounded(x, bits, -1), integers * scale, atol=1e-6)


def test_a_product_in_int8_is_that_of_the_rounded_numbers_in_exact_arithmetic() -> None:
    x, kernel = (RANDOM.normal(size=size).astype(np.float32) for size in ((2, 5, 300), (300, 9)))
    integers, scale = quantise(jnp.asarray(kernel), 8, axis=0)
    product = int8_product(jnp.asarray(x), integers.astype(jnp.int8), scale[0])
    exact = np.asarray(rounded(jnp.asarray(x), 8, -1), np.float64) @ np.asarray(integers * scale, np.float64)
    np.testing.assert_allclose(product, exact, atol=1e-4)
    assert np.abs(exact - x.astype(np.float64) @ kernel).max() > 0.01  # rounding is no small matter


def test_gradients_pass_through_the_rounding() -> None:
    x, kernel = (jnp.asarray(RANDOM.normal(size=size), jnp.float32) for size in ((4, 6), (6, 3)))
    dense = Dense(3, jnp.float32, nn.initializers.zeros, weight_bits=4)
    bias = jnp.zeros(3)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(dense.apply({"params": {"kernel": kernel, "bias": bias}}, x)))

    of_x, of_kernel = jax.grad(loss, (0, 1))(x, kernel)
    near_x, near_kernel = rounded(x, 8, -1), rounded(kernel, 4, 0)
    of_y = jnp.cos(near_x @ near_kernel)
    np.testing.assert_allclose(of_x, of_y @ near_kernel.T, atol=1e-5)
    np.testing.assert_allclose(of_kernel, near_x.T @ of_y, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bits"),
    rest_long(product(MODELS, [8, 4]), [("tiny-bert", 4), ("tiny-bert", 8), ("tiny-mpnet-encoder", 8)]),
)
def test_what_is_trained_is_what_int8_gives(name: str, bits: int) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    inputs = [jnp.concatenate(parts) for parts in zip(*(inputs_of(config) for _ in range(5)), strict=True)]
    floats = np.asarray(program(config, params)(params, *inputs))
    config = dataclasses.replace(config, weight_bits=bits)
    fast, integers = quantized(config, params)
    assert fast == config
    expected, result = (np.asarray(program(config, p)(p, *inputs)) for p in (params, integers))
    real = np.asarray(inputs[1], bool) if result.ndim == 3 else slice(None)
    # a sum in another order, as processors have it, may turn a rounding, which is a hundredth of a large input: of few
    # rows or tokens, one alone may then be as far off as rounding leaves all
    off, rounding = (np.sqrt(np.mean(np.square((x - expected)[real]), axis=-1)) for x in (result, floats))
    assert np.median(off) < 0.05 * np.median(rounding)
    np.testing.assert_allclose(result[real], expected[real], atol=0.05 * max(1.0, float(np.abs(expected).max())))


def test_kernels_and_words_are_a_quarter_of_the_bytes_and_the_classifier_is_whole() -> None:
    config, params = tb.load_hf(TINY)
    fast, integers = quantized(config, params)
    assert fast.weight_bits == 8
    leaves = jax.tree.leaves_with_path(integers["encoder"])
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert len(kernels) == 7
    assert {leaf.dtype for leaf in kernels} == {np.dtype(np.int8)}
    assert integers["encoder"]["embeddings"]["word_embeddings"]["embedding"].dtype == np.int8
    assert integers["encoder"]["encoder"]["layer"]["output"]["dense"]["kernel_scale"].shape == (3, config.hidden_size)
    np.testing.assert_array_equal(integers["classifier"]["kernel"], params["classifier"]["kernel"])


def test_weight_bits_are_written_read_and_checked(tmp_path: Path) -> None:
    config, params = tb.load_hf(TINY)
    tb.save_hf(tmp_path, dataclasses.replace(config, weight_bits=4), params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["weight_bits"]) == ("bert", 4)  # transformers computes it in floats
    assert tb.load_hf(tmp_path)[0].weight_bits == 4
    tb.save_hf(tmp_path / "whole", config, params)
    assert "weight_bits" not in json.loads((tmp_path / "whole/config.json").read_text())
    for bits in (1, 9):
        with pytest.raises(tb.InputError, match=f"weight_bits is {bits}; it must be 2 to 8"):
            dataclasses.replace(config, weight_bits=bits)
        with pytest.raises(tb.InputError, match=f"weight_bits is {bits}; it must be 2 to 8"):
            tb.Quantize(bits)


def test_the_predictor_is_in_int8_where_that_is_faster(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(int8_is_faster(), bool)
    plain = tb.load_predictor(teacher)
    monkeypatch.setattr(predictor, "int8_is_faster", lambda: True)
    fast = tb.load_predictor(teacher, int8=True)
    assert fast.params["encoder"]["embeddings"]["word_embeddings"]["embedding"].dtype == jnp.int8
    assert [row.label for row in fast(TEXTS)] == [row.label for row in plain(TEXTS)]
    assert fast(TEXTS) != plain(TEXTS)
    assert tb.load_predictor(teacher)(TEXTS) == plain(TEXTS)  # only where it is asked for
    monkeypatch.setattr(predictor, "int8_is_faster", lambda: False)
    assert tb.load_predictor(teacher, int8=True)(TEXTS) == plain(TEXTS)
    assert "note: float32 stays, as int8 is no faster" in capsys.readouterr().err


@pytest.mark.long
def test_a_model_is_trained_as_it_is_computed(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    experiment = distillation(teacher, teacher, reviews, compression=(tb.Quantize(4),))
    result = tb.run(experiment, tmp_path / "out")
    config, _ = tb.load_hf(result.directory)
    assert config.weight_bits == 4
    loaded = tb.load_predictor(result.directory)
    assert loaded.params["encoder"]["embeddings"]["word_embeddings"]["embedding"].dtype == jnp.int8
    values = [row.value for row in loaded(TEXTS)]
    with pytest.raises(tb.InputError, match="is quantised, so onnx would be another model: take onnx-int8 or"):
        tb.export_model(str(result.directory), tmp_path / "no", ("onnx", "onnx-int8"))
    (program_file,) = tb.export_model(str(result.directory), tmp_path / "ok", ("stablehlo-int8",))
    assert program_file.agreement is not None
    assert program_file.agreement > 0.9
    exported = [row.value for row in tb.load_predictor(program_file.file)(TEXTS)]
    np.testing.assert_allclose(exported, values, atol=1e-3)
    with pytest.raises(tb.InputError, match="is exported, in the numbers that its format has: leave int8 out"):
        tb.load_predictor(program_file.file, int8=True)


@pytest.mark.parametrize("name", ["tiny-bert", pytest.param("tiny-bert-mlm", marks=pytest.mark.long)])
@pytest.mark.parametrize("bits", [4, 2])
def test_the_onnx_file_of_a_model_of_few_bits_has_its_bits_and_a_word_table_of_eight(name: str, bits: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = tb.load_hf(FIXTURES / name)
    config = dataclasses.replace(config, weight_bits=bits)
    inputs = inputs_of(config)
    expected, real = np.asarray(program(config, params)(params, *inputs)), np.asarray(inputs[1], bool)
    model = onnx_model(config, params, 8)
    largest = {
        tensor.name: int(np.abs(np.frombuffer(tensor.raw_data, np.int8).astype(int)).max())
        for tensor in model.graph.initializer
        if tensor.name.endswith("quantized")
    }
    assert largest.pop("word_embeddings_quantized") == 127
    assert set(largest.values()) == {2 ** (bits - 1) - 1}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {put.name: np.asarray(x, np.int64) for put, x in zip(session.get_inputs(), inputs, strict=True)}
    off = session.run(None, feed)[0] - expected
    off, expected = (off[real], expected[real]) if expected.ndim == 3 else (off, expected)
    assert np.sqrt(np.mean(np.square(off))) < 0.15 * expected.std()


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-albert", "tiny-bert-mlm", "tiny-roberta-token"])
def test_the_bytes_are_known_before_a_model_is_quantised(name: str) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    integers = quantized(config, params)[1]
    assert int8_bytes(params) == sum(leaf.nbytes for leaf in jax.tree.leaves(integers))
