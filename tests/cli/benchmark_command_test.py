"""`tinybert benchmark` prints what was measured, and refuses what it cannot time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import TINY
from in_process import assert_refused, tinybert

from tinybert_jax.devices.processor import Processor
from tinybert_jax.inference import benchmark as module
from tinybert_jax.inference.benchmark import Benchmark, Latency, Machine, Measured, Shape, Side
from tinybert_jax.reports.benchmark import latency_tables, machine_lines, size_table


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "TURNS", 1)
    monkeypatch.setattr("tinybert_jax.inference.timing.PAUSE", 0.0)
    monkeypatch.setattr(module, "int8_is_faster", lambda: False)


def test_a_table_of_sizes_and_one_for_each_shape_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    texts, out = tmp_path / "texts.csv", tmp_path / "figures.json"
    texts.write_text('id,review\n1,the film is good\n2,"bad, very bad"\n')
    arguments = ["--batch-size", 1, 2, "--max-length", 8, "--input", texts, "--text-columns", "review"]
    assert tinybert(monkeypatch, "benchmark", TINY, *arguments, "--no-memory", "--json", out) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(out.read_text())
    measured = {row["by"]: row for row in figures["measured"]}
    assert measured.keys() - {"torch"} == {"JAX"}
    titles = [line for line in lines if line.startswith(("1 text", "2 texts"))]
    assert titles == [f"{n} of {of}" for of in ("8 tokens", "the file's lengths") for n in ("1 text", "2 texts")]
    shapes = [(latency["texts"], latency["tokens"]) for latency in measured["JAX"]["latencies"]]
    assert shapes == [(1, 8), (2, 8), (1, None), (2, None)]
    rows = [line.split() for line in lines if line.startswith(f"{TINY} ") and " JAX " in line]
    assert len(rows) == 5
    assert [row[-1] for row in rows[1:]] == ["1.00x"] * 4
    assert any("JAX, int8: not timed, as it is no faster than float32" in note for note in figures["notes"])
    assert [line for line in lines if line.startswith("note: JAX, int8: ")]


def test_speeds_are_those_over_the_first() -> None:
    machine = Machine(Processor("Chip", ("AMX",)), 4, 0.5, "cpu", {"jax": "1"})
    one, many = Shape(1, 32), Shape(32, 128)
    first = Measured(Side("a", "JAX"), 4_000_000, 1_000_000, 50.0, (Latency(one, 2.0, 2.5, 20),))
    second = Latency(one, 0.5, None, 5), Latency(many, 1500.0, 1600.0, 20)
    result = Benchmark(machine, [first, Measured(Side("b", "torch"), 1_000_000, None, None, second)], [])
    assert size_table(result) == (
        ["model", "run by", "parameters", "MB on disk", "MB of memory"],
        [["a", "JAX", "1.0 M", "4.0", "50"], ["b", "torch", "-", "1.0", "-"]],
    )
    (shape, (_, rows)), (other, (_, alone)) = latency_tables(result)
    assert (shape, rows) == (
        one,
        [["a", "JAX", "2", "2.5", "500", "1.00x"], ["b", "torch", "0.5", "-", "2000", "4.00x"]],
    )
    assert (other, alone) == (many, [["b", "torch", "1500", "1600", "21", "-"]])
    described, busy = machine_lines(machine)
    assert described == "Chip, 4 processors; instructions for int8: AMX; jax 1"
    assert "other work took 50% of the machine" in busy
    quiet = machine._replace(processor=Processor("Chip", ()), processors=1, busy=0.0, device="H100")
    assert machine_lines(quiet) == [
        "Chip, 1 processor; instructions for int8: none; jax 1",
        "JAX computes on H100, all else on the processor",
    ]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not of this system")
def test_threads_limit_the_process_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    limits: list[list[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, allowed: limits.append([pid, *allowed]))
    assert_refused(capsys, tinybert(monkeypatch, "benchmark", "no/such", "--threads", 1), "no/such: no such directory")
    assert limits == [[0, min(os.sched_getaffinity(0))]]
    there = len(os.sched_getaffinity(0))
    code = tinybert(monkeypatch, "benchmark", "no/such", "--threads", there + 1)
    assert_refused(capsys, code, f"--threads {there + 1}: give a number from 1 to {there}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "no/such: no such directory"),
        ([TINY, "--max-length", 8, 41], "has 40 positions, fewer than max_length 41"),
        ([TINY, "--batch-size", 0], "batch sizes are 0 and lengths 32, 128"),
        ([TINY, "--input", "no.csv"], "no.csv: no such file"),
        ([TINY, "--input", __file__], "unknown kind of file '.py': add --from"),
        ([TINY, "--input", TINY / "vocab.txt", "--text-columns", "a", "b", "c"], "BERT reads one text, or a pair"),
        ([TINY, "--json", "no/such/dir.json"], "no/such/dir.json: not in an existing directory"),
        ([TINY, "--json", TINY], "a directory; --json takes a file"),
        ([TINY, "--thread", 1], "tinybert benchmark has no option --thread; did you mean --threads?"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[object], message: str, monkeypatch, capsys) -> None:
    assert_refused(capsys, tinybert(monkeypatch, "benchmark", *arguments), message)
