"""Whatever a model's directory holds, it is read as it is written, or refused with one line that names it.

The laws are tried as those of `fuzz_test.py` are.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fuzzing import damaged, edited, json_values, law, put, read_or_refused
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.data.augmentation.neighbours import vector_neighbours
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import ACTIVATIONS
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tensors import to_hf_tensors

TINY = Path(__file__).parent / "fixtures" / "tiny-bert"
CONFIG, TENSORS = json.loads((TINY / "config.json").read_text()), load_file(TINY / "model.safetensors")
VOCABULARY = (TINY / "vocab.txt").read_text().split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a model, of which each example replaces a file."""
    return Path(shutil.copytree(TINY, tmp_path / "bert"))


sizes = st.integers(1, 2**31 - 1)
portions = st.floats(0, 1, exclude_max=True)
configs = st.fixed_dictionaries(
    dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), sizes)
    | dict.fromkeys(("intermediate_size", "max_position_embeddings", "type_vocab_size", "head_dim"), sizes)
    | dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), portions)
    | {
        "hidden_act": st.sampled_from(ACTIVATIONS),
        "classifier_dropout": st.none() | portions,
        "layer_norm_eps": st.floats(1e-12, 1e-3),
        "id2label": st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, unique=True
        ).map(tuple),
        "problem_type": st.none() | st.just("regression"),
    }
)


@law(100)
@given(configs)
def test_a_config_is_read_as_it_is_written(folder, fields):
    config = tb.BertConfig(**fields)
    put(folder / "config.json", json.dumps(config.to_hf()))
    assert load_config(folder) == config


@law(300)
@given(edited(CONFIG, "head_dim", "problem_type", "num_labels", "pruned_heads", "position_embedding_type"))
@example(CONFIG | {"id2label": None, "num_labels": 10**9})
@example(CONFIG | {"id2label": {"0": "a", "00": "b", "1": "c"}})
def test_an_edited_config_means_what_it_says_or_is_refused(folder, content):
    path = put(folder / "config.json", json.dumps(content))
    config = read_or_refused(lambda: load_config(folder), path)
    if config is not None:
        for field in dataclasses.fields(config):
            if field.name != "id2label" and content.get(field.name) is not None:
                value = getattr(config, field.name)
                assert value == content[field.name], field.name
                assert not isinstance(content[field.name], bool), field.name
                assert type(value).__name__ in str(field.type), field.name
        assert config.id2label
        assert tb.BertConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@law(150)
@given(damaged(json.dumps(CONFIG).encode()) | json_values.map(json.dumps))
@example("[" * 100_000)
def test_a_damaged_config_is_read_or_refused(folder, content):
    path = put(folder / "config.json", content)
    read_or_refused(lambda: load_config(folder), path)


@law(8)
@given(edited({name: CONFIG[name] for name in CONFIG if name.endswith(("_size", "_layers", "_heads", "_embeddings"))}))
@example({"num_hidden_layers": 10**9})
def test_weights_that_the_config_does_not_describe_are_refused(folder, content):
    put(folder / "config.json", json.dumps(CONFIG | content))
    put(folder / "model.safetensors", (TINY / "model.safetensors").read_bytes())
    loaded = read_or_refused(lambda: tb.load_hf(folder), folder)
    if loaded is not None:
        assert to_hf_tensors(loaded[1], loaded[0]).keys() == TENSORS.keys()


# ---- weights

