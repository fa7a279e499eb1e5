"""The command `tinybert push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def push(directory: Annotated[Path, tyro.conf.Positional], /, to: str, private: bool = False) -> None:
    """Upload a model directory to the Hugging Face hub. Its README.md becomes the model's page, so read it first.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        directory: a directory that another command wrote: the student of a run, a compressed model, or an export.
        to: the repository, as owner/name. It is created if it does not exist. Files with the same names are replaced.
        private: make the repository private.
    """
    from tinybert_jax.export import push as pushing

    print(f"uploaded to {pushing.push(directory, to, private)}")
