"""A model's name, which is a directory or a hub id -> its directory; and the fingerprint of a directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from tinybert_jax.errors import InputError, first_line
from tinybert_jax.models.files.weights import TORCH_FILE, no_weights, weights_file, weights_files

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # one of them holds the vocabulary
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".txt")  # of files in a model's directory
DESCRIPTIONS = ["config.json", "tokenizer*", "vocab.txt", "vocab.json", "merges.txt"]
DESCRIPTIONS += ["special_tokens*", "added_tokens.json"]
DESCRIPTIONS += ["modules.json", "[0-9]_*/*", "sentence_*config.json", "config_sentence_transformers.json"]
CARD = "README.md"  # fetched with the other files; a cached model without it is complete too
# kinds of weight files; one kind is fetched from a repository
WEIGHTS_ON_HUB = (["*.safetensors", "*.safetensors.index.json"], ["pytorch_model*"], ["flax_model*"])
NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
HUB_ID = re.compile(rf"(?P<id>({NAME}/)?{NAME})(@(?P<revision>[^@\s]+))?")


def resolve(name: str) -> Path:
    """The directory of a model. `name` is a directory, or a hub id, which is downloaded once.

    A hub id is `owner/name`, or only the name for old models such as `bert-base-uncased`. A revision may follow: `@`
    and a branch, a tag, a commit or `refs/pr/2`.

    Raises:
        InputError: there is no such directory, and the hub id could not be downloaded.
    """
    # os.path, because pathlib raises on a name that is too long and on an unknown user
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path
    hub_id = HUB_ID.fullmatch(name)
    if os.path.isfile(path):
        part = path.suffix in MODEL_SUFFIXES
        advice = f": {path.parent}" if part else ", with its config.json and weights"
        raise InputError(f"{name}: is a file; give the directory of the model{advice}")
    if path.name == "student" and os.path.isfile(path.parent / "experiment.json"):
        raise InputError(f"{name}: the run {path.parent} is not finished: continue it with --resume")
    if hub_id is None or os.path.exists(path):
        raise InputError(
            f"{name}: no such directory; give a Hugging Face model directory, or a hub id (owner/name, or"
            " owner/name@revision)"
        )
    import huggingface_hub

    repository, revision = hub_id["id"], hub_id["revision"]
    try:
        with contextlib.suppress(FileNotFoundError):
            cached = huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=DESCRIPTIONS, local_files_only=True
            )
            if _is_whole(Path(cached)):
                return Path(cached)
        # offline, this fails at once; a download retries
        listed = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=5).siblings or []
        names = [file.rfilename for file in listed]
        weights = weights_file(names)
        if weights is None:
            raise no_weights(name, names)
        patterns = next(form for form in WEIGHTS_ON_HUB if any(Path(weights).match(pattern) for pattern in form))
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*DESCRIPTIONS, CARD, *patterns]
            )
        )
    except InputError:
        raise
    except Exception as error:  # the hub client raises its own, requests' and httpx's errors
        raise InputError(
            f"{name}: no such directory, and it could not be fetched from the Hugging Face hub ({first_line(error)})"
        ) from None


def hub_id(name: str) -> str | None:
    """The hub id in a model's name, without the revision; None if it is not an id, or a file or directory."""
    matched = None if os.path.exists(os.path.expanduser(name)) else HUB_ID.fullmatch(name)
    return matched and matched["id"]


def _is_whole(cached: Path) -> bool:
    """Whether a snapshot of the hub is a complete model. Another program may have fetched only its config."""
    weights = weights_files(cached)
    named = any((cached / file).is_file() for file in TOKENIZER_FILES)
    return (cached / "config.json").is_file() and bool(weights) and all(map(Path.is_file, weights)) and named


def fingerprint(directory: str | Path) -> str:
    """The sha256 of a model directory's config, weights and modules of sentence-transformers."""
    path = resolve(str(directory))
    digest = hashlib.sha256()
    weights = [*path.glob("*.safetensors"), *path.glob(TORCH_FILE)] or weights_files(path)
    modules = [file for pattern in ("modules.json", "[0-9]_*/*") for file in path.glob(pattern) if file.is_file()]
    for file in sorted([path / "config.json", *weights, *modules]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
