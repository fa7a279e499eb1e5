"""A file of predictions as a teacher: one row's class probabilities, or number, in each line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.data.reader import read_text
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.teachers.teacher import Teacher

LEAST_PROBABILITY = 1e-9  # a probability of 0 has no logit; this one is as good as 0
SUM_TOLERANCE = 1e-2  # how far from 1 the probabilities of a row may add up, as after rounding

Texts = tuple[str, ...]


def is_predictions(name: str) -> bool:
    """Whether a teacher's name is that of a file of predictions."""
    return name.endswith(".jsonl")


def load_predictions(experiment: Experiment) -> Teacher:
    """The teacher in a file of JSON lines, found by the texts of the rows.

    A line is `{"text": "good soup", "probabilities": {"good": 0.9, "bad": 0.1}}`; in regression, `"value": 3.5` stands
    in place of the probabilities. The text of a pair is a list of two strings. Temperatures apply to the logarithms
    of the probabilities.

    Raises:
        InputError: the file cannot be read; a line is malformed, has other classes than the first, or probabilities
            that do not add up to 1 (`path:line: ...`); two lines of one text differ; or the task has no such teacher.
    """
    name, path = str(experiment.teacher), Path(str(experiment.teacher))
    task = get_task(experiment.task)
    if not task.kind.has_columns:
        raise InputError(f"{name}: a file of predictions teaches texts and pairs of texts, not task {task.name!r}")
    content = read_text(path)
    outputs: dict[Texts, np.ndarray] = {}
    classes: tuple[str, ...] | None = None
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _record(line, where)
        texts = _texts(record, where)
        if task.is_regression:
            output = np.asarray(_number(record.get("value"), where, "value"), np.float32)
        else:
            probabilities = _probabilities(record, where)
            classes = classes or tuple(sorted(probabilities))
            if set(probabilities) != set(classes):
                raise InputError(f"{where}: the classes are {sorted(probabilities)}, and in the first line {classes}")
            likely = np.array([probabilities[label] for label in classes], np.float64)
            output = np.log(np.maximum(likely, LEAST_PROBABILITY)).astype(np.float32)
        if texts in outputs and not np.array_equal(outputs[texts], output):
            raise InputError(f"{where}: the text has another prediction in a line before: keep one of the two")
        outputs[texts] = output
    if not outputs:
        raise InputError(f"{path}:1: the file holds no prediction: give one JSON object a line")

    def outputs_of(rows: Rows) -> np.ndarray:
        for texts, number in zip(rows.texts, rows.lines, strict=True):
            if texts not in outputs:
                raise InputError(
                    f"{path}: no prediction for row {number} of the training file, {texts[0][:60]!r}: add a line for"
                    " its text, or take the row out"
                )
        return np.stack([outputs[texts] for texts in rows.texts])

    digest = hashlib.sha256(content.encode()).hexdigest()
    return Teacher(name, digest, classes or (), outputs_of=outputs_of)


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}): give one JSON object a line") from None
    if not isinstance(record, dict):
        raise InputError(f'{where}: no JSON object: give {{"text": ..., "probabilities": ...}}')
    return record


def _texts(record: Mapping[str, Any], where: str) -> Texts:
    text = record.get("text")
    texts = tuple(text) if isinstance(text, list) else (text,)
    if len(texts) > 2 or not all(isinstance(part, str) for part in texts):
        raise InputError(f'{where}: "text" is {json.dumps(text)[:60]}: give a string, or a list of two')
    return texts


def _probabilities(record: Mapping[str, Any], where: str) -> dict[str, float]:
    values = record.get("probabilities")
    if not isinstance(values, dict) or len(values) < 2:
        raise InputError(f'{where}: no "probabilities" of two classes or more: give {{"good": 0.9, "bad": 0.1}}')
    probabilities = {label: _number(value, where, f"probability of {label!r}") for label, value in values.items()}
    total = sum(probabilities.values())
    if min(probabilities.values()) < 0 or abs(total - 1) > SUM_TOLERANCE:
        raise InputError(f"{where}: the probabilities add up to {total:.4g}: they must be at least 0, and add up to 1")
    return probabilities


def _number(value: Any, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: the {name} is {json.dumps(value)[:40]}; it must be a finite number")
    return float(value)
