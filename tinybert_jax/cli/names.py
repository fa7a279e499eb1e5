"""The names of commands and options, and the values that they take. What does not exist is refused in one line."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tinybert_jax.errors import InputError, nearest

Commands = Mapping[str, Callable[..., Any]]
HELP = ("--help", "-h")


def expanded(argument: str) -> str:
    """The argument with `~/` replaced by the home directory. A shell does not replace it in `--data=~/reviews`.

    >>> expanded("--label-column=a~b"), expanded("~")  # a label delimiter
    ('--label-column=a~b', '~')
    """
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (os.path.expanduser(value) if value.startswith("~/") else value)


def check_arguments(arguments: Sequence[str], commands: Commands) -> None:
    """Refuse, in one line, mistakes for which the parser would print a page: a command or option that does not exist,
    a missing option or value, and a value that is not a number or not one of the option's words.

    Raises:
        InputError: there is such a mistake. The message names it, and the most similar name if there is one.
    """
    if not arguments:
        raise InputError(f"give a command: {', '.join(commands)}; what they do: tinybert --help")
    if arguments[0] in HELP or arguments[0].startswith("--tyro-"):
        return
    command, *rest = arguments
    if command.startswith("-"):
        raise InputError(f"{command}: the command comes first, and is one of {', '.join(commands)}")
    if command not in commands:
        raise InputError(f"no command {command!r}{nearest(command, commands)}; there are {', '.join(commands)}")
    options = _options(commands[command])
    more = f"all are in: tinybert {command} --help"
    for argument in filter(_is_option, rest):
        name = _name(argument)
        if name in options or name in HELP:
            continue
        others = [other for other in commands if name in _options(commands[other])]
        answer = f", but {', '.join(others)} {'has' if len(others) == 1 else 'have'}" if others else ""
        raise InputError(f"tinybert {command} has no option {name}{answer or nearest(name, options)}; {more}")
    if not set(HELP) & set(rest):
        _check_values(command, rest, options, _positionals(commands[command]), more)


def _check_values(
    command: str, rest: Sequence[str], options: Mapping[str, Option], positionals: Mapping[str, float], more: str
) -> None:
    """Refuse values that an option does not take, and missing options and arguments."""
    values: dict[str, list[str]] = {}
    free: list[str] = []  # values that follow no option
    room = 0.0  # how many more values the last option takes
    for argument in rest:
        if _is_option(argument):
            name, (_, equals, value) = _name(argument), argument.partition("=")
            if name in values and options[name].most == math.inf:
                raise InputError(f"{name} is there twice: give it once, followed by all its values; {more}")
            values[name] = [value] if equals else []
            room = options[name].most - len(values[name])
        elif room > 0:
            values[name].append(argument)
            room -= 1
        else:
            free.append(argument)
    for name, texts in values.items():
        option = options[name]
        if len(texts) > option.most or (not texts and option.most == 1):
            raise InputError(f"{name} {'takes' if texts else 'has'} no value; {more}")
        for text in texts:
            if not option.takes(text):
                raise InputError(f"{name} {text}: give {option.remedy}{nearest(text, option.words)}")
    if len(free) > sum(positionals.values()):
        raise InputError(f"tinybert {command}: {free[len(positionals)]!r} is the value of no option; {more}")
    lacking = [name for name, most in positionals.items() if most == 1][len(free) :]
    missing = lacking + [name for name, option in options.items() if option.required and name not in values]
    if missing:
        named = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        raise InputError(f"tinybert {command} needs {named}; {more}")


def _is_option(argument: str) -> bool:
    return re.match("--?[a-z]", argument) is not None


def _name(argument: str) -> str:
    """The name of an argument's option, as the help spells it."""
    return argument.partition("=")[0].replace("_", "-")


class Option(NamedTuple):
    """An option of a command, and the values that it takes."""

    required: bool
    most: float  # largest number of values: 0 for a flag, 1, or infinity
    words: tuple[str, ...]
    number: type | None  # int or float, which a value may be
    is_free: bool  # any text is a value

    def takes(self, value: str) -> bool:
        """Whether the option takes this value."""
        if self.is_free or value in self.words:
            return True
        try:
            return self.number is not None and self.number(value) is not None
        except ValueError:
            return False

    @property
    def remedy(self) -> str:
        """What a message advises to give."""
        number = {int: "a whole number", float: "a number"}.get(self.number or str)
        return " or ".join(filter(None, (f"one of {', '.join(self.words)}" if self.words else "", number)))


def option_names(command: Callable[..., Any]) -> Iterator[str]:
    """The options of a command, with `--no-...` for flags: its parameters, and the fields of its dataclasses."""
    yield from _options(command)


def _options(command: Callable[..., Any]) -> dict[str, Option]:
    hints = typing.get_type_hints(command, include_extras=True)
    options: dict[str, Option] = {}
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            continue
        kind, *marks = typing.get_args(hints[parameter.name]) if _is_annotated(hints[parameter.name]) else [None]
        if dataclasses.is_dataclass(kind):
            fields = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
                options |= _spelled(field.name, fields[field.name], required)
        else:
            names = [name for mark in marks if (name := getattr(mark, "name", None))]
            required = parameter.default is inspect.Parameter.empty
            options |= _spelled(names[0] if names else parameter.name, hints[parameter.name], required)
    return options


def _positionals(command: Callable[..., Any]) -> dict[str, float]:
    """The positional arguments, as a message calls them, and the largest number of values of each.

    A command that takes any number of them checks them itself.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    return {
        f"a file ({name.upper()})": math.inf if Ellipsis in _types(hints[name]) else 1.0
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    }


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _spelled(name: str, kind: Any, required: bool) -> dict[str, Option]:
    option = f"--{name.replace('_', '-')}"
    kinds = [*_types(kind)]
    if kinds == [bool]:
        flag = Option(False, 0, (), None, False)
        return {option: flag, option.replace("--", "--no-", 1): flag}
    words = tuple(each for each in kinds if isinstance(each, str))
    number = float if float in kinds else int if int in kinds else None
    is_free = any(each not in (int, float, Ellipsis) and not isinstance(each, str) for each in kinds)
    return {option: Option(required, math.inf if Ellipsis in kinds else 1, words, number, is_free)}


def _types(kind: Any) -> Iterator[Any]:
    """The types of an option's values: words, numbers and others; and `...` if it takes any number of values."""
    if _is_annotated(kind):
        yield from _types(typing.get_args(kind)[0])
    elif typing.get_origin(kind) is typing.Literal:
        yield from typing.get_args(kind)
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        for each in typing.get_args(kind):
            yield from _types(each)
    elif kind is not type(None):  # the parser takes no None: an option is left out
        yield kind
