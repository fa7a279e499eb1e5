"""What surrounds an encoder in other programs' checkpoints is read past: wrappers' names, buffers, heads of theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb

EXTRA = np.ones(3, np.float32)


def copy(name: str, tmp_path: Path, **config: object) -> Path:
    directory = Path(shutil.copytree(TINY.parent / name, tmp_path / "copy"))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def rewrite(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("tiny-bert", {"loss_fct.weight": EXTRA}),
        ("tiny-bert", {"criterion.pos_weight": np.ones(3, np.int64), "temperature.scale": EXTRA}),
        ("tiny-bert", {"cls.seq_relationship.weight": EXTRA, "cls.seq_relationship.bias": EXTRA}),
        ("tiny-bert", {"classifier.norm.running_mean": EXTRA, "a\nb": EXTRA}),
        ("tiny-bert-mlm", {"discriminator_predictions.dense.weight": EXTRA}),
        ("tiny-roberta", {"lm_loss.weight": EXTRA}),
        ("tiny-mobilebert", {"cls.predictions.bias": EXTRA}),  # whose head has other layers
        ("tiny-distilbert-encoder", {"classifier.1.weight": EXTRA, "classifier.1.bias": EXTRA}),
    ],
)
def test_what_is_no_head_of_ours_is_left_out_with_a_note(
    name: str, extra: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    directory = copy(name, tmp_path)
    rewrite(directory, lambda tensors: tensors | extra)
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(directory), tb.load_hf(TINY.parent / name))
    left_out = ", ".join(sorted(map(repr, extra)))
    assert capsys.readouterr().err == f"note: {directory}: left out, as no model here reads it: {left_out}\n"


def test_of_next_sentence_prediction_the_encoder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    directory = copy("tiny-bert", tmp_path, architectures=["BertForNextSentencePrediction"])
    renames = {"classifier.weight": "cls.seq_relationship.weight", "classifier.bias": "cls.seq_relationship.bias"}
    rewrite(directory, lambda tensors: {renames.get(name, name): tensor for name, tensor in tensors.items()})
    _, params = tb.load_hf(directory)
    _, expected = tb.load_hf(TINY)
    jax.tree.map(np.testing.assert_array_equal, params, {"encoder": expected["encoder"]})
    assert "'cls.seq_relationship.bias', 'cls.seq_relationship.weight'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-distilbert"])
def test_of_a_multiple_choice_model_the_encoder_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, expected = tb.load_hf(TINY.parent / name)
    directory = copy(name, tmp_path, architectures=[f"{config.family.architecture}ForMultipleChoice"])
    rewrite(directory, lambda tensors: tensors | {"classifier.weight": np.ones((1, 24), np.float32)})
    if not config.family.has_pooler:
        expected["encoder"].pop("pooler")  # the dense layer of the head
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(directory)[1], {"encoder": expected["encoder"]})
    assert "its head for multiple choice is left out" in capsys.readouterr().err


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["tiny-bert", "tiny-distilbert-encoder"])
def test_a_wrapper_of_the_whole_model_does_not_hide_it(name: str, wrapper: str, tmp_path: Path) -> None:
    directory = copy(name, tmp_path)
    rewrite(directory, lambda tensors: {wrapper + tensor: value for tensor, value in tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(directory), tb.load_hf(TINY.parent / name))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-roberta", "tiny-distilbert"])
def test_buffers_of_old_checkpoints_are_no_tensors(name: str, tmp_path: Path) -> None:
    directory = copy(name, tmp_path)
    prefix = tb.load_hf(directory)[0].family.prefix
    buffers = {
        f"{prefix}.embeddings.{buffer}_ids": np.zeros((1, 40), np.int64) for buffer in ("position", "token_type")
    }
    rewrite(directory, lambda tensors: tensors | buffers)
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(directory), tb.load_hf(TINY.parent / name))


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-distilbert", "tiny-albert", "tiny-mobilebert"])
def test_a_config_without_model_type_is_of_the_family_of_its_class(name: str, tmp_path: Path) -> None:
    directory = copy(name, tmp_path, model_type=None)
    assert tb.load_hf(directory)[0] == tb.load_hf(TINY.parent / name)[0]


def test_weights_of_another_family_are_refused_by_its_name(tmp_path: Path) -> None:
    directory = copy("tiny-bert", tmp_path)
    shutil.copy(TINY.parent / "tiny-roberta" / "model.safetensors", directory)
    with pytest.raises(
        tb.InputError, match=r"the weights are those of A RoBERTa, .*: write \"model_type\": \"roberta\" into it"
    ):
        tb.load_hf(directory)


def test_what_would_change_the_encoder_is_refused_under_its_name_in_the_file(tmp_path: Path) -> None:
    directory = copy("tiny-bert", tmp_path)
    adapters = {f"bert.encoder.layer.{i}.output.adapter.weight": EXTRA for i in range(3)}
    rewrite(directory, lambda tensors: tensors | adapters)
    names = ", ".join(map(repr, sorted(adapters)))
    with pytest.raises(tb.InputError, match=f"the weights hold 3 tensors that no BERT has: {names}$"):
        tb.load_hf(directory)


def test_an_encoder_under_a_name_of_its_own_is_refused_with_the_names_that_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    directory = copy("tiny-bert", tmp_path)
    rewrite(directory, lambda tensors: {name.replace("bert.", "backbone."): t for name, t in tensors.items()})
    with pytest.raises(tb.InputError, match=r"no layer; .* names tensors bert\.encoder\.\.\., not as 'backbone\.emb"):
        tb.load_hf(directory)
    assert not capsys.readouterr().err, "no note of tensors that are left out"
