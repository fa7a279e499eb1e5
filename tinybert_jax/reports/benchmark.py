"""The tables of `tinybert benchmark`."""

from __future__ import annotations

from tinybert_jax.inference.benchmark import Benchmark, Machine, Shape
from tinybert_jax.reports.tables import Table

BUSY = 0.1  # if other work uses a larger share of the machine, a note warns about the figures


def machine_lines(machine: Machine) -> list[str]:
    """Lines about the machine of the measurement."""
    kind = machine.processor
    instructions = "not known" if kind.int8 is None else ", ".join(kind.int8) or "none"
    lines = [
        f"{kind.name}, {machine.processors} processor{'s' * (machine.processors > 1)}; instructions for int8:"
        f" {instructions}; {', '.join(f'{name} {version}' for name, version in machine.versions.items())}"
    ]
    if machine.device != "cpu":
        lines.append(f"JAX computes on {machine.device}, all else on the processor")
    if machine.busy > BUSY:
        lines.append(f"note: other work took {machine.busy:.0%} of the machine before: do not quote these numbers")
    return lines


def size_table(result: Benchmark) -> Table:
    """A row for each model in each program: parameters, bytes on disk, and memory if it was measured."""
    with_memory = any(row.memory is not None for row in result.measured)
    header = ["model", "run by", "parameters", "MB on disk", *["MB of memory"] * with_memory]
    rows = []
    for row in result.measured:
        count = "-" if row.parameters is None else f"{row.parameters / 1e6:.1f} M"
        memory = "-" if row.memory is None else f"{row.memory:.0f}"
        rows.append([*row.side, count, f"{row.bytes / 1e6:.1f}", *[memory] * with_memory])
    return header, rows


def latency_tables(result: Benchmark) -> list[tuple[Shape, Table]]:
    """A table for each shape. Speed-ups are relative to the first model in the first program."""
    header = ["model", "run by", "ms", "p95", "texts a second", "speed-up"]
    tables: dict[Shape, list[list[str]]] = {}
    first = {latency.shape: latency.median for latency in result.measured[0].latencies}
    for row in result.measured:
        for latency in row.latencies:
            shape, median = latency.shape, latency.median
            faster = f"{first[shape] / median:.2f}x" if shape in first else "-"
            p95 = "-" if latency.p95 is None else _short(latency.p95)
            times = [_short(median), p95, f"{1000 * shape.texts / median:.0f}", faster]
            tables.setdefault(shape, []).append([*row.side, *times])
    return [(shape, (header, rows)) for shape, rows in tables.items()]


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def as_json(result: Benchmark) -> dict[str, object]:
    """All figures, as JSON values."""
    machine = result.machine
    return {
        "machine": machine._asdict() | {"processor": machine.processor._asdict()},
        "measured": [
            row.side._asdict()
            | {"bytes": row.bytes, "parameters": row.parameters, "memory_mb": row.memory}
            | {
                "latencies": [
                    latency.shape._asdict() | {"ms": latency.median, "p95_ms": latency.p95, "calls": latency.calls}
                    for latency in row.latencies
                ]
            }
            for row in result.measured
        ],
        "notes": result.notes,
    }
