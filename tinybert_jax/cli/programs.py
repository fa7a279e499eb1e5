"""JAX's compilation cache, kept between commands."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os

from tinybert_jax.cache import TITLE, cache_folder
from tinybert_jax.devices.processor import instructions
from tinybert_jax.errors import InputError, nearest_existing

MOST_BYTES = 2_000_000_000  # beyond it, the least recently used programs are removed


def keep_programs() -> None:
    """Let JAX keep compiled programs in the cache folder, where a resumed run and the next command find them.

    Call it before JAX is imported, which makes the folder when it first compiles; the next command writes its title.
    There is one folder for each jaxlib version and kind of processor. The environment variable
    `JAX_COMPILATION_CACHE_DIR` names another folder; if it is empty, nothing is kept. Nothing is kept if the folder
    cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    version = importlib.metadata.version("jaxlib")
    digest = hashlib.sha256(f"{version} {instructions()}".encode()).hexdigest()
    try:
        folder = cache_folder(None) / "programs" / digest
        if folder.is_dir():
            (folder / TITLE).write_text(f"what jaxlib {version} compiled", "utf-8")
    except (OSError, InputError):
        return
    parent = nearest_existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(MOST_BYTES)  # with it, JAX locks the folder while it writes
