"""TinyBERT distillation in JAX. The public API is imported on first use, so `import tinybert_jax` loads no JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "errors": ("InputError",),
    "batch": ("Batch",),
    "settings.numbers": ("Ramp",),
    "settings.objectives": (
        "DistilBert",
        "Embedding",
        "MaskedLM",
        "Patient",
        "Prediction",
        "Ranking",
        "RankingLabels",
        "Supervised",
        "Transformer",
    ),
    "settings.stages": ("Hyper", "Stage"),
    "settings.teachers": ("Ensemble", "FunctionTeacher"),
    "settings.sources": ("CorpusSource", "DataSource"),
    "settings.compression": (
        "GradualPrune",
        "LowRank",
        "Movement",
        "Prune",
        "Quantize",
        "Share",
        "SharePart",
        "Sparse",
        "Vocabulary",
    ),
    "settings.experiment": ("Experiment",),
    "models.config": ("BertConfig", "Compute"),
    "models.encoder": ("BertModel", "BertOutput"),
    "models.padding": ("pad_heads",),
    "models.parameters": ("init_params",),
    "models.heads": (
        "BertForEmbedding",
        "BertForMaskedLM",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
    ),
    "models.files.directory": ("load_hf", "save_hf"),
    "models.files.tokenizer": ("load_tokenizer",),
    "students.presets": ("student_config",),
    "training.run": ("run", "run_population"),
    "inference.predictor": ("load_predictor",),
    "inference.benchmark": ("benchmark",),
    "compression.compress": ("compress",),
    "export.export": ("export_model",),
    "export.push": ("push",),
}
_MODULES = {
    "distill": "objectives",
    "losses": "losses",
    "metrics": "tasks.metrics",
    "optim": "training.optim",
    "sharding": "devices.sharding",
    "tasks": "tasks",
    "train_step": "training.step",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from tinybert_jax import losses, tasks
    from tinybert_jax import objectives as distill
    from tinybert_jax.batch import Batch
    from tinybert_jax.compression.compress import compress
    from tinybert_jax.devices import sharding
    from tinybert_jax.errors import InputError
    from tinybert_jax.export.export import export_model
    from tinybert_jax.export.push import push
    from tinybert_jax.inference.benchmark import benchmark
    from tinybert_jax.inference.predictor import load_predictor
    from tinybert_jax.models.config import BertConfig, Compute
    from tinybert_jax.models.encoder import BertModel, BertOutput
    from tinybert_jax.models.files.directory import load_hf, save_hf
    from tinybert_jax.models.files.tokenizer import load_tokenizer
    from tinybert_jax.models.heads import (
        BertForEmbedding,
        BertForMaskedLM,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from tinybert_jax.models.padding import pad_heads
    from tinybert_jax.models.parameters import init_params
    from tinybert_jax.settings.compression import (
        GradualPrune,
        LowRank,
        Movement,
        Prune,
        Quantize,
        Share,
        SharePart,
        Sparse,
        Vocabulary,
    )
    from tinybert_jax.settings.experiment import Experiment
    from tinybert_jax.settings.numbers import Ramp
    from tinybert_jax.settings.objectives import (
        DistilBert,
        Embedding,
        MaskedLM,
        Patient,
        Prediction,
        Ranking,
        RankingLabels,
        Supervised,
        Transformer,
    )
    from tinybert_jax.settings.sources import CorpusSource, DataSource
    from tinybert_jax.settings.stages import Hyper, Stage
    from tinybert_jax.settings.teachers import Ensemble, FunctionTeacher
    from tinybert_jax.students.presets import student_config
    from tinybert_jax.tasks import metrics
    from tinybert_jax.training import optim
    from tinybert_jax.training import step as train_step
    from tinybert_jax.training.run import run, run_population


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tinybert_jax.{_MODULES[name]}")
    if name in _HOME:
        return getattr(importlib.import_module(f"tinybert_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tinybert_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
