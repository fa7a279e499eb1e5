"""An ONNX or StableHLO file as a teacher. Its outputs are computed once, before training, and cached."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from tinybert_jax.data.tokens import encode
from tinybert_jax.inference.exported import exported_file, program_files
from tinybert_jax.inference.predictor import load_predictor
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.models.fit import check_outputs
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import FunctionTeacher
from tinybert_jax.teachers.function import load_function
from tinybert_jax.teachers.teacher import Teacher


def is_exported(teacher: Any) -> bool:
    """Whether a teacher is the name of an exported model."""
    return isinstance(teacher, str) and exported_file(teacher) is not None


def load_exported(experiment: Experiment) -> Teacher:
    """Load an exported model as a teacher. It is a function of texts, with its own tokenizer.

    Raises:
        InputError: it cannot be read or does not fit the task, or the task's rows are not texts.
    """
    name = str(experiment.teacher)
    task = get_task(experiment.task)
    predictor = load_predictor(name, experiment.max_length, head=task.head)
    check_outputs(name, predictor.config, task)
    labels = () if task.is_regression else predictor.config.id2label
    exported = exported_file(name)
    assert exported is not None, "the table of teachers asked"
    file, _ = exported
    digest = hashlib.sha256(tokenizer_fingerprint(predictor.tokenizer).encode())
    for part in program_files(file):
        with part.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())

    def outputs(texts: Sequence[Any]) -> np.ndarray:
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        logits = predictor.logits(encode(rows, predictor.tokenizer, predictor.max_length))
        if task.is_multi_label:
            return expit(logits.astype(np.float64))
        return softmax(logits, axis=1) if labels else logits[:, 0]

    settings = FunctionTeacher(outputs, f"{file.name} {digest.hexdigest()}, {predictor.max_length} tokens", labels)
    return dataclasses.replace(load_function(dataclasses.replace(experiment, teacher=settings)), name=name)
