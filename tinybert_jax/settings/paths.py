"""Paths in settings: strings or `os.PathLike`, with `~` as the home directory."""

from __future__ import annotations

import os
from typing import Any


def expand_paths(settings: object, *names: str) -> None:
    """Write the paths in these fields as strings, with the user's home directory in place of `~`.

    A field is a path or several. What is no path, such as None or a function that teaches, stays.
    """
    for name in names:
        value = getattr(settings, name)
        several = isinstance(value, tuple | list)
        object.__setattr__(settings, name, tuple(map(_expanded, value)) if several else _expanded(value))


def _expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value
