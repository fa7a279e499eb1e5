"""The parts of `gpu.py`, which runs each of them in a process of its own."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
from gpu_lines import Lines, Numbers, versions

from tinybert_jax.inference.timing import random_batch
from tinybert_jax.models.config import BertConfig

DTYPE = "bfloat16"  # of the activations in all parts but `correctness`
# FLOP/s of dense bfloat16 products, from NVIDIA's data sheets, by the beginning of the device's name
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
SMALL = BertConfig(1000, 128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)
NARROW = dataclasses.replace(SMALL, hidden_size=64, num_hidden_layers=2, intermediate_size=256)
SMALL_PAIR = measure.Pair(SMALL, NARROW)
TINY_PAIR = measure.Pair(NARROW, dataclasses.replace(NARROW, num_hidden_layers=1))


class Sizes:
    """What is measured: BERT_BASE and TinyBERT4, or with `tiny` small models for a short time."""

    def __init__(self, tiny: bool) -> None:
        self.pair = (TINY_PAIR if tiny else measure.SIZES["bert-base"]).computing(DTYPE)
        base = (32, 128), (128, 128), (32, 512), (512, 128), (128, 512), (1024, 128)
        self.grid = ((2, 16), (4, 16)) if tiny else base  # rows and tokens; more memory each time
        self.first = self.grid[:3]  # for what is compiled for long, or differs little from the rest
        self.rows, self.length = (2, 16) if tiny else (32, 128)  # of a population
        self.students = (1, 2) if tiny else (1, 8, 32)
        self.inference = ((1, 16),) if tiny else ((1, 128), (32, 128), (256, 128))
        self.profile = (2, 16) if tiny else (128, 128)
        self.product = 256 if tiny else 8192
        self.turn = 0.1 if tiny else 1.0  # seconds

    def batch(self, rows: int, length: int) -> Any:
        return random_batch(rows, length, self.pair.teacher.vocab_size, shortest=8)


def check_gpu() -> None:
    """Raises RuntimeError where jax sees no GPU: without its CUDA plugin it computes on the CPU and says nothing."""
    import jax

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"jax sees no GPU, only {jax.devices()}; --tiny runs on a CPU")


def milliseconds(call: Callable[[], Any], wait: Callable[[Any], Any], group: int, turn: float) -> float:
    """Median of one call, after three: `group` of them are given to the device before it is waited for. At least ten
    and as many as fill `turn` seconds, or two seconds' worth.
    """
    for _ in range(3):
        last = call()
    wait(last)
    times: list[float] = []
    while sum(times) < 2 and (len(times) * group < 10 or sum(times) < turn):
        start = time.perf_counter()
        for _ in range(group):
            last = call()
        wait(last)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / group


def speed(rows: int, ms: float, flops: float) -> Numbers:
    """The rate of the counted FLOPs, and its share of the peak of the devices in `PEAKS`."""
    import jax

    kind, rate = jax.devices()[0].device_kind, flops / ms * 1000
    peak = next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)
    share = None if peak is None else rate / peak
    return {"examples_per_s": rows / ms * 1000, "tflops": rate / 1e12, "share_of_peak": share}


def correctness(lines: Lines, sizes: Sizes) -> None:
    """What is measured on and what it reaches in one large product; then, one training step is the CPU's."""
    import jax
    import jax.numpy as jnp
    import our_side

    def device() -> Numbers:
        n = sizes.product
        a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
        product = jax.jit(jnp.matmul)
        ms = milliseconds(lambda: product(a, b), jax.block_until_ready, 5, sizes.turn)
        devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
        return {"devices": devices, "product": n, "ms": ms} | speed(n, ms, 2.0 * n**3) | versions()

    lines.measure(device)
    batch = random_batch(16, 64, SMALL.vocab_size, shortest=8)
    gpu, cpu = jax.devices()[0], jax.devices("cpu")[0]

    def step(objective: Any, on: Any, dtype: Any, precision: str | None) -> tuple[float, Any]:
        with jax.default_matmul_precision(precision):
            return our_side.step_on(on, objective, SMALL_PAIR.computing(dtype), batch)

    exact, half = (cpu, "float32", "highest"), (cpu, "bfloat16", None)
    pairs: dict[str, tuple[Any, Any, float | None]] = {  # what is compared with what, and how near it must be
        "float32, highest precision": ((gpu, "float32", "highest"), exact, 1e-4),
        "bfloat16": ((gpu, "bfloat16", None), half, 5e-2),
        "bfloat16 with float32": ((gpu, "bfloat16", None), exact, 5e-2),
        "float32, default precision": ((gpu, "float32", None), exact, None),  # TF32 where the GPU has it
        "the CPU's bfloat16 with its float32": (half, exact, None),
    }

    def compare(objective: str, compared: str) -> Numbers:
        *sides, tolerance = pairs[compared]
        for side in sides:
            if (objective, *side) not in steps:
                steps[objective, *side] = pool.submit(step, objective, *side)
        (loss, gradient), (right_loss, right) = (steps[objective, *side].result() for side in sides)
        error, worst = distance(right, gradient)
        loss_error = abs(loss / right_loss - 1)
        numbers: Numbers = {"loss": loss, "loss_error": loss_error, "gradient_error": error, "worst": worst}
        if tolerance is None:
            return numbers
        passes = loss_error <= tolerance and error <= tolerance  # NaN is not
        return numbers | {"tolerance": tolerance, "passes": bool(passes)}

    objectives = ("transformer", "prediction")
    with ThreadPoolExecutor() as pool:  # the CPU's are compiled while the GPU's are
        steps = {(name, *side): pool.submit(step, name, *side) for side in (exact, half) for name in objectives}
        for compared in pairs:
            for objective in objectives:
                lines.measure(compare, objective=objective, compared=compared)
                lines.last = 0.0  # says nothing of the next, which may lie ready


