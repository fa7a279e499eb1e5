"""Every compression method, and those that may follow each other: each result loads again, here and elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, rest_long

import tinybert_jax as tb
from tinybert_jax.compression.table import build_method
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.devices.processor import processor
from tinybert_jax.export.export import program

METHODS: dict[str, Any] = {
    "prune": tb.Prune(0.5, rounds=1),
    "uniform": tb.Prune(0.5, uniform=True, rounds=1),
    "dense": tb.LowRank(0.6),
    "words": tb.LowRank(None, 0.4),
    "both": tb.LowRank(0.6, 0.4),
    "share": tb.Share(1),
    "attention": tb.SharePart("attention", 1),
    "quantize": tb.Quantize(8),
}
# chains, and the `model_type` of what they give
CHAINS = {
    "prune": "bert",  # the largest layer keeps its heads
    "uniform": "slim-bert",
    "dense": "slim-bert",
    "words": "mobilebert",
    "both": "slim-bert",
    "share": "albert",
    "attention": "bert",
    "quantize": "bert",
    "prune words": "mobilebert",
    "words attention": "mobilebert",
    "uniform dense": "slim-bert",
    "uniform words": "slim-bert",
    "share words": "slim-albert",
    "dense share": "slim-albert",
    "prune quantize": "bert",
    "words quantize": "mobilebert",
    "share quantize": "albert",
}
# each method once, alone or behind another
FEW_CHAINS = ["both", "attention", "prune words", "uniform dense", "share quantize"]
INT8_TOLERANCE = 0.3  # standard deviations of the logits, as where models are exported


def rows() -> Tokens:
    random, config = np.random.default_rng(0), tb.load_hf(TINY)[0]
    lengths = random.integers(3, 9, 24).astype(np.int32)
    ids = random.integers(5, config.vocab_size, lengths.sum()).astype(np.int32)
    labels = (np.arange(24) % config.num_labels).astype(np.int32)
    return Tokens(ids, np.append(0, np.cumsum(lengths)), lengths, labels, "rows", config.pad_token_id)


ROWS = rows()
INPUTS: dict[str, Any] = {
    name: np.asarray(array)
    for name, array in zip(
        ("input_ids", "attention_mask", "token_type_ids"), ROWS.batch(np.arange(8), 8, 0)[:3], strict=True
    )
}


@functools.cache
def result(chain: str) -> tuple[tb.BertConfig, Any]:
    """The tiny BERT after the methods."""
    *before, last = chain.split()
    config, params = result(" ".join(before)) if before else tb.load_hf(TINY)
    return build_method(METHODS[last]).apply(config, params, ROWS)


def logits(config: tb.BertConfig, params: Any) -> np.ndarray:
    return np.asarray(program(config, params)(params, *map(jnp.asarray, INPUTS.values())))


@functools.cache
def expected(chain: str) -> np.ndarray:
    """The logits, in floats."""
    config, params = result(chain)
    return logits(dataclasses.replace(config, weight_bits=None), params)


@pytest.mark.parametrize("chain", rest_long(CHAINS, FEW_CHAINS))
def test_a_compressed_model_is_saved_and_loaded_as_it_is(chain: str, tmp_path: Path) -> None:
    config, params = result(chain)
    tb.save_hf(tmp_path, config, params)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["model_type"] == CHAINS[chain]
    assert config.loads_in_transformers == (not CHAINS[chain].startswith("slim-"))
    again, loaded = tb.load_hf(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert np.isfinite(expected(chain)).all()


@pytest.mark.parametrize("chain", rest_long(CHAINS, FEW_CHAINS))
def test_its_onnx_file_is_the_model(chain: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    config, params = result(chain)

    def run(weight_bits: int | None) -> np.ndarray:
        session = onnxruntime.InferenceSession(onnx_model(config, params, weight_bits).SerializeToString())
        feed = {name: array.astype(np.int64) for name, array in INPUTS.items()}
        return np.asarray(session.run(["logits"], feed)[0])

    floats = expected(chain)
    np.testing.assert_allclose(run(None), floats, atol=1e-5)
    if config.weight_bits is not None:
        rounded = logits(config, params)
        assert np.abs(rounded - floats).max() > 1e-4
        if not processor().int8:
            pytest.skip("on this processor, sums of products of 8 bits overflow")
        np.testing.assert_allclose(run(8), rounded, atol=INT8_TOLERANCE * rounded.std())


@pytest.mark.parametrize("chain", [chain for chain, kind in CHAINS.items() if not kind.startswith("slim-")])
def test_transformers_loads_it_and_computes_the_same(chain: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tb.save_hf(tmp_path, *result(chain))
    model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values()), loading
    with torch.inference_mode():
        out = model.eval()(**{name: torch.as_tensor(array).long() for name, array in INPUTS.items()})
    np.testing.assert_allclose(expected(chain), out.logits.numpy(), atol=1e-5)
