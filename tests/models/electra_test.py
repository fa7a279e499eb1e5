"""ELECTRA's embeddings have a width of their own, which its students keep; and what is refused of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.compression.table import check_methods
from tinybert_jax.students.presets import student_config
from tinybert_jax.students.start import check_start

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROJECTED = tb.load_hf(FIXTURES / "tiny-electra")[0]
WHOLE = tb.load_hf(FIXTURES / "tiny-electra-encoder")[0]


def test_the_defaults_are_those_of_the_small_one() -> None:
    config = tb.BertConfig.from_hf({"model_type": "electra"})
    sizes = config.embedding_width, config.hidden_size, config.num_attention_heads, config.intermediate_size
    assert sizes == (128, 256, 4, 1024)
    assert config.projects_embeddings
    assert tb.BertConfig.from_hf(config.to_hf()) == config


def test_a_student_s_embeddings_are_projected_where_its_teacher_s_are() -> None:
    student = student_config("1x4", PROJECTED)
    assert (student.model_type, student.embedding_size, student.projects_embeddings) == ("electra", 6, True)
    student = student_config("1x4", WHOLE)
    assert (student.embedding_size, student.projects_embeddings) == (4, False)
    equal = dataclasses.replace(PROJECTED, hidden_size=6, intermediate_size=8)
    with pytest.raises(tb.InputError, match="needs equal embedding_size, other than hidden_size in both: the student"):
        check_start("spectral", equal, PROJECTED)


def test_a_pretrained_discriminator_is_read_without_its_head(tmp_path: Path, capsys: Any) -> None:
    source = FIXTURES / "tiny-electra-encoder"
    tensors = {f"electra.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    tensors |= {"discriminator_predictions.dense.weight": np.ones((8, 8), np.float32)}
    tmp_path.joinpath("config.json").write_text((source / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    assert set(tb.load_hf(tmp_path)[1]) == {"encoder"}
    assert "left out, as no model here reads it: 'discriminator_predictions.dense.weight'" in capsys.readouterr().err


def test_an_electra_has_no_form_with_shared_layers() -> None:
    with pytest.raises(tb.InputError, match="An ELECTRA has no form with shared layers: take a BERT or an ALBERT"):
        check_methods([tb.Share(1)], WHOLE, "sequence")
