"""A missing directory is not taken for a model on the hub, and of such a model all files are fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, write_sentence_model

import tinybert_jax as tb
from tinybert_jax.models.config import TextVector
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.hub import resolve


class Hub:
    """A hub with one repository, in place of the network: it copies files as the real client does."""

    def __init__(self, repository: Path, cached: Path) -> None:
        self.repository, self.cached, self.asked = repository, cached, list[tuple[str, str | None, bool]]()

    def snapshot_download(
        self, name: str, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        self.asked.append((name, revision, local_files_only))
        if not local_files_only:
            for pattern in allow_patterns:
                for file in self.repository.glob(pattern):
                    target = self.cached / file.relative_to(self.repository)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copy(file, target)
        return str(self.cached)

    def model_info(self, _client: Any, _name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file.name) for file in self.repository.iterdir()])


@pytest.fixture
def hub(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose repository is a copy of the classifier among the fixtures; its config is in the cache already."""
    (tmp_path / "cached").mkdir()
    shutil.copy(directory / "config.json", tmp_path / "cached")
    hub = Hub(directory, tmp_path / "cached")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **named: hub.model_info(*args, **named))
    return hub


def test_a_run_that_is_not_finished_is_no_model_yet(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").touch()
    with pytest.raises(tb.InputError, match=f"the run {tmp_path} is not finished: continue it with --resume"):
        resolve(str(tmp_path / "student"))
    with pytest.raises(tb.InputError, match="no, a run's that is not finished: continue it with --resume"):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["./no/such", "no/such/directory", "/no/such", "~no-such-user/x", "x" * 5000])
def test_missing_directory_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(tb.InputError, match="no such directory; give a Hugging Face model directory"):
        tb.load_hf(name)


def test_a_file_of_weights_is_refused_with_its_directory() -> None:
    with pytest.raises(tb.InputError, match=f"is a file; give the directory of the model: {TINY}$"):
        tb.load_hf(TINY / "model.safetensors")


def test_a_file_that_is_no_part_of_a_model_is_refused_without_its_directory(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(tb.InputError, match=r"rows.csv: is a file; give the directory of the model, with its config"):
        tb.load_hf(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["owner/name", "no-such-directory"])
def test_hub_id_offline_is_refused_at_once(name: str) -> None:
    with pytest.raises(tb.InputError, match=f"{name}: no such directory, and it could not be fetched"):
        tb.load_hf(name)


@pytest.mark.parametrize("file", ["model.safetensors", "model.bitmask.safetensors"])
def test_of_a_hub_model_of_which_only_the_config_is_there_the_rest_is_fetched(file: str, hub: Hub) -> None:
    directory = hub.repository
    tb.save_hf(directory, *tb.load_hf(directory), packed=file != "model.safetensors")
    (directory / "added_tokens.json").write_text("{}")
    for _ in range(2):
        tb.load_hf("owner/name")
    assert [local for *_, local in hub.asked] == [True, False, True]
    assert (hub.cached / "added_tokens.json").is_file(), "without it, added tokens are cut into pieces"


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("bert-base-uncased", "bert-base-uncased", None),
        ("owner/name@refs/pr/2", "owner/name", "refs/pr/2"),
        ("bert-base-uncased@main", "bert-base-uncased", "main"),
    ],
)
def test_a_hub_id_may_have_no_owner_and_a_revision(name: str, repository: str, revision: str | None, hub: Hub) -> None:
    assert resolve(name) == hub.cached
    assert {asked[:2] for asked in hub.asked} == {(repository, revision)}


def test_the_modules_of_sentence_transformers_are_fetched(hub: Hub) -> None:
    shutil.rmtree(hub.repository)
    write_sentence_model(hub.repository, width=10)
    config, params = tb.load_hf("owner/name")
    assert config.embedding == TextVector("mean", 10, normalize=True)
    assert params["embedding_dense"]["kernel"].shape == (24, 10)
    assert tb.load_tokenizer("owner/name", config).model_max_length == 12


def test_a_directory_whose_name_has_an_at_sign_is_a_directory(directory: Path, tmp_path: Path) -> None:
    assert resolve(str(directory.rename(tmp_path / "bert@2"))) == tmp_path / "bert@2"


SHARDED = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack", "training_args.bin"], ["pytorch_model.bin"]),
        (["flax_model.msgpack", "tf_model.h5"], ["flax_model.msgpack"]),
        ([*SHARDED, "flax_model.msgpack"], SHARDED),
    ],
)
def test_one_kind_of_weights_is_fetched(there: list[str], fetched: list[str], hub: Hub) -> None:
    (hub.repository / "model.safetensors").unlink()
    for file in there:
        source = TINY.parent / "torch-files" / file
        (hub.repository / file).write_bytes(source.read_bytes() if source.is_file() else b"weights")
    descriptions = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {file.name for file in resolve("owner/name").iterdir()} == {*fetched, *descriptions}
    (hub.cached / fetched[0]).unlink()  # as if the download had broken off
    resolve("owner/name")
    assert (hub.cached / fetched[0]).is_file()


def test_a_repository_without_weights_that_are_read_says_so(hub: Hub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "tf_model.h5")
    with pytest.raises(tb.InputError, match=r"^owner/name: no model\.safetensors in it, .*; tf_model\.h5 is not read"):
        resolve("owner/name")
