"""The models of a report, run on the dev rows: scores, size, speed, and predictions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.devices.processor import processor, processors
from tinybert_jax.errors import InputError
from tinybert_jax.inference.evaluate import outputs_on
from tinybert_jax.inference.exported import exported_file, program_files
from tinybert_jax.inference.predictor import Predictor, load_predictor
from tinybert_jax.inference.timing import call_seconds
from tinybert_jax.models.files.directory import load_hf, parameter_bytes
from tinybert_jax.models.files.hub import resolve
from tinybert_jax.models.parameters import count_parameters, encoder_macs
from tinybert_jax.models.quantized import int8_bytes
from tinybert_jax.reports.students import TOGETHER
from tinybert_jax.settings.choices import EVAL_BATCH_SIZE
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import Task
from tinybert_jax.tasks.kinds import named_scores, set_name
from tinybert_jax.tasks.split import Reading, Split, Table

TEACHER, STUDENT, BASELINE, COMPRESSED, EXPORTED, OTHER = (
    *("teacher", "student", "labels alone"),
    *("compressed", "exported", "model"),
)
TIMED_ROWS, TIMED_ALONE = 128, 32  # numbers of first dev rows that are timed, in batches and alone
SECONDS = 0.5  # least duration of a timing
ROUNDS = 3  # of timings, in which the models take turns


@dataclass(eq=False)
class Model:
    """A model of the report. Fields that could not be measured stay None or empty, and `note` says why."""

    name: str
    path: str
    role: str
    scores: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    bytes: int | None = None  # of its weights on disk
    int8_bytes: int | None = None
    macs: float | None = None  # multiply-adds of the encoder on a dev row of mean length
    milliseconds: tuple[float, ...] = ()  # per text: one text alone, and in a batch of TOGETHER
    tables: list[Table] = field(default_factory=list)
    reading: Reading | None = None
    fingerprint: str = ""  # of its dev tokens
    note: str = ""
    timings: tuple[Callable[[], int], ...] = ()  # each runs texts and returns their number
    population: str = ""  # the name of the run of which it is a member
    largest: float | None = None  # the share of the largest class in the dev rows

    @property
    def title(self) -> str:
        """The name, with the role if that adds something."""
        return self.name if self.role in (self.name, EXPORTED, OTHER) else f"{self.name} ({self.role})"


def run_model(model: Model, task: Task, source: DataSource, max_length: int) -> None:
    """Fill in a model's scores and size. If something is not possible, `note` says why."""
    try:
        predictor = load_predictor(model.path, max_length, EVAL_BATCH_SIZE, task.head)
        for part, split, logits in outputs_on(predictor, task, source):
            fill_scores(model, task, part, split, logits)
            if part is task:
                tokens = split.tokens
        _weigh(model, float(tokens.lengths.mean()))
        model.timings = tuple(_calls(predictor, tokens, texts) for texts in (1, TOGETHER))
    except InputError as error:
        model.note = str(error)


def fill_scores(model: Model, task: Task, part: Task, split: Split, logits: np.ndarray) -> None:
    """Fill in the fields that follow from a model's outputs on a split of the task."""
    model.scores |= named_scores({set_name(task, part): split.score(logits)})
    if part is task:
        model.tables = split.tables(logits)
        model.fingerprint = split.tokens.fingerprint
        if split.majority is not None:
            _, model.largest = split.majority(logits)
        if split.reading is not None:
            model.reading = split.reading(logits)


def _weigh(model: Model, tokens: float) -> None:
    exported = exported_file(model.path)
    if exported is not None:
        model.bytes = sum(part.stat().st_size for part in program_files(exported[0]))
        return
    config, params = load_hf(model.path)
    model.bytes = parameter_bytes(resolve(model.path))
    model.parameters = count_parameters(params)
    model.int8_bytes = int8_bytes(params)
    model.macs = encoder_macs(config, params, tokens)


def weigh_alone(model: Model, tokens: float) -> None:
    """Fill in the size of a model that is not scored, such as one trained on raw text."""
    try:
        _weigh(model, tokens)
    except InputError as error:
        model.note = str(error)


def _calls(predictor: Predictor, tokens: Tokens, texts: int) -> Callable[[], int]:
    """A function that runs the first dev rows, `texts` at once. Its first call compiles.

    Rows are padded as in prediction. The last batch is filled up with the first rows.
    """
    buckets, lengths = bucket_lengths(predictor.max_length), np.asarray(tokens.lengths[:TIMED_ROWS])
    most = min(len(lengths), TIMED_ROWS if texts > 1 else TIMED_ALONE)
    size = -(-texts // jax.device_count()) * jax.device_count()  # a multiple of the number of devices
    batches: list[Any] = []
    for start in range(0, most, texts):
        rows = np.full(size, -1)
        rows[:texts] = np.arange(start, start + texts) % most
        length = next(bucket for bucket in buckets if bucket >= lengths[rows[:texts]].max())
        batches.append(tokens.batch(rows, length))

    def call() -> int:
        for batch in batches:
            jax.block_until_ready(predictor.step(predictor.params, batch))
        return texts * len(batches)

    return call


def time_models(models: Sequence[Model]) -> None:
    """Fill in each model's time per text: medians over rounds, in which the models take turns."""
    timed = [(model, call) for model in models for call in model.timings]
    texts = [call() for _, call in timed]
    times: list[list[float]] = [[] for _ in timed]
    for _ in range(ROUNDS):
        for (_, call), of_call in zip(timed, times, strict=True):
            of_call += call_seconds(call, turn=SECONDS / ROUNDS)
    for (model, _), of_call, count in zip(timed, times, texts, strict=True):
        model.milliseconds += (1000 * statistics.median(of_call) / count,)


def machine() -> str:
    """A description of the machine on which models are timed."""
    kind = jax.devices()[0].device_kind
    name = f"{processor().name}, {processors()} processor{'s' * (processors() > 1)}"
    return name if jax.default_backend() == "cpu" else f"{kind} ({name})"


def same_place(path: str, other: str) -> bool:
    """Whether two names are the same directory."""
    return path == other or Path(path).resolve() == Path(other).resolve()
