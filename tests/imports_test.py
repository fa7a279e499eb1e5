"""Imports go one way, modules stay small, and what must start fast imports no jax."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinybert_jax"
MODULES = sorted(path.stem for path in PACKAGE.rglob("*.py"))
MAX_LINES = 400

# What each module may import of ours.
TABLE: dict[str, set[str]] = {
    "config": set(),
    "experiment": {"config"},
    "precision": set(),
    "losses": {"precision"},
    "metrics": set(),
    "sharding": {"config"},
    "model": {"config", "precision", "sharding"},
    "heads": {"config", "model", "precision", "sharding"},
    "weights": {"config"},
    "hf": {"config", "heads", "model", "weights"},
    "mlm": {"config", "heads", "model"},
    "projections": {"config", "precision"},
    "distill": {"config", "heads", "losses", "mlm", "model", "projections"},
    "optim": {"config"},
    "population": {"config", "experiment", "sharding"},
    "train_step": {"config", "optim", "population", "sharding"},
    "checkpoint": {"config", "processes"},
    "processes": {"config", "sharding"},
    "tasks": {"config", "metrics"},
    "reader": {"config"},
    "rows": {"config", "experiment", "tasks", "reader"},
    "data": {"config", "rows"},
    "squad": {"config", "reader", "rows"},
    "spans": {"config", "rows", "data", "squad"},
    "ner": {"config", "reader", "rows", "data"},
    "splits": {"config", "experiment", "tasks", "metrics", "rows", "data", "squad", "spans", "ner"},
    "text": {"config", "experiment"},
    "sequences": {"config", "experiment", "data"},
    "shards": {"config", "experiment", "sequences", "text"},
    "corpus": {"config", "experiment", "rows", "sequences", "shards", "text"},
    "corpus_beam": {"config", "experiment", "hf", "sequences", "shards", "text"},
    "neighbours": {"config", "rows"},
    "candidate_table": {"config", "rows", "data"},
    "candidates": {"config", "rows", "data", "neighbours", "candidate_table"},
    "augment": {"config", "rows", "candidate_table", "candidates"},
    "spectral": {"config", "model", "distill"},
    "init": {"config", "distill", "spectral"},
    "cost": {"config"},
    "predict": {"config", "heads", "hf", "data", "sharding", "train_step"},
    "teacher_cache": {"config", "data", "precision", "predict", "rows", "train_step"},
    "inputs": {
        *("config", "experiment", "heads", "model", "hf", "projections", "tasks", "rows", "data", "splits"),
        *("corpus", "augment", "distill", "init", "population", "predict", "processes"),
    },
    "run_dir": {"config", "experiment", "inputs", "model", "precision", "processes"},
}
TABLE["stage"] = set(TABLE)
TABLE["train"] = set(TABLE)
TABLE["cli_augment"] = {
    *(
        "config",
        "experiment",
        "hf",
        "tasks",
        "rows",
        "predict",
        "augment",
        "candidates",
        "candidate_table",
        "mlm",
        "neighbours",
    )
}
TABLE["cli_evaluate"] = {"config", "experiment", "inputs", "predict", "splits", "tasks"}
TABLE["tables"] = {"train"}
TABLE["cli_train"] = {"config", "experiment", "processes", "stage", "tables", "tasks", "train"}
TABLE["cli"] = set(TABLE)
TABLE["__init__"] = set(TABLE)

ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy"}
SLOW_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "tensorflow_datasets"}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all modules that `source`, a module of the package, imports anywhere, in functions too.

    What is ours is named `tinybert_jax.MODULE`; a name taken from the package itself counts as one of its modules.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["tinybert_jax" if node.level else "", node.module]))
            if base == "tinybert_jax":
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def ours(source: str) -> set[str]:
    """The modules of ours that `source` imports; `__init__` for the package as a whole."""
    names = (name.split(".") for name in imported(source))
    return {(name[1:] or ["__init__"])[0] for name in names if name[0] == "tinybert_jax"}


def others(source: str) -> set[str]:
    """The top-level packages of others that `source` imports."""
    return {name.split(".")[0] for name in imported(source)} - {"tinybert_jax"}


def read(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


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


def test_package_is_flat_and_every_module_has_a_row() -> None:
    assert not [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    assert not set(MODULES) - set(TABLE), "a new module needs a row in TABLE"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_row_allows(module: str) -> None:
    forbidden = ours(read(module)) - TABLE[module]
    assert not forbidden, f"{module} must not import {', '.join(sorted(forbidden))}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_experiments(module: str) -> None:
    assert "experiments" not in others(read(module))


@pytest.mark.parametrize("module", ["config", "experiment"])
def test_descriptions_import_no_array_library(module: str) -> None:
    assert not others(read(module)) & ARRAY_LIBRARIES


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short(module: str) -> None:
    assert len(read(module).splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import tinybert_jax as tb", {"__init__"}),
        ("import tinybert_jax.hf", {"hf"}),
        ("from tinybert_jax import hf, model", {"hf", "model"}),
        ("from tinybert_jax import load_hf", {"load_hf"}),
        ("from tinybert_jax.hf import load_hf", {"hf"}),
        ("from . import hf", {"hf"}),
        ("from .hf import load_hf", {"hf"}),
        ("def f():\n    from tinybert_jax import hf", {"hf"}),
        ("import numpy.linalg\nfrom jax import numpy", set()),
    ],
)
def test_every_form_of_import_is_seen(line: str, found: set[str]) -> None:
    assert ours(line) == found


def test_importing_the_package_imports_no_jax() -> None:
    loaded = loaded_by("-c", "import tinybert_jax")
    assert "tinybert_jax" in loaded
    assert not loaded & SLOW_LIBRARIES


def test_help_imports_no_jax() -> None:
    loaded = loaded_by("-m", "tinybert_jax.cli", "--help")
    assert "tinybert_jax" in loaded
    assert not loaded & SLOW_LIBRARIES
