"""JSON and tensors of the files in a Hugging Face directory, under their names in the files."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tinybert_jax.errors import InputError, first_line
from tinybert_jax.models.files.bitmask import PACKED_FILE, unpack
from tinybert_jax.models.files.flax_file import read_flax
from tinybert_jax.models.files.foreign import HEAD, LFS_POINTER, foreign_kind
from tinybert_jax.models.files.torch_file import read_torch

TORCH_FILE, FLAX_FILE = "pytorch_model.bin", "flax_model.msgpack"
INDEX = ".index.json"  # the end of the name of an index of sharded weights


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read, or is not JSON (`path:line`).
    """
    try:
        content = path.read_bytes()
        if kind := foreign_kind(content[:HEAD]):
            raise InputError(f"{path}: {kind}")
        return json.loads(content.decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 raise a ValueError too
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: not JSON ({error}): copy the model's own file anew") from None


ADAPTER = "an adapter of PEFT alone: merge it into its model by merge_and_unload(), and save that by save_pretrained()"
SHARD = re.compile(r"(.+)-\d+-of-\d+(\.safetensors|\.bin)")


def weights_file(names: Collection[str]) -> str | None:
    """The name of the file with a directory's weights, or with the index of their shards; None if there is none."""
    return next((name for name in WEIGHTS if name in names), None)


def weights_files(directory: Path) -> list[Path]:
    """The file with a directory's weights, or all its shards, even if they are missing; [] if there are no weights.

    Raises:
        InputError: the index of the shards is damaged.
    """
    name = weights_file(_file_names(directory))
    if name is None:
        return []
    return _shards(directory / name) if name.endswith(INDEX) else [directory / name]


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors by name, from the first file of WEIGHTS that exists.

    Raises:
        InputError: a file is missing or damaged, or the weights are in another format.
    """
    names = _file_names(directory)
    name = weights_file(names)
    if name is None:
        raise no_weights(str(directory), names)
    if not name.endswith(INDEX):
        return _read_file(directory / name, WEIGHTS[name])
    tensors: dict[str, np.ndarray] = {}
    for file in _shards(directory / name):
        if not file.is_file():
            raise InputError(f"{file}: no such file, but the index names it: fetch it too")
        shard = _read_file(file, WEIGHTS[name])
        if twice := sorted(tensors.keys() & shard):
            raise InputError(f"{file}: holds {twice[0]!r}, as a file before it does: keep one of the two")
        tensors |= shard
    return tensors


def _file_names(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir() if file.is_file()]


def no_weights(where: str, names: Collection[str]) -> InputError:
    """The error for a directory whose files, with these names, hold no weights in a supported format."""
    kinds = r"\.(h5|ot|ckpt.*|bin|pth?|safetensors|msgpack|onnx|gguf|ggml)$"
    others = sorted(name for name in names if re.search(kinds, name))
    hint = ""
    if shard := next(filter(None, map(SHARD.fullmatch, others)), None):
        hint = f"; {shard[0]} is a part: fetch {shard[1]}{shard[2]}{INDEX}, which names all parts, too"
    elif "adapter_config.json" in names:
        hint = f"; it holds {ADAPTER}"
    elif others:
        hint = f"; {others[0]} is not read: load it with what wrote it, and save it by save_pretrained()"
        hint += " (with transformers 4: from_pretrained(DIR, from_tf=True))" if others[0].endswith(".h5") else ""
    return InputError(f"{where}: no model.safetensors in it, and no {TORCH_FILE} or {FLAX_FILE}{hint}")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, which appears by one rename, with the permissions of the umask.

    Raises:
        OSError: it could not be written.
    """
    written = path.with_name(f"{path.name}.tmp")
    written.unlink(missing_ok=True)
    written.touch()
    mode = written.stat().st_mode  # by the umask; safetensors makes files that only their owner can read
    # safetensors writes the numbers of a view with other strides in a wrong order
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, written, metadata={"format": "pt"})
        written.chmod(mode)
        os.replace(written, path)
    except OSError:
        raise
    except Exception as error:  # the Rust code does not raise an OSError on a full disk
        raise OSError(errno.EIO, first_line(error), str(path.parent)) from error


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{index}: not an index of weights: copy the model's own file anew")
    for file in files.values():
        if Path(file).name != file:
            raise InputError(f"{index}: names {file!r}, which is no file beside it: copy the model's own file anew")
    return [index.parent / file for file in sorted(set(files.values()))]


def _read_file(path: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: {foreign_kind(LFS_POINTER)}")
    return read(path)


def _read_packed(path: Path) -> dict[str, np.ndarray]:
    return unpack(_read_safetensors(path), path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged or truncated ({error}); fetch the file again") from None
    except AttributeError as error:  # numbers of fewer than 8 bits, and some of 8
        raise InputError(f"{path}: holds numbers that numpy has not ({error}): save the model in float32") from None


# The files that may hold a directory's weights, and their readers. The first that exists is read (`weights_file`).
WEIGHTS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "model.safetensors": _read_safetensors,
    PACKED_FILE: _read_packed,
    "model.safetensors.index.json": _read_safetensors,
    TORCH_FILE: read_torch,
    "pytorch_model.bin.index.json": read_torch,
    FLAX_FILE: read_flax,
    "flax_model.msgpack.index.json": read_flax,
}
