"""Latency and memory of models in all programs that can run them here. They take turns in one process."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax.batch import Batch
from tinybert_jax.data.batches import bucket_lengths, eval_batches
from tinybert_jax.data.tokens import encode
from tinybert_jax.devices.processor import Processor, busy_share, memory, processor, processors
from tinybert_jax.errors import InputError, first_line
from tinybert_jax.inference.runners import RUNNERS, CannotRun, Loaded, parts_of
from tinybert_jax.inference.timing import call_seconds, random_batch
from tinybert_jax.models.fit import check_positions, check_token_types
from tinybert_jax.models.quantized import int8_is_faster
from tinybert_jax.settings.choices import MIN_LENGTH

TURNS, SECONDS, LEAST_CALLS = 5, 0.5, 2  # for each model and shape; seconds and calls are per turn
FEW_CALLS = 20  # with fewer calls, there is no 95th percentile
TEXTS = 128  # largest number of texts of a file, evenly spaced


class Side(NamedTuple):
    """A model (directory, hub id or file) in a program, a word of RUNNERS."""

    model: str
    by: str


class Machine(NamedTuple):
    """The machine of a measurement."""

    processor: Processor
    processors: int  # number that this process may use
    busy: float  # the share of the processors that other work took before
    device: str  # JAX's
    versions: dict[str, str]


class Shape(NamedTuple):
    """A batch size and the number of tokens per text; None: texts of a file at their real lengths."""

    texts: int
    tokens: int | None

    def __str__(self) -> str:
        lengths = "the file's lengths" if self.tokens is None else f"{self.tokens} tokens"
        return f"{self.texts} text{'s' * (self.texts > 1)} of {lengths}"


class Latency(NamedTuple):
    """Milliseconds from token ids to logits."""

    shape: Shape
    median: float
    p95: float | None  # 95 % of calls take no longer; None: there were fewer than FEW_CALLS
    calls: int


class Measured(NamedTuple):
    """A model in a program that runs it."""

    side: Side
    bytes: int  # of the files of its parameters
    parameters: int | None  # None: the file does not say
    memory: float | None  # MB by which a separate process grew; None: not measured
    latencies: tuple[Latency, ...]


class Benchmark(NamedTuple):
    """The measurements, and a note about each one that was not possible."""

    machine: Machine
    measured: list[Measured]
    notes: list[str]


def benchmark(
    models: Sequence[str],
    batch_sizes: Sequence[int] = (1, 32),
    lengths: Sequence[int] = (32, 128),
    texts: Sequence[tuple[str, ...]] = (),
    measure_memory: bool = True,
) -> Benchmark:
    """Time models in all programs that can run them here: JAX and, if installed, ONNX Runtime and PyTorch.

    Models take turns, so a busy moment of the machine affects all of them.

    Args:
        models: Hugging Face directories, hub ids, directories with exported files, or exported files.
        batch_sizes: numbers of texts per batch.
        lengths: numbers of tokens per text; these texts are random.
        texts: texts or pairs of texts; up to TEXTS of them are timed too, at their real lengths.
        measure_memory: also load each model in a separate process and measure its memory.

    Raises:
        InputError: a model cannot be read, has no head, or fewer positions than one of the `lengths`; a number is too
            small; or nothing can be timed.
    """
    if not models or not batch_sizes or not (lengths or texts):
        raise InputError("nothing to time: give a model, a batch size, and a length or texts")
    if min(batch_sizes) < 1 or min(lengths, default=MIN_LENGTH) < MIN_LENGTH:
        raise InputError(
            f"batch sizes are {_listed(batch_sizes)} and lengths {_listed(lengths)}; they must be at least 1 and"
            f" {MIN_LENGTH}"
        )
    busy = busy_share()
    notes: dict[str, None] = {}  # each once
    sides = _load(models, notes)
    for side, loaded in sides.items():
        check_positions(side.model, loaded.config, max(lengths, default=0))
        pairs = bool(texts) and encode([*texts[:1]], loaded.tokenizer, loaded.max_length).has_pairs
        check_token_types(side.model, loaded.config, pairs)
    shapes = [Shape(size, length) for length in (*lengths, *[None] * bool(texts)) for size in batch_sizes]
    latencies = _latencies(sides, shapes, spread(texts, TEXTS), notes)
    grown: dict[Side, float | None] = dict.fromkeys(sides)
    if measure_memory:
        for side, loaded in sides.items():
            grown[side] = _grown_alone(side, max(batch_sizes), max(lengths, default=loaded.max_length), notes)
    packages = {RUNNERS[side.by].package for side in sides}
    machine = Machine(
        processor(),
        processors(),
        busy,
        jax.devices()[0].device_kind,
        {name: importlib.import_module(name).__version__ for name in sorted(packages)},
    )
    measured = [
        Measured(side, loaded.bytes, loaded.parameters, grown[side], tuple(latencies[side]))
        for side, loaded in sides.items()
    ]
    return Benchmark(machine, measured, [*notes])


def spread(texts: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the texts, evenly spaced.

    >>> spread([*"abcdefghij"], 4), spread([*"ab"], 4)
    (['a', 'c', 'f', 'h'], ['a', 'b'])
    """
    count = min(len(texts), most)
    return [texts[i * len(texts) // count] for i in range(count)]


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _load(models: Sequence[str], notes: dict[str, None]) -> dict[Side, Loaded]:
    """Load every model in every program that can run it here."""
    sides: dict[Side, Loaded] = {}
    for side in (Side(*part) for model in models for part in parts_of(model)):
        package = RUNNERS[side.by].package
        if not is_installed(package):
            notes[f"{side.by}: not timed, as {package} is not installed"] = None
            continue
        in_floats = RUNNERS[side.by].int8_of
        if in_floats is not None and side._replace(by=in_floats) in sides and not int8_is_faster():
            notes[f"{side.by}: not timed, as it is no faster than float32 on this processor"] = None
            continue
        try:
            sides[side] = RUNNERS[side.by].load(side.model)
        except CannotRun as error:
            notes[f"{side.model}: not timed in {side.by}: {error}"] = None
    if not sides:
        raise InputError(f"nothing to time: {'; '.join(notes)}")
    return sides


def _latencies(
    sides: dict[Side, Loaded],
    shapes: Sequence[Shape],
    texts: Sequence[tuple[str, ...]],
    notes: dict[str, None],
) -> dict[Side, list[Latency]]:
    from tqdm import tqdm

    latencies: dict[Side, list[Latency]] = {side: [] for side in sides}
    with tqdm(total=len(shapes) * TURNS * len(sides), desc="benchmark", unit="turn") as bar:
        for shape in shapes:
            calls: dict[Side, list[Callable[[], Any]]] = {}
            for side, loaded in sides.items():
                batches = _batches(side.by, loaded, shape, texts)
                try:
                    for batch in batches:  # compiles
                        loaded.run(batch)
                except Exception as error:  # a file that other programs wrote may be for one shape
                    notes[f"{side.model}: not timed with {shape} in {side.by} ({first_line(error)})"] = None
                    continue
                calls[side] = [partial(loaded.run, batch) for batch in batches]
            times: dict[Side, list[float]] = {side: [] for side in calls}
            for _ in range(TURNS):
                for side, some in calls.items():
                    times[side] += call_seconds(*some, turn=SECONDS, least=LEAST_CALLS)
                    bar.update()
            for side, seconds in times.items():
                median, p95 = 1000 * np.percentile(seconds, [50, 95])
                rare = None if len(seconds) < FEW_CALLS else float(p95)
                latencies[side].append(Latency(shape, float(median), rare, len(seconds)))
    return latencies


def _batches(by: str, loaded: Loaded, shape: Shape, texts: Sequence[tuple[str, ...]]) -> list[Batch]:
    """Batches of random texts of one length; or of all texts, padded as the program needs it. The last batch is filled
    up with the first texts.
    """
    if shape.tokens is not None:
        return [random_batch(shape.texts, shape.tokens, loaded.config.vocab_size)]
    full = -(-len(texts) // shape.texts) * shape.texts
    tokens = encode([texts[i % len(texts)] for i in range(full)], loaded.tokenizer, loaded.max_length)
    batches = [batch for _, batch in eval_batches(tokens, shape.texts, bucket_lengths(loaded.max_length))]
    return [*map(_trimmed, batches)] if RUNNERS[by].any_length else batches


def _trimmed(batch: Batch) -> Batch:
    """The batch without filler rows, and without padding beyond its longest row."""
    rows, longest = batch.example_mask > 0, int(batch.attention_mask.sum(axis=1).max())
    arrays = (array[rows, :longest] for array in batch[:3])
    return batch._replace(**dict(zip(Batch._fields[:3], arrays, strict=True)))


def _grown_alone(side: Side, texts: int, tokens: int, notes: dict[str, None]) -> float | None:
    """`grown` in a separate process."""
    if memory() is None:
        notes["memory: not measured, as this system has no /proc"] = None
        return None
    if RUNNERS[side.by].package == "jax" and jax.default_backend() != "cpu":
        notes[f"memory: not measured in {side.by}, whose memory is that of {jax.default_backend()}"] = None
        return None
    arguments = (*side, texts, tokens)
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import grown; print(grown(*{arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        notes[f"{side.model}: memory not measured in {side.by} ({last})"] = None
        return None
    return float(done.stdout.splitlines()[-1])


def grown(model: str, by: str, texts: int, tokens: int) -> float:
    """The peak growth of this process in MB, while it loads a model and computes a batch three times.

    The program's imports come before and do not count.
    """
    runner = RUNNERS[by]
    for name in (runner.package, *runner.imports):
        pkgutil.resolve_name(name)
    before = memory()
    loaded = runner.load(model)
    batch = random_batch(texts, tokens, loaded.config.vocab_size)
    for _ in range(3):
        loaded.run(batch)
    after = memory()
    assert before is not None, "the process that started this one asked"
    assert after is not None, "likewise"
    return after.most - before.now
