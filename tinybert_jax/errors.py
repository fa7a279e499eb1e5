"""The error for a user's mistake, notes, and checks of choices, numbers and output directories."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

_NOTES: set[str] = set()  # that were printed


class InputError(Exception):
    """The user's input is wrong. The message is one line: what, where (`file:line`), and what to do. Exit code 2.

    It is not a ValueError, because the command-line parser would catch that and print a page instead of the line.
    """

    def __init__(self, message: str) -> None:
        # A name that is quoted from a file (a column, a tensor) may hold line breaks or unpaired surrogates.
        unprintable = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
        super().__init__(re.sub(unprintable, lambda match: repr(match[0])[1:-1], message))


def note(text: str) -> None:
    """Print something that the user should know, on standard error. Each text is printed once in a process."""
    if text not in _NOTES:
        _NOTES.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check that a value is one of the Literal `choices`. Experiment files pass no command-line parser.

    Raises:
        InputError: it is not.
    """
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: asks whether the most similar of `names` is meant, if one is."""
    matches = difflib.get_close_matches(name, sorted(names), 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def check_seed(name: str, seed: int) -> None:
    """Check that a seed is a whole number below 2**32. A larger seed would give the same keys as a smaller one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"{name} is {seed}; it must be a whole number in [0, 2**32)")


def check_unused(out: Path) -> None:
    """Refuse an output directory that would be overwritten.

    Raises:
        InputError: it exists, and is a file or not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")


def check_parent(file: Path) -> None:
    """Refuse a file that cannot be written because its directory is missing.

    Raises:
        InputError: it is.
    """
    if not file.parent.is_dir():
        raise InputError(f"{file}: not in an existing directory: make it first")


def nearest_existing(path: Path) -> Path:
    """The path, or else the nearest of its parents that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
