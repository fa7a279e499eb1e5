"""Commands keep what they compile, and find it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from in_process import tinybert

from tinybert_jax.cli import programs

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE")


def predicted(cache: Path) -> tuple[str, list[Path]]:
    """What `tinybert predict` prints of a text in a new process, and the programs that are then in the cache."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-m", "tinybert_jax.cli", "predict", "--model", str(TINY)]
    done = subprocess.run(
        command,
        input="a good film\n",
        env=environment | {"TINYBERT_JAX_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout, sorted((cache / "programs").glob("*/*-cache"))


def test_a_second_process_compiles_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, kept = predicted(tmp_path)
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    second, again = predicted(tmp_path)
    assert (first, kept) == (second, again)
    assert times == [path.stat().st_mtime_ns for path in again]


def test_the_folder_is_an_entry_of_the_cache(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # which is put back in the end
        monkeypatch.delenv(name)
    programs.keep_programs()
    folder = Path(os.environ[NAMES[0]])
    assert folder.parent == cache_dir / "programs"
    assert int(os.environ[NAMES[1]]) == programs.MOST_BYTES
    folder.mkdir(parents=True)  # as JAX does
    monkeypatch.delenv(NAMES[0])
    assert tinybert(monkeypatch, "cache") == 0
    assert "what jaxlib" in capsys.readouterr().out
    assert tinybert(monkeypatch, "cache", "--remove", "programs") == 0
    assert not folder.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["students"], ["cache"]], ids=lambda arguments: arguments[0])
def test_a_command_that_compiles_nothing_makes_no_folder(arguments: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-m", "tinybert_jax.cli", *arguments]
    environment |= {"TINYBERT_JAX_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    monkeypatch.setenv(NAMES[0], "/elsewhere")
    programs.keep_programs()
    assert os.environ[NAMES[0]] == "/elsewhere"
    assert not (cache_dir / "programs").exists()


def test_nothing_is_kept_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAMES[0], "")
    monkeypatch.delenv(NAMES[0])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(tmp_path / "file"))
    programs.keep_programs()
    assert NAMES[0] not in os.environ