BYTES = (TINY / "model.safetensors").read_bytes()
HEADER_END = 8 + struct.unpack("<Q", BYTES[:8])[0]
HEADER = json.loads(BYTES[8:HEADER_END])
KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OTHERS = ["F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "bogus"]


def with_header(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + BYTES[HEADER_END:]


def read_plainly(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, without the library."""
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    tensors = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__" and not name.endswith("position_ids"):
            start, stop = entry["data_offsets"]
            values = np.frombuffer(content[begin + start : begin + stop], KINDS[entry["dtype"]])
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


def check_weights(folder: Path, content: bytes) -> None:
    put(folder / "model.safetensors", content)
    loaded = read_or_refused(lambda: tb.load_hf(folder), folder)
    if loaded is not None:
        read, expected = to_hf_tensors(loaded[1], loaded[0]), read_plainly(content)
        if "classifier" not in loaded[1]:  # under other names, it is no head of ours
            read = {f"bert.{name}": tensor for name, tensor in read.items()}
        expected = {name: tensor for name, tensor in expected.items() if name in TENSORS or name.startswith("bert.")}
        assert {name: (t.shape, t.tobytes()) for name, t in read.items()} == {
            name: (t.shape, t.tobytes()) for name, t in expected.items()
        }


@pytest.mark.long
@law(6)
@given(st.fixed_dictionaries({name: st.sampled_from(list(KINDS)) for name in sorted(TENSORS)}))
def test_weights_of_any_float_are_read_as_they_are_written(folder, kinds):
    save_file({name: TENSORS[name].astype(KINDS[kind]) for name, kind in kinds.items()}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    assert tb.load_hf(folder)
    check_weights(folder, content)


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """The model's header, with another name, type, shape or place of a tensor, or without it."""
    header = dict(HEADER)
    for name in draw(st.lists(st.sampled_from(sorted(TENSORS)), min_size=1, max_size=2, unique=True)):
        entry = dict(header.pop(name))
        other = draw(st.sampled_from([n for n in sorted(TENSORS) if TENSORS[n].shape == TENSORS[name].shape]))
        match draw(st.sampled_from(["name", "dtype", "shape", "data_offsets", "swap", "gone"])):
            case "name":
                odd = st.sampled_from(["\u00b2", "00", "9" * 5000, "a\nb", "", ".", "kernel", "gamma", "position_ids"])
                parts = name.split(".")
                parts[draw(st.integers(0, len(parts) - 1))] = draw(odd | st.text(max_size=4))
                name = ".".join(parts)
            case "dtype":
                entry["dtype"] = draw(st.sampled_from([*KINDS, *OTHERS]))
            case "shape":
                size = st.integers(0, 99) | st.sampled_from([-1, 2**31, 2**62, 2**64])
                entry["shape"] = draw(st.lists(size, max_size=3) | st.just(entry["shape"][::-1]))
            case "data_offsets":
                entry["data_offsets"] = draw(
                    st.just(HEADER[other]["data_offsets"]) | st.lists(st.integers(), max_size=3)
                )
            case "swap":
                header[other] = HEADER[other] | {"data_offsets": entry["data_offsets"]}
                entry["data_offsets"] = HEADER[other]["data_offsets"]
            case "gone":
                continue
        header[name] = entry
    return header


@pytest.mark.long
@law(60)
@given(headers())
@example({name.replace(".layer.1.", ".layer.\u00b2."): entry for name, entry in HEADER.items()})
@example({name.replace("classifier.weight", "classifier.kernel"): entry for name, entry in HEADER.items()})
def test_another_header_is_read_as_it_says_or_refused(folder, header):
    check_weights(folder, with_header(header))


@law(100)
@given(
    damaged(BYTES[:HEADER_END]).map(lambda begin: begin + BYTES[HEADER_END:])
    | st.integers(0, len(BYTES)).map(lambda size: BYTES[:size])
    | st.sampled_from([0, 1, HEADER_END - 9, HEADER_END, 2**31, 2**63, 2**64 - 1]).map(
        lambda n: with_header(HEADER, n)
    )
)
def test_damaged_weights_are_read_or_refused(folder, content):
    check_weights(folder, content)


@law(8)
@given(st.integers(HEADER_END, len(BYTES) - 4), st.sampled_from([np.inf, -np.inf, np.nan]))
def test_weights_that_are_no_numbers_are_refused(folder, at, value):
    at -= (at - HEADER_END) % 4
    put(folder / "model.safetensors", BYTES[:at] + np.float32(value).tobytes() + BYTES[at + 4 :])
    with pytest.raises(InputError, match="holds an infinity or a NaN"):
        tb.load_hf(folder)


@law(40)
@given(st.dictionaries(st.sampled_from(["weight_map", "metadata"]), json_values) | json_values | st.binary())
@example({"weight_map": {"a": 1}})
@example({"weight_map": {"a": "../a"}})
def test_an_odd_index_of_shards_is_refused(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("shards")
    shutil.copy(TINY / "config.json", directory)
    put(directory / "model.safetensors.index.json", content if isinstance(content, bytes) else json.dumps(content))
    with pytest.raises(InputError):
        tb.load_hf(directory)
    read_or_refused(lambda: tb.load_hf(directory), directory)


# ---- tokenizers


def check_tokenizer(folder: Path, files: dict[str, bytes | str]) -> None:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
        if name in files:
            put(folder / name, files[name])
    if "vocab.txt" in files:  # which is read only where there is no other
        (folder / "tokenizer.json").unlink()
    config = tb.BertConfig.from_hf(CONFIG)
    tokenizer = read_or_refused(lambda: tb.load_tokenizer(folder, config), folder)
    if tokenizer is not None:
        assert max(tokenizer.get_vocab().values()) < config.vocab_size
        ids = tokenizer("the film \u00e4 [MASK]", max_length=8, truncation=True)["input_ids"]
        assert len(ids) <= 8 <= tokenizer.model_max_length
        assert all(0 <= i < config.vocab_size for i in ids)


@law(60)
@given(damaged((TINY / "vocab.txt").read_bytes()) | st.lists(st.sampled_from(VOCABULARY)).map("\n".join))
@example("\n".join([*VOCABULARY[:90], *["the"] * 20]))  # whose ids go beyond their number
@example("\ufeff" + "\n".join(VOCABULARY[:60]))  # whose [PAD] would be appended
def test_an_odd_vocabulary_is_read_or_refused(folder, content):
    check_tokenizer(folder, {"vocab.txt": content})


@law(60)
@given(
    edited(
        json.loads((TINY / "tokenizer_config.json").read_text()), "added_tokens_decoder", "extra_special_tokens"
    ).map(json.dumps)
    | damaged((TINY / "tokenizer_config.json").read_bytes())
)
@example(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": "512"}))
def test_an_odd_tokenizer_config_is_read_or_refused(folder, content):
    check_tokenizer(folder, {"tokenizer_config.json": content})


TOKENIZER = json.loads((TINY / "tokenizer.json").read_text())


@law(60)
@given(
    edited(TOKENIZER).map(json.dumps)
    | edited(TOKENIZER["model"]).map(lambda model: json.dumps(TOKENIZER | {"model": model}))
    | damaged((TINY / "tokenizer.json").read_bytes())
)
def test_an_odd_tokenizer_file_is_read_or_refused(folder, content):
    check_tokenizer(folder, {"tokenizer.json": content})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_in_place_of_a_file_is_refused(tmp_path, name):
    directory = Path(shutil.copytree(TINY, tmp_path / "bert"))
    for file in (name, "vocab.txt"):
        (directory / file).unlink()
    (directory / name).mkdir()
    with pytest.raises(InputError, match=r"no such file|no model\.safetensors|no tokenizer\.json"):
        tb.load_tokenizer(directory, tb.load_hf(directory)[0])
    with pytest.raises(InputError, match="cannot be read"):
        vector_neighbours(directory)
