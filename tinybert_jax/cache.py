"""The user's cache folder. An entry is a folder that is published by one rename."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinybert_jax.errors import InputError

T = TypeVar("T")


def cache_folder(cache_dir: Path | None) -> Path:
    """`cache_dir`; else `$TINYBERT_JAX_CACHE`, `$XDG_CACHE_HOME/tinybert_jax` or `~/.cache/tinybert_jax`."""
    if cache_dir is not None:
        return cache_dir
    if os.environ.get("TINYBERT_JAX_CACHE"):
        return Path(os.environ["TINYBERT_JAX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinybert_jax"


def cached(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """What `load` makes of the folder `entry`. If the folder is missing or does not load, `build` fills it first.

    The folder appears by one rename, so a killed process leaves no half-written entry, and one of two racing processes
    wins.

    Raises:
        InputError: the cache cannot be written.
    """
    try:
        return _load_or_build(entry, build, load)
    except FileNotFoundError:  # another process has removed the entry, to make room for its own
        return _load_or_build(entry, build, load)


def _load_or_build(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    corrupt = False
    if entry.is_dir():
        try:
            return load(entry)
        except Exception as error:  # a damaged file can fail in any way, and the remedy is the same
            logging.getLogger(__name__).warning("%s does not load (%s); it is built again", entry, error)
            corrupt = True
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".tmp-", ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            build(new)
            if corrupt:
                with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                    entry.rename(Path(temporary) / "old")
            try:
                new.rename(entry)
            except OSError:
                if not entry.is_dir():
                    raise
                # Another process was first. Entries of the same key have the same content, so that one is used.
    except OSError as error:
        raise InputError(f"{entry.parent}: cannot write the cache ({error}): set TINYBERT_JAX_CACHE") from error
    return load(entry)


def cached_arrays(
    cache_dir: Path | None, kind: str, fingerprint: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The named arrays that `make` computes, cached under `kind` and `fingerprint`, which covers all they depend on.

    Raises:
        InputError: the cache cannot be written.
    """

    def build(folder: Path) -> None:
        np.savez(folder / f"{kind}.npz", allow_pickle=False, **make())

    def load(folder: Path) -> dict[str, np.ndarray]:
        # An .npz is a zip, so every array has a checksum. numpy does not close a damaged file that it opened itself.
        with open(folder / f"{kind}.npz", "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    return cached(cache_folder(cache_dir) / kind / fingerprint, build, load)
