"""Hugging Face directory <-> (config, params, tokenizer), exact both ways."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import SLIM, BertConfig
from tinybert_jax.models.files.bitmask import PACKED_FILE, pack
from tinybert_jax.models.files.tensors import FIT_NAMES, architecture, from_hf_tensors, to_hf_tensors
from tinybert_jax.models.files.weights import TORCH_FILE, first_line, read_json, read_tensors, write_tensors
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import resize_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # one of which holds the vocabulary
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]
HUB_FILES += ["tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "special_tokens*", "added_tokens.json"]


def resolve(name: str) -> Path:
    """The directory of a model given as a directory or as a hub id, which is downloaded once.

    Raises:
        InputError: there is no such directory, and the hub did not give it either.
    """
    # os.path, because pathlib raises on a name that is too long and on a user that there is not
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or os.path.exists(path)
    if looks_local or "/" not in name:
        raise InputError(f"{name}: no such directory; give a Hugging Face model directory, or a hub id (owner/name)")
    import huggingface_hub

    try:
        with contextlib.suppress(FileNotFoundError):
            cached = Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
            if _is_whole(cached):
                return cached
        # offline, this fails at once; a download retries
        there = [file.rfilename for file in huggingface_hub.HfApi().model_info(name, timeout=5).siblings or []]
        weights = [] if any(file.endswith(".safetensors") for file in there) else [TORCH_FILE]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES + weights))
    except Exception as error:  # the hub client raises its own, requests' and httpx's errors
        raise InputError(
            f"{name}: no such directory, and it could not be fetched from the Hugging Face hub ({first_line(error)})"
        ) from None


def _is_whole(cached: Path) -> bool:
    """Whether a snapshot of the hub holds a model: another program may have fetched its config alone."""
    index = cached / "model.safetensors.index.json"
    weights = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    has_weights = all((cached / file).is_file() for file in weights)
    has_weights |= any((cached / file).is_file() for file in (PACKED_FILE, TORCH_FILE))
    named = any((cached / file).is_file() for file in TOKENIZER_FILES)
    return (cached / "config.json").is_file() and has_weights and named


def fingerprint(directory: str | Path) -> str:
    """sha256 of a model directory's config and weights."""
    path = resolve(str(directory))
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors"), *path.glob(TORCH_FILE)]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_config(directory: str | Path) -> BertConfig:
    """The config of a Hugging Face directory.

    Raises:
        InputError: `config.json` is missing, is not JSON, or describes what this library cannot run.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        of_run = (path.parent / "student" / path.name).is_file()
        answer = " no, a run's: its model is in its student/" if of_run else ""
        raise InputError(f"{path}: no such file; is {directory} a Hugging Face model directory?{answer}")
    hf = read_json(path)
    if not isinstance(hf, dict):
        raise InputError(f"{path}:1: no JSON object: copy the model's own file anew")
    try:
        return BertConfig.from_hf(hf)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load_architectures(directory: str | Path) -> list[str]:
    """The names of the classes of `transformers` that a `config.json` gives."""
    return re.findall(r"\w+", str(read_json(Path(directory) / "config.json").get("architectures")))


def load_hf(directory: str | Path) -> tuple[BertConfig, Params]:
    """Config and float32 parameters of a BERT checkpoint, with every head it holds.

    Args:
        directory: a Hugging Face directory (`model.safetensors`, one file or sharded; `pytorch_model.bin` only where
            torch is installed), or a hub id.

    Returns:
        The config, and the parameters as `{"encoder": ...}` plus heads; leaves of layers are stacked [l, ...].
        A TinyBERT as its authors' code saves it also has `fit_dense`, or, stacked [l + 1, ...], `fit_denses`:
        projections of its hidden states to its teacher's width; its classifier is left out, with a note.

    Raises:
        InputError: a file is missing or damaged; a tensor is missing, surplus, not of the config's shape, or holds
            what is no number.
    """
    path = resolve(str(directory))
    config = load_config(path)
    params = from_hf_tensors(config, read_tensors(path), str(path))
    architectures = load_architectures(path)
    named = [row for row in HEADS.values() if config.family.architecture + row.architecture in architectures]
    if any(row.pooled is False for row in named):
        params["encoder"].pop("pooler", None)  # older versions of `transformers` saved one that nothing reads
    is_ours = any(row.key == "classifier" for row in named)
    if "classifier" in params and any(name in params for name in FIT_NAMES) and not is_ours:
        del params["classifier"]
        print(
            f"note: {path}: its classifier is left out: that of TinyBERT's authors has a ReLU before it, which BERT's"
            " has not",
            file=sys.stderr,
        )
    return config, params


def save_hf(
    directory: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None = None,
    packed: bool = False,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files as `transformers` reads them.

    Args:
        directory: made if it does not exist.
        config: of the model.
        params: as `load_hf` gives them; which heads they hold decides `architectures`.
        tokenizer: saved beside the weights where given.
        packed: write matrices with many zeros without them, which no class of `transformers` reads.

    Raises:
        OSError: something could not be written.
    """
    path = Path(directory)
    save_description(path, config, params, tokenizer, packed)
    tensors = to_hf_tensors(resize_vocabulary(params, config.vocab_size), config)
    write_tensors(path / (PACKED_FILE if packed else "model.safetensors"), pack(tensors) if packed else tensors)
    if packed:
        (path / "model.safetensors").unlink(missing_ok=True)  # of a model that was here; it would be read first


def save_description(
    directory: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None,
    packed: bool = False,
) -> None:
    """Write `config.json` and the tokenizer's files; arguments are those of `save_hf`.

    Raises:
        OSError: something could not be written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    hf = config.to_hf() | {"architectures": [architecture(params, config)], "dtype": "float32"}
    if packed:
        hf["model_type"] = SLIM + config.model_type
    (path / "config.json").write_text(json.dumps(hf, indent=2, sort_keys=True) + "\n", "utf-8")
    if tokenizer is None:
        return
    try:
        tokenizer.save_pretrained(path)
    except OSError:
        raise
    except Exception as error:  # of its Rust, for which a full disk is no OSError
        raise OSError(errno.EIO, first_line(error), str(path)) from error
    if not config.type_vocab_size:
        _leave_out_token_types(path / "tokenizer_config.json")


def _leave_out_token_types(tokenizer_config: Path) -> None:
    """Make a saved tokenizer give no token types, which models without them refuse in `transformers`."""
    described = read_json(tokenizer_config) | {"model_input_names": ["input_ids", "attention_mask"]}
    tokenizer_config.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
