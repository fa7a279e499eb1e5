"""The tests of the commands run them in this process, and check refusals, by these functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinybert_jax.cli import entry


def tinybert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `tinybert ARGUMENTS`, run in this process as in a new one, which has printed no notes yet."""
    monkeypatch.setattr("sys.argv", ["tinybert", *map(str, arguments)])
    monkeypatch.setattr("tinybert_jax.errors._NOTES", set())
    try:
        entry.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def assert_refused(capsys: pytest.CaptureFixture, code: int, message: str) -> None:
    """Exit code 2, and one line that holds the message."""
    printed = capsys.readouterr()
    assert code == 2, printed
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("tinybert: error: ")
    assert message in lines[0]


def distill_arguments(teacher: Path, student: Path, data: Path, out: Path) -> list[object]:
    return [
        *("distill", "--teacher", teacher, "--student", student, "--task", "classification"),
        *("--data", data, "--max-length", "16", "--no-report", "--out", out),
    ]


def search_little(monkeypatch: pytest.MonkeyPatch, size: str, *steps: int) -> None:
    """Let `tinybert shrink` try students of one size, with rungs of a few steps."""
    monkeypatch.setattr("tinybert_jax.shrink.plan.STEPS", steps)
    monkeypatch.setattr("tinybert_jax.shrink.plan.sizes", lambda _: [size])