def distance(right: Any, other: Any) -> tuple[float, str]:
    """The largest relative difference of a leaf, and that leaf: the norm of the difference over the norm and 1 % of
    the largest number of all leaves, since of the gradient of a key's bias nothing but rounding is left.
    """
    import jax

    leaves = jax.tree.leaves_with_path(right)
    least = 0.01 * max(float(np.abs(leaf).max()) for _, leaf in leaves)
    errors = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(
            np.linalg.norm(leaf - its) / (np.linalg.norm(leaf) + least)
        )
        for (path, leaf), its in zip(leaves, jax.tree.leaves(other), strict=True)
    }
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    return errors[worst], worst


class Stepper:
    """Our step, compiled for one batch after the other. A failure may lose the state: then the stage is made anew."""

    def __init__(self, make_stage: Callable[[], Any]) -> None:
        self.make_stage = make_stage
        self.stage: Any = None
        self.programs: dict[tuple[int, ...], Any] = {}

    def prepare(self, batches: Sequence[Any]) -> Numbers:
        """Compile for batches of these shapes, side by side in threads: how many, and the seconds that all took."""
        self.stage = self.make_stage()
        start = time.perf_counter()
        with ThreadPoolExecutor() as pool:
            programs = list(pool.map(lambda batch: self._compiled(self.stage, batch), batches))
        self.programs = {batch.input_ids.shape: program for batch, program in zip(batches, programs, strict=True)}
        return {"programs": len(programs), "compile_s": time.perf_counter() - start}

    def _compiled(self, stage: Any, batch: Any) -> Any:
        return stage.step.lower(stage.state, stage.teacher_params, batch, stage.hyper).compile()

    def measure(self, batch: Any, turn: float) -> Numbers:
        """One step: seconds to compile, if it is not yet; milliseconds, MB of the program, and MB of the process at
        most so far.
        """
        import jax

        def process_peak() -> int:
            return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

        stage, self.stage, before = self.stage or self.make_stage(), None, process_peak()
        compiled, seconds = self.programs.pop(batch.input_ids.shape, None), None
        if compiled is None:
            start = time.perf_counter()
            compiled = self._compiled(stage, batch)
            seconds = time.perf_counter() - start

        def step() -> Any:
            nonlocal stage
            state, metrics = compiled(stage.state, stage.teacher_params, batch, stage.hyper)
            stage = stage._replace(state=state)
            return metrics

        ms, memory = milliseconds(step, jax.block_until_ready, 5, turn), compiled.memory_analysis()
        self.stage, peak = stage, process_peak()
        program = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return {
            "compile_s": seconds,
            "ms": ms,
            "program_mb": (program + memory.temp_size_in_bytes) / 1e6,
            "temporary_mb": memory.temp_size_in_bytes / 1e6,
            "peak_mb": peak / 1e6 if peak > before else None,  # no earlier line's
        }


def step(lines: Lines, sizes: Sizes) -> None:
    """Our step, with the teacher in it, and where the batch brings random targets that already lie on the device."""
    import jax
    import our_side

    from tinybert_jax.training.cost import step_flops

    pair = sizes.pair
    grids = {"in the step": sizes.grid, "kept": sizes.first}
    steppers = {
        "in the step": Stepper(lambda: our_side.make_stage(pair)),
        "kept": Stepper(lambda: our_side.make_stage(pair, teacher=False)),
    }

    def batch_of(rows: int, length: int, teacher: str) -> Any:
        batch = jax.device_put(sizes.batch(rows, length))
        return our_side.random_targets(pair, batch) if teacher == "kept" else batch

    def prepare(teacher: str) -> Numbers:
        shapes = [jax.eval_shape(functools.partial(batch_of, *shape, teacher)) for shape in grids[teacher]]
        return steppers[teacher].prepare(shapes)  # no batch lies on the GPU meanwhile, which peaks would count

    def one(rows: int, length: int, teacher: str) -> Numbers:
        numbers = steppers[teacher].measure(batch_of(rows, length, teacher), sizes.turn)
        flops = step_flops(our_side.objective_of(pair), rows, length, targets_known=teacher == "kept")
        return numbers | speed(rows, numbers["ms"], flops)

    for teacher, grid in grids.items():
        lines.measure(prepare, teacher=teacher)
        lines.last = 0.0  # says nothing of a step
        for rows, length in grid:
            lines.measure(one, rows=rows, length=length, teacher=teacher)
        steppers[teacher].stage = None  # its memory is the next one's


