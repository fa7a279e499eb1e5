"""A command says what it has to say in any locale, and without a home directory."""

from __future__ import annotations

import io
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import assert_refused, tinybert

from tinybert_jax import cli
from tinybert_jax.cli import entry


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", b"\\xe9\\u20ac"), ("latin-1", b"\xe9\\u20ac")])
def test_a_character_that_the_terminal_has_not_is_printed_by_its_number(
    encoding: str, printed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(tmp_path / "\xe9\u20ac"))
    terminal = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding=encoding))
    assert tinybert(monkeypatch, "cache") == 0
    sys.stdout.flush()
    assert terminal.getvalue() == os.fsencode(tmp_path) + b"/" + printed + b" holds nothing\n"


def test_ctrl_c_while_modules_are_imported_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "main", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "\ntinybert: interrupted\n")


def test_only_a_run_that_has_begun_is_said_to_continue(tmp_path: Path) -> None:
    begun, other = str(tmp_path), str(tmp_path / "other")
    assert entry._has_begun(["finetune", "--out", begun, "--seed", "1"])
    assert entry._has_begun(["finetune", f"--out={begun}"])
    assert not entry._has_begun(["finetune", "--out", other])
    assert not entry._has_begun(["finetune", begun])


def test_a_reader_that_is_gone_ends_the_program_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert tinybert(monkeypatch, "cache") == 141  # as a shell counts programs that SIGPIPE ends
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="others' file names are in UTF-8")
def test_the_program_starts_anew_where_file_names_are_not_in_utf_8() -> None:
    program = "import sys; from tinybert_jax.cli.process import prepare_process; prepare_process();"
    program += "print(sys.getfilesystemencoding(), sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, "\xe9"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    assert printed == b"utf-8 \xc3\xa9\n"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "TINYBERT_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_directory_is_told_to_name_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    message = "the user has no home directory to keep the cache in: set TINYBERT_JAX_CACHE to a folder"
    assert_refused(capsys, tinybert(monkeypatch, "cache"), message)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tinybert(monkeypatch, "cache") == 0
    assert capsys.readouterr().out == f"{tmp_path}/tinybert_jax holds nothing\n"


def test_a_tilde_in_the_caches_variable_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINYBERT_JAX_CACHE", "~/kept")
    assert tinybert(monkeypatch, "cache") == 0
    assert capsys.readouterr().out == f"{tmp_path}/kept holds nothing\n"
