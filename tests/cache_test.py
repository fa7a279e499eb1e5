"""An entry of the cache appears whole, is computed once, and is computed again when it is damaged."""

import shutil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tinybert_jax.cache import cache_folder, cached, cached_arrays
from tinybert_jax.errors import InputError


def make() -> dict[str, np.ndarray]:
    return {"ids": np.arange(1000), "starts": np.zeros(3)}


def test_the_second_use_of_an_entry_computes_nothing(tmp_path, capfd):
    first = cached_arrays(tmp_path, "tokens", "key", make)
    second = cached_arrays(tmp_path, "tokens", "key", lambda: pytest.fail("computed again"))
    for arrays in (first, second):
        assert arrays.keys() == make().keys()
        for name, array in make().items():
            np.testing.assert_array_equal(arrays[name], array)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", [b"", b"\0" * 70_000, None], ids=["empty", "zeros", "deleted"])
def test_a_corrupt_entry_is_computed_again(tmp_path, damage, caplog):
    cached_arrays(tmp_path, "tokens", "key", make)
    (file,) = tmp_path.rglob("tokens.npz")
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert cached_arrays(tmp_path, "tokens", "key", make)["ids"].tolist() == list(range(1000))
    assert "does not load" in caplog.text
    assert [entry.name for entry in (tmp_path / "tokens").iterdir()] == ["key"]


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cached(tmp_path / "tokens" / "key", build, lambda folder: folder)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_an_entry_that_another_run_removed_to_make_room_is_built_again(tmp_path):
    entry, built = tmp_path / "tokens" / "key", []

    def load(folder: Path) -> str:
        if len(built) == 1:
            shutil.rmtree(folder)
        return (folder / "value").read_text()

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "value").write_text("x")

    assert cached(entry, build, load) == "x"
    assert len(built) == 2
    built.clear()
    with pytest.raises(FileNotFoundError):
        cached(entry, build, lambda folder: (folder / "no such file").read_text())
    assert len(built) == 2, "an answer that costs hours is not computed again and again"


def test_of_two_builders_that_race_the_first_wins(tmp_path):
    entry = tmp_path / "tokens" / "key"

    def build(folder: Path) -> None:
        entry.mkdir()  # another process is first, meanwhile
        (entry / "file").write_text("theirs")
        (folder / "file").write_text("ours")

    assert cached(entry, build, lambda folder: (folder / "file").read_text()) == "theirs"
    assert list(entry.parent.iterdir()) == [entry]


def _use_in_process(folder: str) -> list[int]:
    return cached_arrays(Path(folder), "tokens", "key", make)["ids"].tolist()


def test_two_processes_may_compute_the_same_entry_at_once(tmp_path):
    with get_context("spawn").Pool(2) as pool:
        results = pool.map(_use_in_process, [str(tmp_path)] * 2)
        pool.close()
        pool.join()
    assert results == [list(range(1000))] * 2
    assert [entry.name for entry in (tmp_path / "tokens").iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the cache .*: set TINYBERT_JAX_CACHE"):
        cached_arrays(tmp_path / "file", "tokens", "key", make)


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("TINYBERT_JAX_CACHE", "/elsewhere")
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder(None) == Path("/elsewhere")
    monkeypatch.delenv("TINYBERT_JAX_CACHE")
    assert cache_folder(None) == Path("/xdg/tinybert_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None) == Path("/home/someone/.cache/tinybert_jax")
