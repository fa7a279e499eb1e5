"""The `tinybert` command, which finds its subcommands in the modules beside this one; `run` is here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import itertools
import os
import re
import runpy
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import tyro

from tinybert_jax.cli.augment import augment
from tinybert_jax.cli.benchmark import benchmark
from tinybert_jax.cli.cache import cache
from tinybert_jax.cli.compress import compress
from tinybert_jax.cli.evaluate import evaluate
from tinybert_jax.cli.execute import execute
from tinybert_jax.cli.export import export
from tinybert_jax.cli.names import check_arguments, expanded, option_names
from tinybert_jax.cli.options import DeviceOptions
from tinybert_jax.cli.predict import predict
from tinybert_jax.cli.process import prepare_process
from tinybert_jax.cli.programs import keep_programs
from tinybert_jax.cli.push import push
from tinybert_jax.cli.report import report
from tinybert_jax.cli.shrink import shrink
from tinybert_jax.cli.students import students
from tinybert_jax.cli.train import distill, finetune, pretrain
from tinybert_jax.errors import InputError
from tinybert_jax.settings.experiment import Experiment


def run(
    experiment: Annotated[Path, tyro.conf.Positional],
    /,
    devices: DeviceOptions,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
) -> None:
    """Run an experiment file: a Python file that defines `experiment = tinybert_jax.Experiment(...)`.

    Args:
        experiment: the experiment file.
        devices: devices and processes, as in every training command.
        out: directory of the run. Default: runs/NAME-seedN, where NAME is the file's name and N the seed.
        seed: replaces the seed in the file.
        resume: continue the run in --out.
    """
    if not experiment.is_file():
        raise InputError(f"{experiment}: no such file")
    try:
        described = runpy.run_path(str(experiment)).get("experiment")
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        raise InputError(f"{experiment}: {type(error).__name__}: {error}") from None
    if not isinstance(described, Experiment):
        raise InputError(f"{experiment}: defines no `experiment = tinybert_jax.Experiment(...)`")
    if seed is not None:
        described = dataclasses.replace(described, seed=seed)
    execute([described], out or Path("runs") / f"{experiment.stem}-seed{described.seed}", resume, devices)


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run,
    "students": students,
    "finetune": finetune,
    "pretrain": pretrain,
    "augment": augment,
    "distill": distill,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "compress": compress,
    "shrink": shrink,
    "export": export,
    "benchmark": benchmark,
    "push": push,
    "cache": cache,
}


def main() -> None:
    """Run the command of `sys.argv`. Wrong input prints one line and exits with code 2.

    Ctrl-C, SIGTERM and SIGHUP exit with 128 and the signal's number: 130, 143 and 129. During training, the first
    signal saves the state before the command ends, and the second ends it at once.
    """
    if sys.argv[1:] == ["--version"]:
        print(importlib.metadata.version("tinybert_jax"))
        return
    prepare_process()
    keep_programs()
    _prepare_help()
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C; the training loop has its own
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, _interrupt)
    arguments = [expanded(argument) for argument in sys.argv[1:]]
    try:
        check_arguments(arguments, COMMANDS)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="tinybert",
            args=arguments,
            description="Make a BERT small and fast: TinyBERT distillation (arXiv 1909.10351) in JAX.",
            config=(tyro.conf.DisallowNone,),
        )
        sys.stdout.flush()  # here, where an error in it is reported
    except InputError as error:
        print(f"tinybert: error: {error}", file=sys.stderr)
        _end(2, str(error))
    except UnicodeEncodeError as error:  # a file's name in another encoding, which the tokenizers' library cannot open
        line = f"{error.object!r} is not UTF-8: rename the file or directory"
        print(f"tinybert: error: {line}", file=sys.stderr)
        _end(2, line)
    except BrokenPipeError:  # for example after `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes the rest into it
        _end(128 + signal.SIGPIPE, "the reader of the output is gone")
    except OSError as error:  # a full disk, a file that may not be written
        line = f"{error.filename or 'writing failed'}: {error.strerror or error}"
        print(f"tinybert: error: {line}", file=sys.stderr)
        _end(2, line)
    except KeyboardInterrupt as interrupt:
        number = next(iter(interrupt.args), signal.SIGINT)  # Python's own has no number
        command = COMMANDS.get(sys.argv[1]) if sys.argv[1:] else None
        resumes = command is not None and "--resume" in option_names(command) and _has_begun(arguments)
        advice = "; the same command with --resume continues" if resumes else ""
        with contextlib.suppress(OSError):  # the terminal is gone
            print(f"\ntinybert: interrupted{advice}", file=sys.stderr)
        _end(128 + number, "interrupted", at_once=True)
    except Exception as error:
        if processes := _processes():
            processes.wait_if_ending()
        if "RESOURCE_EXHAUSTED" in str(error):  # from XLA; its traceback is several pages long
            line = (
                "a device's memory is full: take a smaller --batch-size or --max-length; in training,"
                " --accumulation-steps computes the same batch in parts and --remat keeps fewer activations (in a new"
                f" --out). {str(error).partition(chr(10))[0]}"
            )
            print(f"tinybert: error: {line}", file=sys.stderr)
            _end(1, line)
        traceback.print_exc()
        _end(1, f"{type(error).__name__}: {error}")


def _has_begun(arguments: Sequence[str]) -> bool:
    """Whether the directory of --out exists."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return any(word == "--out" and Path(value).is_dir() for word, value in itertools.pairwise(words))


@functools.cache
def _prepare_help() -> None:
    """Let --help join the lines of docstrings, and print no "(default: None)": the option's text says its default."""
    for command in COMMANDS.values():
        command.__doc__ = re.sub(r"\n {8}", " ", inspect.cleandoc(command.__doc__ or ""))
        hints = typing.get_type_hints(command, include_extras=True)
        for parameter in inspect.signature(command).parameters.values():
            kind = getattr(hints[parameter.name], "__origin__", None)  # of `Annotated`
            if dataclasses.is_dataclass(kind):
                fields = typing.get_type_hints(kind, include_extras=True)
                kind.__annotations__.update(_without_hint(fields, dataclasses.fields(kind)))
        command.__annotations__.update(_without_hint(hints, inspect.signature(command).parameters.values()))


def _without_hint(hints: Mapping[str, Any], described: Iterable[Any]) -> dict[str, Any]:
    """The type hints of parameters or fields whose default is None or empty, for a help without it."""
    mark = tyro.conf.arg(help_behavior_hint="")
    return {each.name: Annotated[hints[each.name], mark] for each in described if each.default in (None, ())}


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _processes() -> ModuleType | None:
    """`tinybert_jax.devices.processes`, or None if it is not imported; then this process has joined no others."""
    return sys.modules.get("tinybert_jax.devices.processes")


def _end(code: int, message: str, at_once: bool = False) -> None:
    """Exit. In a multi-process run, end the other processes too."""
    processes = _processes()
    told = processes is not None and processes.tell_others(message)
    # sys.exit would wait for the others, and end the interpreter while a device may still compute
    if told or at_once:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # its reader is gone
                stream.flush()
        os._exit(code)
    sys.exit(code)
