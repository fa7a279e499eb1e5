"""The files of a Hugging Face directory -> JSON and tensors, as they are written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tinybert_jax.errors import InputError
from tinybert_jax.models.files.bitmask import PACKED_FILE, unpack

TORCH_FILE = "pytorch_model.bin"


def read_json(path: Path) -> Any:
    """What the file holds.

    Raises:
        InputError: it cannot be read, or is not JSON (`path:line`).
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError, too
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: not JSON ({error}): copy the model's own file anew") from None


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors under their names, from one file or several, or a packed one; `pytorch_model.bin` where there is
    nothing else.

    Raises:
        InputError: a file is missing or damaged, or would need torch.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return _read_safetensors(single)
    if (packed := directory / PACKED_FILE).is_file():
        return unpack(_read_safetensors(packed), packed)
    if index.is_file():
        return _read_shards(index)
    if (directory / TORCH_FILE).is_file():
        return _read_torch(directory / TORCH_FILE)
    raise InputError(f"{directory}: no model.safetensors in it")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file by one rename, with the mode that the umask gives.

    Raises:
        OSError: it could not be written.
    """
    written = path.with_name(f"{path.name}.tmp")
    written.unlink(missing_ok=True)
    written.touch()
    mode = written.stat().st_mode  # as the umask says; safetensors makes files that only their owner can read
    # of a view with other strides, safetensors writes the numbers in another order
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, written, metadata={"format": "pt"})
        written.chmod(mode)
        os.replace(written, path)
    except OSError:
        raise
    except Exception as error:  # of its Rust, for which a full disk is no OSError
        raise OSError(errno.EIO, first_line(error), str(path.parent)) from error


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{index}: not a safetensors index: copy the model's own file anew")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise InputError(f"{index}: names {file!r}, which is no file beside it: copy the model's own file anew")
        if not os.path.isfile(index.parent / file):
            raise InputError(f"{index.parent / file}: no such file, but the index names it: fetch it too")
        shard = _read_safetensors(index.parent / file)
        if twice := sorted(tensors.keys() & shard):
            raise InputError(
                f"{index.parent / file}: holds {twice[0]!r}, as a file before it does: keep one of the two"
            )
        tensors |= shard
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged or truncated ({error}); fetch the file again") from None
    except AttributeError as error:  # numbers of fewer than 8 bits, and some of 8
        raise InputError(f"{path}: holds numbers that numpy has not ({error}): save the model in float32") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading this format needs torch: pip install torch, or convert it to model.safetensors"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)  # an allow-list: no code in the file runs
    except Exception as error:  # pickle, zip and torch errors alike
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: holds more than named tensors; save the model's state_dict() alone")
    # numpy has no bfloat16; what is no float is refused where its name is known to matter
    return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
