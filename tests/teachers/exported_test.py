"""ModernBERT and DeBERTa have no layers here: they teach by the predictions of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import logged, rest_long

import tinybert_jax as tb

MODERNBERT = {"model_type": "modernbert", "hidden_activation": "gelu", "global_rope_theta": 160000.0}
DEBERTA = {"model_type": "deberta-v2", "relative_attention": True, "type_vocab_size": 0, "pos_att_type": ["p2c"]}
NAMES = ("described", "title", "architecture")
FAMILIES = [(MODERNBERT, "A ModernBERT", "ModernBert"), (DEBERTA, "A DeBERTa", "DebertaV2")]
IDS = ["modernbert", "deberta"]


@pytest.mark.parametrize(NAMES, FAMILIES, ids=IDS)
def test_their_weights_are_refused_with_what_can_be_done(
    described: dict[str, Any], title: str, architecture: str, directory: Path
) -> None:
    (directory / "config.json").write_text(json.dumps(described))
    message = f"{title} teaches by its predictions alone: give its ONNX export as the teacher .optimum-cli export onnx"
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


@pytest.mark.parametrize(NAMES, rest_long(FAMILIES, FAMILIES[1:]), ids=IDS)
def test_an_exported_one_teaches_its_predictions(
    described: dict[str, Any],
    title: str,
    architecture: str,
    teacher: Path,
    pretrained: Path,
    reviews: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    tb.export_model(str(teacher), tmp_path / "out", ("onnx",))
    file = tmp_path / "out" / "config.json"
    names = ("vocab_size", "max_position_embeddings", "pad_token_id", "id2label", "hidden_size", "num_attention_heads")
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name in names}
    architectures = {"architectures": [f"{architecture}ForSequenceClassification"]}
    file.write_text(json.dumps(kept | described | architectures))
    texts = ["we bought lovely chips", "the chips was burnt"]
    predictors = [tb.load_predictor(path) for path in (teacher, tmp_path / "out")]
    np.testing.assert_allclose(*(each.probabilities(texts) for each in predictors), atol=1e-5)
    stage = tb.Stage("prediction", max_steps=20, learning_rate=1e-2)
    source = tb.DataSource(data=str(reviews))
    settings = {"teacher": str(tmp_path / "out"), "max_length": 16}
    tb.run(tb.Experiment("classification", source, str(pretrained), (stage,), **settings), tmp_path / "run")
    lines = [line for line in logged(tmp_path / "run") if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
