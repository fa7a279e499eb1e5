"""Imports go one way, modules stay small, and what must start fast imports no jax."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinybert_jax"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MAX_LINES = 400

# A package, or a module at the top level, may import what stands above it.
ORDER = (
    *("errors", "batch", "precision", "cache", "losses", "settings", "devices", "models", "data", "students"),
    *(
        "objectives",
        "tasks",
        "inference",
        "teachers",
        "compression",
        "export",
        "training",
        "reports",
        "shrink",
        "cli",
        "__init__",
    ),
)

ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy"}
SLOW_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "tensorflow_datasets"}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all that `source`, a module of the package, imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["tinybert_jax" if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(source: str) -> set[str]:
    """The modules of ours that `source` imports, without the package's name; `__init__` for the package as a whole."""
    names = (name.removeprefix("tinybert_jax").removeprefix(".") for name in imported(source) if is_ours(name))
    return {name or "__init__" for name in names}


def is_ours(name: str) -> bool:
    return name.split(".")[0] == "tinybert_jax"


def module_of(name: str) -> str:
    """The module that an imported name is, or is taken from."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def floor(module: str) -> int:
    """The place of the module's package in ORDER."""
    return ORDER.index(module.split(".")[0])


def others(source: str) -> set[str]:
    """The top-level packages of others that `source` imports."""
    return {name.split(".")[0] for name in imported(source)} - {"tinybert_jax"}


def read(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


def loaded_by(*command: str) -> set[str]:
    """The top-level packages a fresh interpreter has imported when `python COMMAND` exits with code 0."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    timings, messages = [], []
    for line in done.stderr.splitlines():
        (timings if line.startswith("import time:") else messages).append(line)
    assert done.returncode == 0, messages
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in timings}


def test_every_package_has_its_place_in_the_order() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_stands_above_its_package(module: str) -> None:
    below = {name for name in ours(read(module)) if floor(module_of(name)) > floor(module)}
    assert not below, f"{module} must not import {', '.join(sorted(below))}"


def test_no_two_modules_import_each_other() -> None:
    graph = {module: {module_of(name) for name in ours(read(module))} - {module} for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {error.args[1]}")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_experiments(module: str) -> None:
    assert "experiments" not in others(read(module))


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] in ("errors", "settings")])
def test_settings_import_no_array_library(module: str) -> None:
    assert not others(read(module)) & ARRAY_LIBRARIES


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short(module: str) -> None:
    assert len(read(module).splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("import tinybert_jax as tb", {"__init__"}),
        ("import tinybert_jax.models.config", {"models.config"}),
        ("from tinybert_jax import losses, models", {"losses", "models"}),
        ("from tinybert_jax import load_hf", {"load_hf"}),
        ("from tinybert_jax.models.config import BertConfig", {"models.config"}),
        ("from tinybert_jax.models import config", {"models.config"}),
        ("from . import losses", {"losses"}),
        ("from .models.config import BertConfig", {"models.config"}),
        ("def f():\n    from tinybert_jax import losses", {"losses"}),
        ("import numpy.linalg\nfrom jax import numpy", set()),
    ],
)
def test_every_form_of_import_is_seen(line: str, modules: set[str]) -> None:
    assert {module_of(name) for name in ours(line)} == modules


def test_importing_the_package_imports_no_jax() -> None:
    loaded = loaded_by("-c", "import tinybert_jax")
    assert "tinybert_jax" in loaded
    assert not loaded & SLOW_LIBRARIES


def test_help_imports_no_jax() -> None:
    loaded = loaded_by("-m", "tinybert_jax.cli", "--help")
    assert "tinybert_jax" in loaded
    assert not loaded & SLOW_LIBRARIES
