"""The names of commands and options. One that does not exist is refused with the nearest one that does."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tinybert_jax.errors import InputError

Commands = Mapping[str, Callable[..., Any]]
HELP = ("--help", "-h")


def expanded(argument: str) -> str:
    """The argument with its user's home directory for `~`, which a shell leaves alone in `--data=~/reviews`.

    >>> expanded("--label-column=a~b"), expanded("a~b")
    ('--label-column=a~b', 'a~b')
    """
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + os.path.expanduser(value)


def check_names(arguments: Sequence[str], commands: Commands) -> None:
    """Refuse a command or an option that does not exist. Values are left to the parser.

    Raises:
        InputError: names the nearest command or option.
    """
    if not arguments or arguments[0] in HELP or arguments[0].startswith("--tyro-"):
        return
    command, *rest = arguments
    if command.startswith("-"):
        raise InputError(f"{command}: the command comes first, and is one of {', '.join(commands)}")
    if command not in commands:
        raise InputError(f"no command {command!r}{_nearest(command, commands)}; there are {', '.join(commands)}")
    options = set(option_names(commands[command]))
    for argument in rest:
        name = argument.partition("=")[0].replace("_", "-")
        if not re.match("--?[a-z]", name) or name in options or name in HELP:
            continue
        others = [other for other in commands if name in option_names(commands[other])]
        answer = f", but {', '.join(others)} {'has' if len(others) == 1 else 'have'}" if others else ""
        raise InputError(
            f"tinybert {command} has no option {name}{answer or _nearest(name, options)}; all are in: tinybert"
            f" {command} --help"
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(names), 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def option_names(command: Callable[..., Any]) -> Iterator[str]:
    """The options of a command, `--no-...` of a flag among them: its parameters, and the fields of dataclasses."""
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            continue
        kind, *marks = typing.get_args(hints[parameter.name]) if _is_annotated(hints[parameter.name]) else [None]
        if dataclasses.is_dataclass(kind):
            types = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                yield from _spelled(field.name, types[field.name])
        else:
            names = [name for mark in marks if (name := getattr(mark, "name", None))]
            yield from _spelled(names[0] if names else parameter.name, hints[parameter.name])


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _spelled(name: str, kind: Any) -> Iterator[str]:
    option = name.replace("_", "-")
    yield f"--{option}"
    if kind is bool:
        yield f"--no-{option}"