def compiling(lines: Lines, sizes: Sizes) -> None:
    """Our step at the first shape, with the XLA flags of this process."""
    import jax
    import our_side

    def one(rows: int, length: int) -> Numbers:
        batch = jax.device_put(sizes.batch(rows, length))
        numbers = Stepper(lambda: our_side.make_stage(sizes.pair)).measure(batch, sizes.turn)
        return numbers | {"examples_per_s": rows / numbers["ms"] * 1000}

    rows, length = sizes.grid[0]
    lines.measure(one, rows=rows, length=length)


def population(lines: Lines, sizes: Sizes) -> None:
    """Students behind one teacher."""
    import jax
    import our_side

    from tinybert_jax.training.cost import step_flops

    def one(students: int, rows: int, length: int) -> Numbers:
        batch = jax.device_put(sizes.batch(rows, length))
        numbers = Stepper(lambda: our_side.make_stage(sizes.pair, students)).measure(batch, sizes.turn)
        flops = step_flops(our_side.objective_of(sizes.pair), rows, length, students)
        return numbers | {"ms_per_student": numbers["ms"] / students} | speed(rows, numbers["ms"], flops)

    for students in sizes.students:
        lines.measure(one, students=students, rows=sizes.rows, length=sizes.length)


def inference(lines: Lines, sizes: Sizes) -> None:
    """Our class logits, each call waited for."""
    import jax
    import our_side

    from tinybert_jax.models.parameters import forward_flops

    dispatches = {
        model: our_side.make_dispatch(getattr(sizes.pair, model), sizes.pair.compute)
        for model in ("student", "teacher")
    }

    def one(model: str, rows: int, length: int, side: str) -> Numbers:
        batch, dispatch = jax.device_put(sizes.batch(rows, length)), dispatches[model]
        start = time.perf_counter()
        jax.block_until_ready(dispatch(batch))
        first = time.perf_counter() - start
        ms = milliseconds(lambda: dispatch(batch), jax.block_until_ready, 1, sizes.turn)
        flops = rows * forward_flops(getattr(sizes.pair, model), length)
        return {"compile_s": first - ms / 1000, "ms": ms} | speed(rows, ms, flops)

    for model in dispatches:
        for rows, length in sizes.inference:
            lines.measure(one, model=model, rows=rows, length=length, side="ours")


def profile(lines: Lines, sizes: Sizes) -> None:
    """The five kernels that our step spends most time in."""
    import jax
    import our_side

    steps = 5

    def one(rows: int, length: int) -> Numbers:
        compiled, state, teacher_params, hyper = our_side.make_stage(sizes.pair)
        batch = jax.device_put(sizes.batch(rows, length))
        with tempfile.TemporaryDirectory() as folder:
            for traced in (False, True):  # the first compiles
                if traced:
                    jax.profiler.start_trace(folder)
                for _ in range(steps):
                    state, metrics = compiled(state, teacher_params, batch, hyper)
                jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            [file] = Path(folder).glob("plugins/profile/*/*.trace.json.gz")
            return top_kernels(json.loads(gzip.decompress(file.read_bytes()))["traceEvents"], steps, 5)

    rows, length = sizes.profile
    lines.measure(one, rows=rows, length=length)


def top_kernels(events: list[Numbers], steps: int, count: int) -> Numbers:
    """The time per step, in a trace, of all kernels on the devices' streams and of the `count` longest by name; where
    no device has streams, as on a CPU, of all that is marked as an operation of XLA's.
    """
    names: dict[Any, str] = {}
    for event in events:
        if event.get("name") in ("process_name", "thread_name"):
            names[event["pid"], event.get("tid") if event["name"] == "thread_name" else None] = event["args"]["name"]
    timed = [event for event in events if event.get("ph") == "X" and event.get("dur")]
    # a device's other lines show the same kernels once more, by operation, module and scope
    kernels = [
        event
        for event in timed
        if "/device:" in names.get((event["pid"], None), "")
        and names.get((event["pid"], event["tid"]), "").startswith("Stream")
    ]
    operations = [event for event in timed if "hlo_op" in event.get("args", {})]
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    scopes: dict[str, str] = {}
    for event in kernels or operations:
        name, arguments = event["name"], event.get("args", {})
        spent[name] += event["dur"] / 1000 / steps
        calls[name] += 1
        scopes.setdefault(name, arguments.get("tf_op") or arguments.get("hlo_op", ""))
    total = sum(spent.values())
    if not total:
        raise ValueError(f"no kernels among {len(timed)} events of {sorted(set(names.values()))}")
    top = [
        {"kernel": name, "ms": ms, "share": ms / total, "calls": calls[name] / steps, "scope": scopes[name]}
        for name, ms in spent.most_common(count)
    ]
    return {"of": "kernels on streams" if kernels else "XLA's operations", "all_ms": total, "top": top}
