"""The GPU's benchmark needs nothing of the command line's packages, and says what became of all it was asked for."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "experiments" / "benchmarks"
ABSENT = ("tyro", "grain", "tensorflow_datasets", "tensorboardX", "tqdm", "sklearn", "safetensors", "huggingface_hub")
TORCH = ("torch", "transformers")


def environment(folder: Path, absent: tuple[str, ...]) -> dict[str, str]:
    """The variables by which a Python, and those that it starts, find none of these packages."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name}')\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return os.environ | {"PYTHONPATH": str(folder)}


def run(*options: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, options)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


@pytest.fixture
def gpu_parts(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_parts")


def lines_of(file: Path, **what: object) -> list[dict]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if what.items() <= line.items()]


def test_what_it_measures_needs_none_of_the_command_lines_packages(tmp_path: Path) -> None:
    env = environment(tmp_path, (*ABSENT, *TORCH))
    env["PYTHONPATH"] += f"{os.pathsep}{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent.parent}"
    done = subprocess.run(
        [sys.executable, "-c", "import our_side, gpu_parts"], env=env, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.long
def test_a_part_runs_without_them_and_those_of_torch_are_skipped(tmp_path: Path) -> None:
    env, out = environment(tmp_path, (*ABSENT, *TORCH)), tmp_path / "new" / "gpu.jsonl"
    done = run("--tiny", "--minutes", 30, "--parts", "torch", "population", "--out", out, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    torch, *students, end = lines_of(out)
    assert torch == {"part": "torch", "skipped": "torch_step: torch, transformers not installed"}
    assert [line["students"] for line in students] == [1, 2]
    for line in students:
        assert line["ms"] == pytest.approx(line["students"] * line["ms_per_student"])
        assert line["program_mb"] > line["temporary_mb"] > 0
    assert end["part"] == "end"
    table = run("--table", out, env=env).stdout
    assert "### population" in table
    assert done.stdout.endswith(f"\n{table}")


def test_what_the_machine_has_not_is_said_in_a_line(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "gpu.jsonl", env=environment(tmp_path, ("jaxtyping", "wadler_lindig")))
    assert done.returncode == 1
    assert done.stderr.startswith("error: not installed: jaxtyping, wadler_lindig; ")
    assert "pip download --no-deps -d wheels jaxtyping wadler-lindig" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_fails_is_a_line_and_what_would_take_too_long_another(gpu: ModuleType, tmp_path: Path) -> None:
    lines = gpu.Lines("step", tmp_path / "out", until=time.time() + 60, tiny=True)

    def numbers(rows: int) -> dict[str, float]:
        if rows == 1:
            raise MemoryError("RESOURCE_EXHAUSTED: Out of memory\nand pages of it")
        return {"ms": 1.0}

    lines.measure(numbers, rows=1)
    lines.measure(numbers, rows=2)
    lines.last = 61
    lines.measure(numbers, rows=3)
    assert lines_of(tmp_path / "out") == [
        {"part": "step", "rows": 1, "error": "MemoryError: RESOURCE_EXHAUSTED: Out of memory"},
        {"part": "step", "rows": 2, "ms": 1.0},
        {"part": "step", "rows": 3, "skipped": "no time left for it"},
    ]


def test_a_part_that_does_not_end_is_stopped(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gpu.run_part("correctness", gpu.Lines("correctness", out, time.time(), tiny=True), 0.1, [])
    assert lines_of(out) == [{"part": "correctness", "error": "correctness was stopped after 0 seconds"}]


def test_of_a_table_the_last_number_counts_and_no_failed_part_is_lost(gpu: ModuleType) -> None:
    one = {"part": "population", "students": 1}
    stopped = [{"part": "population", "error": f"stopped {i}"} for i in range(2)]
    lines = [one | {"error": "full"}, one | {"ms": 2.0}, one | {"ms": 1.0}, one | {"skipped": "late"}, *stopped]
    assert gpu.sort_out(lines) == ([one | {"ms": 1.0}], stopped)
    table = gpu.table(lines)
    assert "| 1 |  | 1 |" in table
    assert "stopped 1" in table


def test_a_machine_without_a_gpu_is_not_measured_as_one(gpu_parts: ModuleType) -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match=r"jax sees no GPU, only .*--tiny runs on a CPU"):
        gpu_parts.check_gpu()


def test_the_worst_leaf_is_named_and_nan_is_worse_than_any_number(gpu_parts: ModuleType) -> None:
    right = {"a": np.array([3.0, 4.0]), "b": np.array([100.0, 0.0])}
    error, worst = gpu_parts.distance(right, {"a": np.array([3.0, 4.6]), "b": np.array([101.0, 0.0])})
    # 1 % of the largest number is 1
    assert (error, worst) == (pytest.approx(0.6 / (5 + 1)), "a")
    error, worst = gpu_parts.distance(right, {"a": np.zeros(2), "b": np.array([100.0, np.nan])})
    assert np.isnan(error)
    assert worst == "b"


def test_kernels_are_those_of_streams_and_counted_once(gpu_parts: ModuleType) -> None:
    def named(kind: str, pid: int, tid: int | None, name: str) -> dict:
        return {"ph": "M", "name": kind, "pid": pid, "args": {"name": name}} | ({} if tid is None else {"tid": tid})

    def event(pid: int, tid: int, name: str, microseconds: float) -> dict:
        return {
            "ph": "X",
            "pid": pid,
            "tid": tid,
            "name": name,
            "dur": microseconds,
            "args": {"hlo_op": f"op of {name}"},
        }

    lines = [
        *(named("process_name", 1, None, "/device:GPU:0"), named("process_name", 2, None, "/host:CPU")),
        *(named("thread_name", 1, 7, "Stream #13(Compute)"), named("thread_name", 1, 8, "XLA Ops")),
        named("thread_name", 2, 7, "python"),
    ]
    events = [event(1, 7, "gemm", 3000.0), event(1, 7, "add", 1000.0), event(1, 7, "gemm", 2000.0)]
    others = [event(1, 8, "gemm", 5000.0), event(2, 7, "gemm", 9000.0)]
    kernels = gpu_parts.top_kernels([*lines, *others, *events], steps=2, count=1)
    gemm = {"kernel": "gemm", "ms": 2.5, "share": 2.5 / 3, "calls": 1.0, "scope": "op of gemm"}
    assert kernels == {"of": "kernels on streams", "all_ms": 3.0, "top": [gemm]}
    with pytest.raises(ValueError, match="no kernels among 0 events"):
        gpu_parts.top_kernels(lines, steps=2, count=1)
