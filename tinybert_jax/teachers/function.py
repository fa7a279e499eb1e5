"""A Python function as a teacher. Its outputs are computed once, before training, and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tinybert_jax.cache import append_parts, cache_folder, cached, check_parts
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import FunctionTeacher
from tinybert_jax.teachers.predictions import LEAST_PROBABILITY, SUM_TOLERANCE, log_odds
from tinybert_jax.teachers.teacher import Teacher

FORMAT_VERSION = 1  # increase it when cached outputs would change


def load_function(experiment: Experiment) -> Teacher:
    """Load a `FunctionTeacher` as a teacher.

    Raises:
        InputError: the task's rows are not texts; or the function has labels in regression, or none in classification.
    """
    settings, task = experiment.teacher, get_task(experiment.task)
    assert isinstance(settings, FunctionTeacher)
    if not task.kind.has_columns:
        raise InputError(f"{settings}: teaches texts and pairs of texts, not task {task.name!r}")
    if task.is_regression != (not settings.labels):
        asked = "none, for its outputs are numbers" if task.is_regression else "the class names"
        raise InputError(f"{settings}: its labels are {settings.labels}; task {task.name!r} asks for {asked}")

    def outputs_of(rows: Rows) -> np.ndarray:
        return function_outputs(settings, rows, multi_label=task.is_multi_label)

    return Teacher(str(settings), settings.fingerprint, settings.labels, outputs_of=outputs_of)


def function_outputs(
    settings: FunctionTeacher, rows: Rows, cache_dir: Path | None = None, multi_label: bool = False
) -> np.ndarray:
    """A function's outputs for rows: logits float32 [n, c], or numbers float32 [n].

    They are cached under the function's fingerprint. After an interruption, the next call continues.

    Args:
        settings: the function.
        rows: n rows.
        cache_dir: see `cache.cache_folder`.
        multi_label: each class has a separate probability.

    Raises:
        InputError: the function returns something other than probabilities or numbers; or the cache cannot be written.
    """
    from tqdm import tqdm

    described = [FORMAT_VERSION, settings.described(), rows.fingerprint, *(["multi_label"] if multi_label else [])]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    size, count = settings.batch_size, len(rows.texts)

    def parts(first: int) -> Iterator[list[bytes]]:
        """Each part is one row, so that a call with another batch size can continue."""
        with tqdm(total=count, initial=first, desc=str(settings), unit="row", disable=count <= size) as bar:
            for start in range(first, count, size):
                texts = [row if len(row) > 1 else row[0] for row in rows.texts[start : start + size]]
                for values in _checked(settings, settings.function(texts), texts, multi_label):
                    yield [values.tobytes()]
                bar.update(len(texts))

    def load(folder: Path) -> np.ndarray:
        check_parts(folder)
        values = np.fromfile(folder / "0.bin", np.float32)
        return values.reshape(count, len(settings.labels)) if settings.labels else values

    def build(folder: Path) -> None:
        append_parts(folder, f"{settings}: {count:,} rows", 1, parts)

    entry = cache_folder(cache_dir) / "functions" / digest
    return cached(entry, build, load, resumable=True)


def _checked(settings: FunctionTeacher, outputs: object, texts: Sequence[object], multi_label: bool) -> np.ndarray:
    values = np.asarray(outputs, np.float32)
    shape = (len(texts), len(settings.labels)) if settings.labels else (len(texts),)
    if values.shape != shape:
        raise InputError(f"{settings}: gave an array {values.shape} for {len(texts)} texts; it must be {shape}")
    if not settings.labels:
        wrong = ~np.isfinite(values)
    elif multi_label:
        wrong = ~(np.abs(values - 0.5) <= 0.5).all(axis=1)
    else:
        wrong = ~((values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE))
    if wrong.any():
        number = int(wrong.argmax())
        raise InputError(
            f"{settings}: gave {values[number].tolist()} for {str(texts[number])[:60]!r}; it must give finite numbers,"
            " and for classes probabilities" + (" from 0 to 1" if multi_label else " that add up to 1")
        )
    if multi_label:
        return log_odds(outputs)
    return np.log(np.maximum(values, LEAST_PROBABILITY)) if settings.labels else values
