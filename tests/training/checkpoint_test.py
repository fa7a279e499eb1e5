"""Checkpoints are exact, the newest two are kept, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import gc
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.training import optim
from tinybert_jax.training.checkpoint import Checkpoints, checksums
from tinybert_jax.training.step import TrainState, create_state


def make_state(seed: int) -> TrainState:
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4))}}
    return create_state(params, optim.make_optimizer("adamw"), jax.random.key(seed), sharding.make_mesh())


def test_a_restored_state_is_the_saved_one_random_key_included(tmp_path: Path) -> None:
    saved = make_state(1)._replace(step=jnp.array(7), best_metric=jnp.float32(0.5))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, saved)
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore(make_state(2))
    assert restored is not None
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(saved.key))
    for a, b in zip(jax.tree.leaves(restored._replace(key=0)), jax.tree.leaves(saved._replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_empty_directory_restores_nothing(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).restore(make_state(0)) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 5, 7):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [5, 7]


def test_a_save_that_orbax_would_skip_in_silence_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, make_state(1))
    with pytest.raises(RuntimeError, match="step 1 was not saved; 2 is the newest"):
        checkpoints.save(1, make_state(2))


def data_files(step: Path) -> list[Path]:
    """The files of the state's numbers; which of them are live is TensorStore's secret."""
    return [path for path in (step / "state").rglob("d/*") if path.is_file()]


def flip_a_bit(step: Path) -> None:
    for path in data_files(step):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def truncate(step: Path) -> None:
    for path in data_files(step):
        path.write_bytes(path.read_bytes()[:-20])


def delete(step: Path) -> None:
    for path in data_files(step):
        path.unlink()


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip_a_bit,
    "truncated files": truncate,
    "deleted files": delete,
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no checksums": lambda step: shutil.rmtree(step / "checksums"),
    "an empty folder": empty,
}


# TensorStore reads on for a moment where one of its reads has failed; asyncio then speaks to nobody but pytest
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", list(DAMAGES.values()), ids=list(DAMAGES))
def test_of_a_damaged_checkpoint_the_one_before_is_restored_and_the_damaged_one_kept(
    damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Checkpoints(tmp_path)
    for step in (3, 6):
        writer.save(step, make_state(step))
    writer.finish()
    writer.close()
    damage(tmp_path / "6")
    reader = Checkpoints(tmp_path)
    restored = reader.restore(make_state(0))
    assert restored is not None
    assert checksums(restored) == checksums(make_state(3))
    assert f"warning: {tmp_path / '6'} is damaged (" in capsys.readouterr().err
    assert (tmp_path / "6.damaged").is_dir()
    reader.save(6, make_state(6))
    reader.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6", "6.damaged"]
    again = Checkpoints(tmp_path).restore(make_state(0))
    assert again is not None
    assert checksums(again) == checksums(make_state(6))


def test_where_all_checkpoints_are_damaged_nothing_is_restored(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path)
    writer.save(3, make_state(3))
    writer.finish()
    flip_a_bit(tmp_path / "3")
    assert Checkpoints(tmp_path).restore(make_state(0)) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_step_can_be_damaged_twice(tmp_path: Path) -> None:
    for _ in range(2):
        writer = Checkpoints(tmp_path)
        writer.save(3, make_state(3))
        writer.finish()
        writer.close()
        flip_a_bit(tmp_path / "3")
        assert Checkpoints(tmp_path).restore(make_state(0)) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.damaged", "3.damaged2"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_an_error_of_the_machine_is_not_taken_for_damage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Checkpoints(tmp_path)
    writer.save(3, make_state(3))
    writer.finish()

    def failing(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.restore", failing)
        with pytest.raises(type(error)) as raised:
            writer.restore(make_state(0))
    assert raised.value is error
    assert writer.restore(make_state(0)) is not None


def test_processes_meet_where_a_step_is_set_aside_whichever_looks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that looks after process 0 has renamed the step finds that name taken."""
    met: list[str] = []
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", met.append)
    monkeypatch.setattr(checkpoints, "_manager", SimpleNamespace(reload=lambda: None))
    (tmp_path / "6").mkdir()
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        checkpoints._set_aside(6, "damage")
    assert len(met) == 2
    assert met[0] == met[1]
    assert [path.name for path in tmp_path.iterdir()] == ["6.damaged"]


def test_a_changed_bit_anywhere_changes_its_leafs_checksum_and_no_other() -> None:
    state = make_state(1)
    before, kernel = checksums(state), np.array(state.params["dense"]["kernel"])
    for place in np.ndindex(kernel.shape):
        for bit in (0, 15, 31):
            changed = kernel.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            after = checksums(state._replace(params={"dense": {"kernel": jnp.asarray(changed)}}))
            assert [name for name in before if before[name] != after[name]] == [".params['dense']['kernel']"]


def test_values_that_change_places_change_the_checksum() -> None:
    kernel = jnp.arange(6.0).reshape(2, 3)
    assert checksums(kernel) != checksums(kernel[:, ::-1])
    assert checksums(jnp.zeros(3)) != checksums(-jnp.zeros(3)), "the sign of zero is a bit too"
    masks = [jnp.arange(6).reshape(2, 3) == place for place in range(6)]
    assert len({str(checksums(mask)) for mask in masks}) == 6


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Files end at 1 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", [Checkpoints.finish, Checkpoints.close])
@pytest.mark.usefixtures("no_large_files")
def test_a_save_that_fails_in_the_background_is_told_with_what_to_do(
    end: Callable[[Checkpoints], None], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"kernel": jax.random.normal(jax.random.key(0), (1024, 1024))})
    with pytest.raises(
        tb.InputError, match=r"step 1 could not be saved \(.*\); the checkpoints before it are sound: make"
    ):
        end(checkpoints)
    del checkpoints
    gc.collect()  # what Orbax leaves of it is collected here, and not in another test


UNWRITABLE = """
import sys
from pathlib import Path
import jax.numpy as jnp
from tinybert_jax.training.checkpoint import Checkpoints

stage = Path(sys.argv[1])
checkpoints = Checkpoints(stage)
stage.rmdir()
stage.write_text("a file in the way")
checkpoints.save(1, {"kernel": jnp.zeros(3)})
checkpoints.close()
"""


def test_a_save_whose_directory_cannot_be_made_is_told_and_the_process_ends_soon(tmp_path: Path) -> None:
    """Orbax's threads that wait for a directory which is never made would keep the process for 300 seconds."""
    command = [sys.executable, "-c", UNWRITABLE, str(tmp_path / "stage")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert re.search(
        r"InputError: .*step 1 could not be saved \(.*\); the checkpoints before it are sound", done.stderr
    )
