"""TinyBERT distillation in JAX. The public API, imported lazily: `import tinybert_jax as tb` loads no JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "config": ("Batch", "BertConfig", "Hyper", "InputError", "student_config"),
    "experiment": ("CorpusSource", "DataSource", "Experiment", "Stage"),
    "model": ("BertModel", "BertOutput", "init_params"),
    "heads": (
        "BertForMaskedLM",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
    ),
    "hf": ("load_hf", "load_tokenizer", "save_hf"),
    "train": ("run", "run_population"),
    "predict": ("load_predictor",),
}
_MODULES = ("distill", "losses", "metrics", "optim", "sharding", "tasks", "train_step")
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from tinybert_jax import distill, losses, metrics, optim, sharding, tasks, train_step
    from tinybert_jax.config import Batch, BertConfig, Hyper, InputError, student_config
    from tinybert_jax.experiment import CorpusSource, DataSource, Experiment, Stage
    from tinybert_jax.heads import (
        BertForMaskedLM,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from tinybert_jax.hf import load_hf, load_tokenizer, save_hf
    from tinybert_jax.model import BertModel, BertOutput, init_params
    from tinybert_jax.predict import load_predictor
    from tinybert_jax.train import run, run_population


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tinybert_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"tinybert_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tinybert_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
