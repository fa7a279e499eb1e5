"""The tables that commands print."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinybert_jax.tasks.metrics import share_of

if TYPE_CHECKING:
    from tinybert_jax.training.run import Result

Table = tuple[list[str], list[list[str]]]  # header and rows


def scores_table(results: Sequence[Result]) -> Table:
    """The dev scores of a run's models: for one model, with its share of the teacher's score; for several, with mean
    and standard deviation."""
    return _one(results[0].scores, results[0].teacher_scores) if len(results) == 1 else _members(results)


def _one(scores: dict[str, float], teacher: dict[str, float] | None) -> Table:
    table = [[name, f"{value:.4f}"] for name, value in scores.items()]
    if not teacher:
        return ["dev set", "model"], table
    for row in table:
        score = teacher.get(row[0])  # a file of predictions may not have all dev sets
        row += ["-" if score is None else f"{score:.4f}", share_of(scores[row[0]], score)]
    return ["dev set", "model", "teacher", "share"], table


def _members(results: Sequence[Result]) -> Table:
    teacher = results[0].teacher_scores
    header = ["dev set", "mean", "sd", *(f"member {i}" for i in range(len(results)))] + ["teacher"] * bool(teacher)
    table = []
    for name in next(result.scores for result in results if not result.diverged):
        values = [result.scores[name] for result in results if not result.diverged]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        each = ("diverged" if result.diverged else f"{result.scores[name]:.4f}" for result in results)
        row = [name, f"{statistics.mean(values):.4f}", spread, *each]
        table.append(row + ([f"{teacher[name]:.4f}" if name in teacher else "-"] if teacher else []))
    return header, table


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print columns, each as wide as its longest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
