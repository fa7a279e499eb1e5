"""MobileBERT without bottlenecks: what its files say, which of them are read, and how large its tables are there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import rest_long
from safetensors.numpy import load_file

import tinybert_jax as tb
from tinybert_jax.models.config import Ranks

FIXTURES = Path(__file__).parent.parent / "fixtures"
MOBILEBERT = FIXTURES / "tiny-mobilebert"
HF: dict[str, Any] = json.loads((MOBILEBERT / "config.json").read_text())


def test_its_config_is_read_and_written() -> None:
    config = tb.BertConfig.from_hf(HF)
    assert config.ranks == Ranks(word_embeddings=5)
    assert config.loads_in_transformers
    written = config.to_hf()
    for name in ("embedding_size", "use_bottleneck", "trigram_input", "num_feedforward_networks"):
        assert written[name] == HF[name], name
    assert (written["normalization_type"], written["classifier_activation"]) == ("layer_norm", True)
    assert "ranks" not in written
    assert tb.BertConfig.from_hf(written) == config


def test_what_transformers_leaves_out_is_its_default() -> None:
    """It writes no value that is the default."""
    hf = {name: value for name, value in HF.items() if name not in ("embedding_size", "classifier_activation")}
    config = tb.BertConfig.from_hf({name: value for name, value in hf.items() if name != "intermediate_size"})
    assert (config.ranks.word_embeddings, config.intermediate_size) == (128, 512)


def test_googles_mobilebert_is_refused_by_name() -> None:
    with pytest.raises(tb.InputError, match="use_bottleneck is True: A MobileBERT is supported where it is False"):
        tb.BertConfig.from_hf({"model_type": "mobilebert", "hidden_size": 512})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trigram_input", None, "trigram_input is None: A MobileBERT is supported where it is False"),
        ("num_feedforward_networks", 4, "num_feedforward_networks is 4: A MobileBERT is supported where it is 1"),
        ("normalization_type", "no_norm", "normalization_type is 'no_norm': .* where it is 'layer_norm'"),
        ("classifier_activation", False, "classifier_activation is False: .* where it is True"),
        ("embedding_size", 8, "embedding_size is 8; it must be neither 0 nor hidden_size"),
        ("embedding_size", "5", "embedding_size is '5'; it must be a whole number"),
    ],
)
def test_other_mobileberts_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.BertConfig.from_hf(HF | {name: value})


@pytest.mark.parametrize("name", ["use_bottleneck", "trigram_input", "num_feedforward_networks", "normalization_type"])
def test_the_defaults_of_transformers_are_refused_too(name: str) -> None:
    with pytest.raises(tb.InputError, match=f"{name} is .*: A MobileBERT is supported where it is"):
        tb.BertConfig.from_hf({key: value for key, value in HF.items() if key != name})


def test_tables_are_larger_in_files_by_a_power_of_two() -> None:
    """The eps of the embeddings' LayerNorm is fixed in transformers; beside larger tables it is as small as BERT's."""
    config, params = tb.load_hf(MOBILEBERT)
    tensors = load_file(MOBILEBERT / "model.safetensors")
    tables = params["encoder"]["embeddings"]
    for name, ours in (
        ("position_embeddings.weight", tables["position_embeddings"]["embedding"]),
        ("token_type_embeddings.weight", tables["token_type_embeddings"]["embedding"]),
        ("embedding_transformation.weight", tables["word_embeddings_projection"]["kernel"].T),
        ("embedding_transformation.bias", tables["word_embeddings_projection"]["bias"]),
    ):
        np.testing.assert_array_equal(ours * 64, tensors[f"mobilebert.embeddings.{name}"])
    for name, ours in (
        ("word_embeddings.weight", tables["word_embeddings"]["embedding"]),
        ("LayerNorm.weight", tables["LayerNorm"]["scale"]),
    ):
        np.testing.assert_array_equal(ours, tensors[f"mobilebert.embeddings.{name}"])
    assert config.embeddings_eps == 1e-5 / 64**2
    assert config.feed_forward_eps == 1e-5


@pytest.mark.parametrize(("eps", "scale"), [(1e-12, 64.0), (1e-5, 1.0), (1e-6, 4.0), (1e-323, 64.0), (1e300, 2**-6)])
def test_tables_are_as_large_as_the_eps_needs(eps: float, scale: float) -> None:
    assert tb.BertConfig.from_hf(HF | {"layer_norm_eps": eps}).table_scale == scale
    assert tb.BertConfig(layer_norm_eps=eps).table_scale == 1.0


@pytest.mark.parametrize("start", rest_long(["copy", "spectral"], ["copy"]))
def test_a_student_is_a_bert_that_starts_from_the_product(start: Any) -> None:
    from tinybert_jax.models.parameters import unfactored
    from tinybert_jax.students.start import copy_layers, from_teacher

    config, params = tb.load_hf(MOBILEBERT)
    student = tb.student_config("1x8", config)
    assert (student.model_type, student.ranks) == ("bert", Ranks())
    assert tb.student_config("1x8", config, token_types=False).model_type == "distilbert"
    whole = unfactored(config, params)
    assert whole[0].model_type == "bert"
    ids = jax.numpy.asarray([[2, 7, 9, 11, 3]])
    outputs = [
        np.asarray(tb.BertForSequenceClassification(c).apply({"params": p}, ids).logits)
        for c, p in ((config, params), whole)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-4)
    if start == "copy":
        started = from_teacher(start, student, config, params, "top", iter(()))
        jax.tree.map(np.testing.assert_array_equal, started, copy_layers(student, *whole, "top"))
    else:
        random = np.random.default_rng(0)
        mask = np.ones((8, 10), np.int32)
        batches = [
            tb.Batch(
                random.integers(2, 24, mask.shape).astype(np.int32), mask, 0 * mask, 0 * mask[:, 0], mask[:, 0] > 0
            )
            for _ in range(8)
        ]
        started = from_teacher(start, student, config, params, "top", iter(batches))
    shapes = tb.init_params(tb.BertModel(student), jax.random.key(0))
    assert jax.tree.map(np.shape, started["encoder"]["embeddings"]) == jax.tree.map(np.shape, shapes["embeddings"])


def test_a_rank_belongs_to_its_family() -> None:
    config = tb.BertConfig.from_hf(HF)
    with pytest.raises(tb.InputError, match="embedding_size is 0; it must be neither 0 nor hidden_size"):
        dataclasses.replace(config, ranks=Ranks())
    narrow = dataclasses.replace(config, head_dim=2)
    assert not narrow.loads_in_transformers
    assert narrow.to_hf()["model_type"] == "slim-mobilebert"
    assert tb.BertConfig.from_hf(narrow.to_hf()) == narrow
