"""What the benchmarks share: the two sizes, our side of the distillation step, timing in turn, output."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinybert_jax import distill, optim, population
from tinybert_jax.cli import prepare_process
from tinybert_jax.config import Batch, BertConfig, ComputeDtype, Hyper, Preset, student_config
from tinybert_jax.heads import BertForSequenceClassification
from tinybert_jax.model import init_params
from tinybert_jax.sharding import make_mesh
from tinybert_jax.train_step import create_state, make_predict_step, make_train_step

prepare_process()  # as the command does


class Pair(NamedTuple):
    """A teacher and its student."""

    teacher: BertConfig
    student: BertConfig

    def computing(self, dtype: ComputeDtype) -> Pair:
        """The same in another type of activations."""
        return Pair(*(dataclasses.replace(config, compute_dtype=dtype) for config in self))


Size = Literal["bert-base", "minilm"]
BERT_BASE = BertConfig()
MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
SIZES: dict[Size, Pair] = {
    "bert-base": Pair(BERT_BASE, student_config("tinybert-4l-312d", BERT_BASE)),
    "minilm": Pair(MINILM, student_config("tinybert-3l-192d", MINILM)),
}
STAT = Path("/proc/stat")
PAUSE = 0.1  # seconds before every timing: OpenMP's threads spin for a while after their work
TURN = 0.2  # seconds that calls of one side are repeated for


def busy_share() -> float:
    """The share of the machine's processors that other work keeps busy, over one second; 0 where it cannot be read."""
    if not STAT.is_file():
        return 0.0

    def jiffies() -> np.ndarray:
        return np.array(STAT.read_text().split("\n", 1)[0].split()[1:9], float)

    before = jiffies()
    time.sleep(1)
    spent = jiffies() - before
    return 1 - float(spent[3] / spent.sum())  # the fourth is idle


BUSY = busy_share()  # before our own work: a busy machine slows PyTorch's threads by far more than ours


def our_intermediate_step(pair: Pair, members: int = 1, preset: Preset = "official") -> Callable[[Batch], None]:
    """One update of the Transformer stage with AdamW, of one student or of a population; waits for its result. The
    teacher is computed unless the batch brings its targets.
    """
    teacher, student = pair
    objective = distill.transformer_objective(student, teacher, preset=preset)
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant", 1), make_mesh()
    teacher_params = init_params(BertForSequenceClassification(teacher), jax.random.key(0))
    student_params = init_params(BertForSequenceClassification(student), jax.random.key(1))
    trainable = population.stack([objective.init(jax.random.key(2), student_params)] * members)
    keys = population.stack([jax.random.key(3 + i) for i in range(members)])
    state = create_state(trainable, optimizer, keys, mesh, keeps_best=False)
    compiled = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params)
    hyper = population.stack([Hyper()] * members)

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, teacher_params, batch, hyper)
        jax.block_until_ready(metrics)

    return step


def targets_of(pair: Pair, batch: Batch) -> Batch:
    """The batch with the targets of `our_intermediate_step`."""
    objective = distill.transformer_objective(pair.student, pair.teacher, preset="official")
    params = init_params(BertForSequenceClassification(pair.teacher), jax.random.key(0))
    return batch._replace(targets=jax.tree.map(np.asarray, jax.jit(objective.targets)(params, batch)))


def our_gradient(pair: Pair, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The student's part of the step on known targets: the loss, and the loss with its gradient; without dropout."""
    objective = distill.transformer_objective(pair.student, pair.teacher, preset="official")
    params = init_params(BertForSequenceClassification(pair.student), jax.random.key(1))
    trainable = objective.init(jax.random.key(2), params)
    loss = jax.jit(lambda trainable, batch: objective.loss(trainable, batch.targets, batch, Hyper(), None)[0])
    gradient = jax.jit(jax.grad(lambda trainable, batch: loss(trainable, batch)))
    return {
        "forward": lambda: jax.block_until_ready(loss(trainable, batch)),
        "gradient": lambda: jax.block_until_ready(gradient(trainable, batch)),
    }


def matmul_flops_per_second(repeats: int) -> float:
    """Of one large float32 product, 2048 x 768 x 3072, by JAX: what this machine reaches."""
    product = jax.jit(jnp.matmul)
    a, b = jnp.ones((2048, 768)), jnp.ones((768, 3072))
    ms = alternate({"matmul": lambda: product(a, b).block_until_ready()}, repeats)["matmul"]
    return 2 * 2048 * 768 * 3072 / ms * 1000


def our_prediction_step(student: BertConfig) -> Callable[[Batch], None]:
    """One update of the prediction stage on batches that bring the teacher's logits; waits for its result."""
    objective = distill.prediction_objective(student, student)
    optimizer, schedule, mesh = optim.make_optimizer("adamw"), optim.make_schedule("constant", 1), make_mesh()
    params = init_params(BertForSequenceClassification(student), jax.random.key(1))
    state = create_state(params, optimizer, jax.random.key(3), mesh)
    compiled = make_train_step(objective, optimizer, schedule, mesh, state, {})

    def step(batch: Batch) -> None:
        nonlocal state
        state, metrics = compiled(state, {}, batch, Hyper())
        jax.block_until_ready(metrics)

    return step


def our_inference(config: BertConfig) -> Callable[[Batch], jax.Array]:
    """Class logits of a random classifier, waited for."""
    model = BertForSequenceClassification(config)
    params = init_params(model, jax.random.key(0))
    compiled = make_predict_step(model, make_mesh(), params)
    return lambda batch: compiled(params, batch).block_until_ready()


def random_batch(batch_size: int, length: int, vocab_size: int, shortest: int | None = None) -> Batch:
    """Rows of random tokens, `shortest` to `length` long; all of full length by default."""
    random = np.random.default_rng(0)
    lengths = random.integers(shortest or length, length + 1, batch_size)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = random.integers(5, vocab_size, mask.shape).astype(np.int32) * mask
    labels, example_mask = np.zeros(batch_size, np.int32), np.ones(batch_size, np.float32)
    return Batch(ids, mask, np.zeros_like(mask), labels, example_mask)


def seconds(call: Callable[[], Any], turn: float = TURN, warmup: int = 1) -> float:
    """Of one call, after `warmup` of them: the first after a pause measures how long the processor takes to wake, and
    the machine to give back the memory that it took. Short ones are repeated for a turn of so many seconds and their
    median taken.
    """
    time.sleep(PAUSE)
    for _ in range(warmup):
        call()
    times: list[float] = []
    while not times or sum(times) < turn:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "transformers")}
    machine = {"cpus": os.cpu_count(), "device": jax.devices()[0].device_kind, "busy_before": BUSY}
    if BUSY > 0.1:
        print(f"the machine was busy before ({BUSY:.0%} of it): do not quote these numbers")
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"benchmark": benchmark, **numbers, **machine, **versions}) + "\n")
