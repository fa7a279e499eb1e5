"""Weights are read from whatever file `transformers` keeps them in, without torch, and no code in a file runs."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest
from conftest import TINY
from flax import traverse_util
from fuzzing import damaged, law, put, read_or_refused
from hypothesis import given
from safetensors.numpy import load_file

import tinybert_jax as tb
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.torch_file import read_torch

FILES = TINY.parent / "torch-files"
MASKED_LM = TINY.parent / "tiny-bert-mlm"


@pytest.fixture
def unweighted(tmp_path: Path) -> Path:
    """A copy of the masked LM, without its weights."""
    directory = Path(shutil.copytree(MASKED_LM, tmp_path / "bert"))
    (directory / "model.safetensors").unlink()
    return directory


def write_zip(path: Path, content: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("form", ["kinds.bin", "kinds-legacy.bin"])
def test_tensors_of_every_kind_are_read_as_torch_wrote_them(form: str) -> None:
    tensors, expected = read_torch(FILES / form), load_file(FILES / "kinds.safetensors")
    assert {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()} == {
        name: (t.dtype, t.shape, t.tobytes()) for name, t in expected.items()
    }


@pytest.mark.parametrize("files", ["pytorch_model.bin", "pytorch_model*-of-*"])
def test_a_pytorch_model_is_the_model_that_its_safetensors_are(unweighted: Path, files: str) -> None:
    index = FILES / "pytorch_model.bin.index.json"
    for file in [*FILES.glob(files), *([index] if "*" in files else [])]:
        shutil.copy(file, unweighted)
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(unweighted), tb.load_hf(MASKED_LM))
    before = fingerprint(unweighted)
    changed = max(unweighted.glob("*.bin"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    assert fingerprint(unweighted) != before


def test_a_shard_that_is_not_there_is_named(unweighted: Path) -> None:
    shutil.copy(FILES / "pytorch_model.bin.index.json", unweighted)
    with pytest.raises(tb.InputError, match=r"pytorch_model-00001-of-00002\.bin: no such file, but the index names"):
        tb.load_hf(unweighted)


def as_flax(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of the Flax model of `transformers` 4 with these tensors of the torch model."""
    flat = {}
    for name, tensor in tensors.items():
        *begin, last = name.split(".")
        if last == "weight":
            last = "scale" if begin[-1] == "LayerNorm" else "embedding" if "embeddings" in begin[-1] else "kernel"
        flat[(*begin, last)] = tensor.T if last == "kernel" else tensor
    return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-bert-mlm", "tiny-roberta", "tiny-distilbert", "tiny-albert"])
def test_a_flax_model_is_the_model_that_its_safetensors_are(name: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY.parent / name, tmp_path / "bert"))
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    (directory / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(as_flax(tensors)))
    jax.tree.map(np.testing.assert_array_equal, tb.load_hf(directory), tb.load_hf(TINY.parent / name))


@pytest.mark.parametrize("content", [b"", b"xxxxxxxxxx", flax.serialization.msgpack_serialize({"bert": {"a": 1}})])
def test_a_flax_file_without_tensors_is_refused(unweighted: Path, content: bytes) -> None:
    (unweighted / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(tb.InputError, match=r"flax_model\.msgpack: (damaged or truncated .*; fetch|'bert\.a' is no)"):
        tb.load_hf(unweighted)


class Runs:
    """What runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_no_code_in_a_pickle_runs(unweighted: Path, tmp_path: Path) -> None:
    write_zip(unweighted / "pytorch_model.bin", {"a": Runs(f"touch {tmp_path}/ran")})
    with pytest.raises(tb.InputError, match=r"names posix\.system, so it holds more than tensors"):
        tb.load_hf(unweighted)
    (unweighted / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(f"touch {tmp_path}/ran")))
    with pytest.raises(tb.InputError, match=r"names posix\.system"):  # where the legacy form has a number
        tb.load_hf(unweighted)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(unweighted: Path) -> None:
    shutil.copy(FILES / "whole-module.bin", unweighted / "pytorch_model.bin")
    with pytest.raises(tb.InputError) as refused:
        tb.load_hf(unweighted)
    assert str(refused.value) == (
        f"{unweighted}/pytorch_model.bin: names torch.nn.modules.linear.Linear, so it holds more than tensors (a whole"
        " model?), and reading it could run code: open it where you trust it, and save the weights alone:"
        " torch.save(model.state_dict(), 'pytorch_model.bin')"
    )


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ([1.0], r"torch\.save\(model\.state_dict\(\), 'pytorch_model\.bin'\)"),
        ({"epoch": 3}, r"torch\.save\(model\.state_dict\(\), "),
        ({"epoch": 3, "state_dict": {"a": 1}}, r"torch\.save\(checkpoint\['state_dict'\], 'pytorch_model\.bin'\)"),
    ],
)
def test_more_than_named_tensors_is_refused(unweighted: Path, content: Any, remedy: str) -> None:
    write_zip(unweighted / "pytorch_model.bin", content)
    with pytest.raises(tb.InputError, match="holds more than named tensors: save them alone: " + remedy):
        tb.load_hf(unweighted)


@law(150)
@given(damaged((FILES / "pytorch_model.bin").read_bytes()))
def test_a_damaged_torch_file_is_read_or_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp() / "damaged.bin", content)
    read_or_refused(lambda: read_torch(path), path)


@law(300)
@given(damaged((FILES / "kinds-legacy.bin").read_bytes()))
def test_a_damaged_legacy_file_is_read_or_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp() / "legacy.bin", content)
    read_or_refused(lambda: read_torch(path), path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tf_model.h5", b"", r"and no pytorch_model\.bin or flax_model\.msgpack; tf_model\.h5 is not read: .*from_tf"),
        ("model.fp16.safetensors", b"", r"no model\.safetensors in it, .*; model\.fp16\.safetensors is not read"),
        (
            "model-00001-of-00002.safetensors",
            b"",
            r"model-00001-of-00002\.safetensors is a part: fetch model\.safetensors\.index\.json, which names all",
        ),
        ("model.gguf", b"GGUF", r"; model\.gguf is not read: load it with what wrote it"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            r"model\.safetensors: a pointer of Git LFS, not the file: fetch it with `git lfs pull`",
        ),
        ("pytorch_model.bin", b"\x80\x02}q\0.", r"pytorch_model\.bin: no file of torch\.save in a form that is read"),
        ("pytorch_model.bin", b"", r"pytorch_model\.bin: damaged or truncated"),
    ],
)
def test_weights_in_another_form_are_refused_with_what_to_do(
    unweighted: Path, file: str, content: bytes, message: str
) -> None:
    (unweighted / file).write_bytes(content)
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(unweighted)
