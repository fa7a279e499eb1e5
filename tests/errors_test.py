"""The messages that every part of the package shares."""

from __future__ import annotations

import pytest

from tinybert_jax.errors import note


def test_a_note_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("rows are cut short", "rows are cut short", "a file is quoted"):
        note(text)
    assert capsys.readouterr().err == "note: rows are cut short\nnote: a file is quoted\n"
