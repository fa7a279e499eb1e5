"""RoBERTa and XLM-R have positions, dropout, descriptions and poolers of a kind of their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.models.layers import position_ids

FIXTURES = Path(__file__).parent.parent / "fixtures"
ROBERTA = tb.BertConfig(
    vocab_size=24,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=12,
    type_vocab_size=1,
    pad_token_id=1,
    model_type="roberta",
)
IDS = np.array([[0, 5, 6, 2, 1, 1], [0, 7, 8, 9, 9, 2]], np.int32)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_a_config_keeps_what_its_file_says(model_type: str) -> None:
    hf = {"model_type": model_type, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    config = tb.BertConfig.from_hf(hf)
    assert config.max_tokens == 512
    assert config.vocab_size == {"roberta": 50265, "xlm-roberta": 30522}[model_type]
    assert hf.items() <= config.to_hf().items()
    assert tb.BertConfig.from_hf(config.to_hf()) == config


def test_positions_count_what_is_not_padding_from_2() -> None:
    assert position_ids(ROBERTA, IDS).tolist() == [[2, 3, 4, 5, 1, 1], [2, 3, 4, 5, 6, 7]]
    bert = dataclasses.replace(ROBERTA, model_type="bert")
    assert position_ids(bert, IDS).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_more_tokens_than_positions_are_refused() -> None:
    params = tb.init_params(tb.BertModel(ROBERTA), jax.random.key(0))
    assert jnp.isfinite(tb.BertModel(ROBERTA).apply({"params": params}, jnp.full((1, 10), 5)).last_hidden_state).all()
    with pytest.raises(ValueError, match="11 tokens, but the model has 10 positions"):
        tb.BertModel(ROBERTA).apply({"params": params}, jnp.full((1, 11), 5))


def test_rows_of_padding_are_not_trained() -> None:
    """Torch trains none either: the word and the position of padding are its `padding_idx`."""
    model = tb.BertModel(ROBERTA, add_pooler=False)
    params = tb.init_params(model, jax.random.key(0))
    weights = jax.random.normal(jax.random.key(1), (*IDS.shape, 8))

    def loss(params: dict) -> jax.Array:
        return jnp.sum(weights * model.apply({"params": params}, jnp.asarray(IDS)).last_hidden_state)

    grads = jax.jit(jax.grad(loss))(params)["embeddings"]
    trained = {name: np.asarray(grads[f"{name}_embeddings"]["embedding"]).any(axis=1) for name in ("word", "position")}
    assert np.flatnonzero(trained["word"]).tolist() == [0, 2, 5, 6, 7, 8, 9]
    assert np.flatnonzero(trained["position"]).tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("model_type", "dropped"), [("bert", False), ("roberta", True)])
def test_the_classifier_drops_its_input_out_before_the_dense_layer_where_the_family_does(
    model_type: str, dropped: bool
) -> None:
    config = dataclasses.replace(
        ROBERTA,
        model_type=model_type,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.5,
    )
    model = tb.BertForSequenceClassification(config)
    params = tb.init_params(model, jax.random.key(0))

    def pooled(key: jax.Array | None) -> np.ndarray:
        rngs = None if key is None else {"dropout": key}
        out = model.apply({"params": params}, jnp.asarray(IDS), deterministic=key is None, rngs=rngs)
        return np.asarray(out.pooled)

    assert (pooled(jax.random.key(1)) == pooled(None)).all() == (not dropped)
    assert (pooled(jax.random.key(1)) == pooled(jax.random.key(2))).all() == (not dropped)


def with_tensors(directory: Path, name: str, **tensors: np.ndarray) -> Path:
    """A copy of a fixture whose file holds more tensors."""
    directory.mkdir()
    (directory / "config.json").write_text((FIXTURES / name / "config.json").read_text())
    save_file(load_file(FIXTURES / name / "model.safetensors") | tensors, directory / "model.safetensors")
    return directory


POOLER = {
    "roberta.pooler.dense.weight": np.full((8, 8), 2, np.float32),
    "roberta.pooler.dense.bias": np.full(8, 3, np.float32),
}


def test_a_sequence_classifier_may_hold_a_pooler_that_nothing_reads(tmp_path: Path) -> None:
    config, params = tb.load_hf(with_tensors(tmp_path / "model", "tiny-roberta", **POOLER))
    jax.tree.map(np.testing.assert_array_equal, params, tb.load_hf(FIXTURES / "tiny-roberta")[1])
    tb.save_hf(tmp_path / "again", config, params)
    assert not set(POOLER) & load_file(tmp_path / "again" / "model.safetensors").keys()


def test_a_pretrained_checkpoint_keeps_its_pooler(tmp_path: Path) -> None:
    config, params = tb.load_hf(with_tensors(tmp_path / "model", "tiny-roberta-mlm", **POOLER))
    assert (params["encoder"]["pooler"]["dense"]["bias"] == 3).all()
    tb.save_hf(tmp_path / "again", config, params)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert (again["roberta.pooler.dense.weight"] == 2).all()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["RobertaForMaskedLM"]


def test_the_tied_decoder_of_the_masked_lm_head_may_be_written_out(tmp_path: Path) -> None:
    stored = load_file(FIXTURES / "tiny-roberta-mlm" / "model.safetensors")
    tied = {
        "lm_head.decoder.weight": stored["roberta.embeddings.word_embeddings.weight"],
        "lm_head.decoder.bias": stored["lm_head.bias"],
    }
    params = tb.load_hf(with_tensors(tmp_path / "model", "tiny-roberta-mlm", **tied))[1]
    jax.tree.map(np.testing.assert_array_equal, params, tb.load_hf(FIXTURES / "tiny-roberta-mlm")[1])
    untied = {"lm_head.decoder.bias": stored["lm_head.bias"] + 1}
    with pytest.raises(tb.InputError, match="untied is not supported"):
        tb.load_hf(with_tensors(tmp_path / "untied", "tiny-roberta-mlm", **untied))
