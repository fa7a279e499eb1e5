"""A packed model is the same model, bit for bit, in fewer bytes; what is damaged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.batch import Params
from tinybert_jax.models.files.bitmask import PACKED_FILE, pack, unpack
from tinybert_jax.models.files.hub import fingerprint

FIXTURES = TINY.parent
NAME = "bert.encoder.layer.0.intermediate.dense.weight"


def sparse_model(name: str = "tiny-bert") -> tuple[tb.BertConfig, Params]:
    """A fixture in which 0.6 of the weights of one dense layer of each layer are zero."""
    config, params = tb.load_hf(FIXTURES / name)
    random = np.random.default_rng(0)
    kernel = params["encoder"]["encoder"]["layer"]["intermediate"]["dense"]["kernel"].copy()
    kernel[random.random(kernel.shape) < 0.6] = 0
    params["encoder"]["encoder"]["layer"]["intermediate"]["dense"]["kernel"] = kernel
    return config, params


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    config, params = sparse_model()
    tb.save_hf(tmp_path / "packed", config, params, tb.load_tokenizer(TINY, config), packed=True)
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "name", ["tiny-bert", "tiny-bert-qa", "tiny-albert-mlm", "tiny-distilbert-token", "tiny-roberta"]
)
def test_a_packed_model_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    config, params = sparse_model(name)
    tb.save_hf(tmp_path, config, params)
    tb.save_hf(tmp_path, config, params, packed=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", PACKED_FILE}
    again = tb.load_hf(tmp_path)
    assert again[0] == config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32)), again[1], params)
    assert sum(name.endswith(".bitmask") for name in load_file(tmp_path / PACKED_FILE)) == config.layer_groups


def test_matrices_with_few_zeros_vectors_and_other_numbers_stay_as_they_are() -> None:
    ones = np.ones((4, 10), np.float32)
    many, few = ones.copy(), ones.copy()
    many.ravel()[:12] = 0
    few.ravel()[:11] = 0
    tensors = {"many": many, "few": few, "vector": np.zeros(9, np.float32), "half": np.zeros((2, 2), np.float16)}
    packed = pack(tensors)
    assert set(packed) == {"few", "vector", "half", "many.bitmask", "many.values", "many.shape"}
    assert packed["many.bitmask"].tolist() == [0, 0x0F, 0xFF, 0xFF, 0xFF]
    assert len(packed["many.values"]) == 28


def test_signs_of_zeros_and_strides_are_kept() -> None:
    matrix = np.array([[0.0, -0.0, 1.0], [0.0, 0.0, -2.0]], np.float32)
    for tensor in (matrix, matrix.T, np.zeros((3, 3), np.float32)):
        result = unpack(pack({"w": tensor}), Path("file"))["w"]
        np.testing.assert_array_equal(result.view(np.uint32), np.ascontiguousarray(tensor).view(np.uint32))


def test_transformers_refuses_a_packed_model_by_name(packed: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert json.loads((packed / "config.json").read_text())["model_type"] == "slim-bert"
    with pytest.raises(ValueError, match="slim-bert"):
        transformers.AutoConfig.from_pretrained(packed)
    assert tb.load_predictor(packed)(["the quick brown fox"])
    before = fingerprint(packed)
    tensors = load_file(packed / PACKED_FILE)
    tensors[f"{NAME}.values"] *= 2
    save_file(tensors, packed / PACKED_FILE)
    assert fingerprint(packed) != before


DAMAGE: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "a part is missing": lambda tensors: tensors.pop(f"{NAME}.values"),
    "no bits": lambda tensors: tensors.pop(f"{NAME}.bitmask"),
    "no shape": lambda tensors: tensors.pop(f"{NAME}.shape"),
    "a value is missing": lambda tensors: tensors.update({f"{NAME}.values": tensors[f"{NAME}.values"][1:]}),
    "a bit is missing": lambda tensors: tensors.update({f"{NAME}.bitmask": 0 * tensors[f"{NAME}.bitmask"]}),
    "a byte is missing": lambda tensors: tensors.update({f"{NAME}.bitmask": tensors[f"{NAME}.bitmask"][:-1]}),
    "values of another type": lambda tensors: tensors.update(
        {f"{NAME}.values": tensors[f"{NAME}.values"].astype(np.float16)}
    ),
    "three axes": lambda tensors: tensors.update({f"{NAME}.shape": np.array([2, 12, 48], np.int32)}),
    "negative sizes": lambda tensors: tensors.update({f"{NAME}.shape": np.array([-24, -48], np.int32)}),
    "another size": lambda tensors: tensors.update({f"{NAME}.shape": np.array([2**30, 2**30], np.int32)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_parts_that_do_not_fit_together_are_refused(damage: str, packed: Path) -> None:
    tensors = load_file(packed / PACKED_FILE)
    DAMAGE[damage](tensors)
    save_file(tensors, packed / PACKED_FILE)
    with pytest.raises(tb.InputError, match=f"{PACKED_FILE}: the parts of '{NAME}' do not fit together"):
        tb.load_hf(packed)


def test_bits_after_the_last_weight_are_refused() -> None:
    parts = pack({"w": np.zeros((3, 3), np.float32)})
    parts["w.bitmask"][-1] |= 1
    parts["w.values"] = np.ones(1, np.float32)
    with pytest.raises(tb.InputError, match="do not fit together"):
        unpack(parts, Path("file"))


def test_other_damage_is_refused_as_in_any_model(packed: Path) -> None:
    whole, path = load_file(packed / PACKED_FILE), packed / PACKED_FILE
    save_file(whole | {NAME: np.zeros((48, 24), np.float32)}, path)
    with pytest.raises(tb.InputError, match=f"holds '{NAME}' twice, packed and as it is"):
        tb.load_hf(packed)
    save_file(whole | {f"{NAME}.values": whole[f"{NAME}.values"] * np.nan}, path)
    with pytest.raises(tb.InputError, match="holds an infinity or a NaN"):
        tb.load_hf(packed)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(tb.InputError, match="damaged or truncated"):
        tb.load_hf(packed)
