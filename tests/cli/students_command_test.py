"""`tinybert students`: what is listed is what the models have, and a speed is a measured one."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from in_process import assert_refused, tinybert

import tinybert_jax as tb
from tinybert_jax.cli.students import SIZES
from tinybert_jax.models.parameters import count_parameters
from tinybert_jax.reports import students
from tinybert_jax.students.presets import student_config


def listed(printed: str) -> dict[str, list[str]]:
    """The cells of each row by its name, without units."""
    rows = [line.split() for line in printed.splitlines()[1:]]
    return {row[0]: [cell for cell in row[1:] if cell not in ("M", "G")] for row in rows}


def test_the_presets_and_a_range_of_sizes_are_listed_beside_bert_base(monkeypatch, capsys) -> None:
    assert tinybert(monkeypatch, "students") == 0
    rows = listed(capsys.readouterr().out)
    assert {*SIZES, "BERT_BASE"} < rows.keys()
    assert rows["BERT_BASE"] == ["12", "768", "109.5", "437.9", "111.5", "11.17", "100.0%", "100.0%"]
    assert rows["tinybert-4l-312d"][:3] == ["4", "312", "14.4"]  # the paper's Table 1: 14.5M
    compute = [float(row[5]) for name, row in rows.items() if name in (*SIZES, "BERT_BASE")]
    assert compute == sorted(compute)
    assert tinybert(monkeypatch, "students", "--student", "3x192", "--vocabulary-size", 1000) == 0
    smaller = listed(capsys.readouterr().out)["3x192"]
    # words, positions, types and norm; layers; pooler and classifier
    layer = 4 * (192 * 192 + 192) + 2 * 192 * 768 + 768 + 192 + 4 * 192
    count = (1000 + 512 + 2 + 2) * 192 + 3 * layer + 192 * 192 + 192 + 2 * 192 + 2
    assert smaller[2:4] == [f"{count / 1e6:.1f}", f"{4 * count / 1e6:.1f}"]
    assert smaller[5] == rows["tinybert-3l-192d"][5]


def test_a_row_is_that_of_the_model_itself(pretrained: Path) -> None:
    config = student_config("2x16", tb.load_hf(pretrained)[0])
    row = students.size("2x16", config, 8)
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    assert row.parameters == count_parameters(params)
    assert row.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    layer = 8 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 8 * 8 * 16
    assert row.macs == 2 * layer


@pytest.mark.long
def test_shares_are_the_teachers_and_the_speed_is_measured_when_asked_for(
    pretrained: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    calls = []
    monkeypatch.setattr(students, "SECONDS", 0.0)
    measured = students.milliseconds
    monkeypatch.setattr(students, "milliseconds", lambda *call: calls.append(measured(*call)) or calls[-1])
    arguments = ["--teacher", pretrained, "--student", "4x32", "--max-length", 16]
    assert tinybert(monkeypatch, "students", *arguments) == 0
    printed = capsys.readouterr().out
    assert "ms" not in printed
    assert listed(printed)["4x32"][6:] == listed(printed)[str(pretrained)][6:] == ["100.0%", "100.0%"]
    assert not calls
    assert tinybert(monkeypatch, "students", *arguments, "--measure") == 0
    printed = capsys.readouterr().out
    rows = [row[8:] for name, row in listed(printed).items() if name in ("4x32", str(pretrained))]
    assert [cell for row in rows for cell in row] == [f"{ms:.3g}" for ms in calls]
    assert min(calls) > 0
    assert f"ms: measured now, on {len(jax.devices())} x cpu, float32, 16 tokens" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "big"], "unknown student preset 'big'; known are tinybert-4l-312d"),
        (["--student", "2x7x8x3"], "student '2x7x8x3': "),
        (["--teacher", "no/such/dir"], "no/such/dir: no such directory"),
        (["--vocabulary-size", "0"], "--vocabulary-size 0: give a number of at least 1"),
        (["--max-length", "4"], "--max-length 4: give a number of at least 8"),
        (["--max-length", "600"], "BERT_BASE: has 512 positions, fewer than max_length 600"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, monkeypatch, capsys) -> None:
    assert_refused(capsys, tinybert(monkeypatch, "students", *arguments), message)
