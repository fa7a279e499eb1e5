"""A model of narrow heads says that no class of `transformers` has its shape; padded, it is one that has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long
from random_params import random_params

import tinybert_jax as tb

CONFIG = tb.BertConfig(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=12,
    head_dim=3,
    initializer_range=0.4,
)
PARAMS = random_params(tb.BertForSequenceClassification(CONFIG))


def test_a_padded_model_is_the_same_function_of_a_shape_that_transformers_has(tmp_path: Path) -> None:
    config, params = tb.pad_heads(CONFIG, PARAMS)
    assert config.loads_in_transformers
    ids = jnp.arange(2, 12)[None]
    before, after = (
        tb.BertForSequenceClassification(c).apply({"params": p}, ids) for c, p in ((CONFIG, PARAMS), (config, params))
    )
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-6)
    np.testing.assert_allclose(after.attention_scores, before.attention_scores, atol=1e-5)
    tb.save_hf(tmp_path, config, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    assert "head_dim" not in json.loads((tmp_path / "config.json").read_text())


def test_an_unpadded_directory_is_read_by_us_and_refused_by_name_elsewhere(tmp_path: Path) -> None:
    tb.save_hf(tmp_path, CONFIG, PARAMS)
    config, params = tb.load_hf(tmp_path)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="slim-bert"):
        AutoConfig.from_pretrained(tmp_path)


def test_torch_computes_the_same_with_the_padded_directory(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    tb.save_hf(tmp_path, *tb.pad_heads(CONFIG, PARAMS))
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = np.arange(2, 12)[None]
    with torch.inference_mode():
        logits = model(torch.tensor(ids)).logits.numpy()
    ours = tb.BertForSequenceClassification(CONFIG).apply({"params": PARAMS}, jnp.asarray(ids)).logits
    np.testing.assert_allclose(ours, logits, atol=1e-6)


@pytest.mark.parametrize(("heads", "width"), rest_long([(3, 3), (3, 4), (5, 2), (1, 5)], [(3, 4), (5, 2)]))
def test_heads_are_added_where_their_number_does_not_divide_the_width(heads: int, width: int) -> None:
    config = dataclasses.replace(CONFIG, num_attention_heads=heads, head_dim=width)
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(1))
    padded, more = tb.pad_heads(config, params)
    assert padded.loads_in_transformers
    assert padded.num_attention_heads * padded.attention_head_dim == 16
    ids = jnp.arange(2, 12)[None]
    model = tb.BertForSequenceClassification
    before, after = (model(c).apply({"params": p}, ids).logits for c, p in ((config, params), (padded, more)))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_heads_that_are_too_wide_are_refused() -> None:
    config = dataclasses.replace(CONFIG, num_attention_heads=4, head_dim=5)
    with pytest.raises(tb.InputError, match="4 heads of 5 cannot be padded to hidden_size 16"):
        tb.pad_heads(config, PARAMS)
