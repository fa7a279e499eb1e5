"""The error that names a mistake of the user, and checks of choices and numbers."""

from __future__ import annotations

import re
from typing import Any, get_args


class InputError(Exception):
    """Something the user gave is wrong. One line: what, where (`file:line`), and what to do. Exit code 2.

    No ValueError: the command-line parser would catch it and print its own page instead of the line.
    """

    def __init__(self, message: str) -> None:
        # A name that is quoted from a file (a column, a tensor) may break the line, or be no text at all.
        unprintable = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
        super().__init__(re.sub(unprintable, lambda found: repr(found[0])[1:-1], message))


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Experiment files pass no command-line parser, so a misspelt choice must be caught here.

    Raises:
        InputError: the value is none of the Literal `choices`.
    """
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def check_seed(name: str, seed: int) -> None:
    """A larger seed would give the keys of a smaller one.

    Raises:
        InputError: it is none.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"{name} is {seed}; it must be a whole number in [0, 2**32)")
