"""The record lays measured lines out as five tables of one unit each, and the page in docs/ has them so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MACHINE = {"commit": "0123456789", "cpus": 2, "jax": "1", "torch": "2", "busy_before": 0.0, "benchmark": "step"}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments/benchmarks")
    return importlib.import_module("record")


def line(command: str, **numbers: float) -> dict[str, Any]:
    return MACHINE | {"command": command, "matmul_gflops_per_s": 100.0} | numbers


def tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of cells by the titles; the first is the heading."""
    parts = [part.split("\n\n")[0].splitlines() for part in text.split("### ")[1:]]
    rows = {title: [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines] for title, *lines in parts}
    return {title: [heading, *body] for title, (heading, _, *body) in rows.items()}


def test_a_row_is_of_one_pair_of_models_and_a_cell_is_one_number(record: ModuleType) -> None:
    step = line("step.py --size bert-base", ours_ms=3067.4, torch_ms=2855.2, compile_s=14.1, ours_share_of_matmul=0.81)
    step["torch_ms / ours_ms"] = 0.9308
    small = line("step.py --size minilm", ours_ms=678.0, torch_ms=679.0)
    text = record.page([step, small, line("step.py --dtype bfloat16 --size minilm", ours_ms=5.0)])
    written = tables(text)
    assert written["Time of an intermediate step, 32 rows x 64 tokens, ms"] == [
        ["", "models", "ours", "PyTorch", "PyTorch / ours"],
        ["with the teacher in it", "BERT_BASE to TinyBERT4", "3,067", "2,855", "0.931"],
        ["", "MiniLM to 3 x 192", "678", "679", ""],
        ["with the teacher's outputs cached", "BERT_BASE to TinyBERT4", "", "2,855", ""],
        ["", "MiniLM to 3 x 192", "", "679", ""],
        ["in bfloat16 (PyTorch: autocast), the teacher in it", "MiniLM to 3 x 192", "5", "", ""],
        ["compiling it", "BERT_BASE to TinyBERT4", "14,100", "", ""],
    ]
    assert written["Shares, %"] == [  # PyTorch's column has no number
        ["", "models", "ours"],
        ["matmul rate of the step, of the machine's", "BERT_BASE to TinyBERT4", "81"],
    ]
    assert len(written) == 2
    assert text.endswith(
        "Commit 0123456; 2 CPU cores, jax 1, torch 2; one large product runs at 100 to 100 GFLOP/s.\n"
    )


def test_options_that_say_where_the_texts_are_do_not_part_a_line_from_its_row(record: ModuleType) -> None:
    command = "epoch.py --rows 640 --padding longest --data 'my texts' --size minilm"
    rows = tables(record.page([line(command, ours_examples_per_s=294.0)]))["Throughput, texts a second"]
    assert rows[1:] == [["intermediate epoch, PyTorch padding to the longest row", "MiniLM to 3 x 192", "294"]]


def test_the_page_has_the_five_tables(record: ModuleType) -> None:
    measured = record.PAGE.read_text("utf-8").split(record.BEGIN)[1].split(record.END)[0]
    written = tables(measured)
    assert list(written) == [table.title for table in record.TABLES]
    for table in record.TABLES:
        heading, *rows = written[table.title]
        assert set(heading[2:]) <= set(table.columns)
        assert {row[0] for row in rows} - {""} == set(table.rows)
        for cell in (cell for row in rows for cell in row[2:]):
            assert re.fullmatch(r"[0-9.,]*", cell), cell
    assert re.search(r"^Commit [0-9a-f]{7};", measured, re.MULTILINE)
