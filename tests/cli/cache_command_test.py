"""`tinybert cache` lists what is kept, and removes it."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

import pytest
from in_process import tinybert

from tinybert_jax.cache import append_parts, cached


def fill(folder: Path, kind: str, title: str, size: int) -> None:
    entry = folder / kind / hashlib.sha256(title.encode()).hexdigest()
    cached(entry, lambda new: append_parts(new, title, 1, lambda first: [[bytes(size)]]), lambda path: None)


def test_entries_are_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(tmp_path))
    assert tinybert(monkeypatch, "cache") == 0
    assert capsys.readouterr().out == f"{tmp_path} holds nothing\n"
    fill(tmp_path, "targets", "runs/teacher, prediction: 500 rows", 3_000_000)
    fill(tmp_path, "tokens", "of rows", 1_000_000)
    other = tmp_path / "projects" / "thesis"
    other.mkdir(parents=True)  # the folder may be shared with other things
    interrupted = tmp_path / "targets" / f".partial-{'a' * 64}"
    interrupted.mkdir()
    (interrupted / "title.txt").write_text("half")
    assert tinybert(monkeypatch, "cache") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["targets", "3.0", "MB"]
    assert lines[1].endswith("runs/teacher, prediction: 500 rows")
    assert lines[2].split()[:3] == ["tokens", "1.0", "MB"]
    assert lines[3].endswith("half (interrupted)")
    assert lines[4] == f"4.0 MB in {tmp_path}"
    assert tinybert(monkeypatch, "cache", "--unused-days", "1") == 0
    assert "unused for so long" in capsys.readouterr().out
    assert tinybert(monkeypatch, "cache", "--unused-days", "1", "--remove", "targets") == 0
    assert capsys.readouterr().out == "0 entries removed, 0.0 MB\n"
    assert tinybert(monkeypatch, "cache", "--remove", "words") == 2
    assert "--remove words: the kinds in" in capsys.readouterr().err
    with (interrupted / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tinybert(monkeypatch, "cache", "--remove", "targets") == 0
    assert capsys.readouterr().out == "1 entries removed, 3.0 MB\n1 kept, which another run is writing\n"
    assert interrupted.is_dir()
    assert tinybert(monkeypatch, "cache", "--remove", "all") == 0
    assert [path.name for path in tmp_path.glob("*/*")] == ["thesis"]
