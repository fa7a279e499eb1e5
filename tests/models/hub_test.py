"""A missing directory is not taken for a model on the hub, and of such a model all files are fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import tinybert_jax as tb


@pytest.mark.parametrize("name", ["no-such-directory", "./no/such", "/no/such", "~no-such-user/x", "x" * 5000])
def test_missing_directory_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(tb.InputError, match="no such directory; give a Hugging Face model directory"):
        tb.load_hf(name)


def test_hub_id_offline_is_refused_at_once() -> None:
    with pytest.raises(tb.InputError, match="owner/name: no such directory, and it could not be fetched"):
        tb.load_hf("owner/name")


@pytest.mark.parametrize("file", ["model.safetensors", "model.bitmask.safetensors"])
def test_of_a_hub_model_of_which_only_the_config_is_there_the_rest_is_fetched(
    file: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, asked = tmp_path / "cached", []
    tb.save_hf(directory, *tb.load_hf(directory), packed=file != "model.safetensors")
    (directory / "added_tokens.json").write_text("{}")
    cached.mkdir()
    shutil.copy(directory / "config.json", cached)

    def snapshot_download(name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            for pattern in allow_patterns:
                for file in directory.glob(pattern):
                    shutil.copy(file, cached)
        return str(cached)

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file)])
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: listed)
    for _ in range(2):
        tb.load_hf("owner/name")
    assert asked == [True, False, True]
    assert (cached / "added_tokens.json").is_file(), "without it, added tokens are cut into pieces"
