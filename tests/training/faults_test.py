"""Real runs meet all that happens to long ones, and lose nothing but the steps since the last save.

`make test-all` runs the quick ones, `make faults` all (the mark `faults`).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import checkpoint_test
import numpy as np
import pytest
from conftest import SHORT, on_devices, run_here, write_reviews, write_scored_reviews

import tinybert_jax as tb
from tinybert_jax.data import tokens
from tinybert_jax.training.diverged import Diverged

ARGUMENTS = ["--task", "classification", "--max-length", "16", *SHORT]
slow = pytest.mark.faults


class World:
    """A teacher, a student, rows, and the command that distils."""

    def __init__(self, teacher: Path, student: Path, reviews: Path) -> None:
        self._models = ["--teacher", str(teacher), "--student", str(student), "--data", str(reviews)]

    def command(
        self, out: Path, *more: str, save_every: int = 5, program: Sequence[str] = ("-m", "tinybert_jax.cli")
    ) -> list[str]:
        distill = [sys.executable, *program, "distill", *self._models, *ARGUMENTS]
        return [*distill, "--out", str(out), "--checkpoint-every", str(save_every), *more]

    def start(self, out: Path, *more: str, devices: int = 1, **kwargs: Any) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(out, *more, **kwargs),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=on_devices(devices),
        )

    def run(self, out: Path, *more: str, **kwargs: Any) -> subprocess.CompletedProcess:
        process = self.start(out, *more, **kwargs)
        printed, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)

    def start_two(self, out: Path, *more: str, **kwargs: Any) -> list[subprocess.Popen]:
        """Two processes of one run, two devices each."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        joined = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--mesh", "data=2,model=2", *more]
        return [self.start(out, *joined, "--process-id", str(i), devices=2, **kwargs) for i in (0, 1)]


@pytest.fixture(scope="module")
def world(teacher: Path, blank_student: Path, reviews: Path) -> World:
    return World(teacher, blank_student, reviews)


def weights(out: Path) -> bytes:
    return (out / "student" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken_on_four(world: World, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that one process with four devices gives."""
    out = tmp_path_factory.mktemp("four") / "run"
    assert world.run(out, "--mesh", "data=2,model=2", devices=4).returncode == 0
    return weights(out)


def wait_for(out: Path, text: str, *processes: subprocess.Popen) -> None:
    """Wait until the log holds the text."""
    deadline = time.monotonic() + 240
    log = out / "metrics.jsonl"
    while not (log.is_file() and text in log.read_text()):
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(out: Path, stage: str) -> Path:
    return max((out / "checkpoints" / stage).glob("[0-9]*"), key=lambda path: int(path.name))


@pytest.mark.long
def test_a_finished_stage_whose_newest_checkpoint_is_damaged_resumes_to_the_same_bits(
    world: World, unbroken: bytes, tmp_path: Path
) -> None:
    process = world.start(tmp_path / "run")
    wait_for(tmp_path / "run", '"2-prediction"', process)
    process.kill()
    process.communicate()
    damaged = newest(tmp_path / "run", "1-transformer")
    checkpoint_test.flip_a_bit(damaged)
    resumed = world.run(tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"warning: {damaged} is damaged (" in resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir()
    assert weights(tmp_path / "run") == unbroken


@pytest.mark.long
def test_a_number_that_is_not_finite_in_a_batch_ends_the_run_and_spares_the_checkpoints(
    pretrained: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of memory would make such a number: no file can hold one, since the reader refuses it."""
    write_scored_reviews(tmp_path, reviews)
    experiment = tb.Experiment(
        task="regression",
        source=tb.DataSource(data=str(tmp_path)),
        model=str(pretrained),
        stages=(tb.Stage("supervised", epochs=1),),
        max_length=16,
        checkpoint_every=2,
    )
    sound = tb.run(experiment, tmp_path / "sound")
    batch, made = tokens.Tokens.batch, itertools.count(1)

    def faulty(self: tokens.Tokens, rows: np.ndarray, length: int, epoch: int = 0) -> tb.Batch:
        number, result = next(made), batch(self, rows, length, epoch)
        return result._replace(labels=result.labels * np.float32("nan")) if number == 4 else result

    with monkeypatch.context() as patch:
        patch.setattr(tokens.Tokens, "batch", faulty)
        with pytest.raises(Diverged, match=r"step \d+: loss is nan.* the checkpoints before it are sound"):
            tb.run(experiment, tmp_path / "run")
    result = tb.run(experiment, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "sound")
    assert result.scores == sound.scores


@contextlib.contextmanager
def small_file_system(directory: Path, size: str, *options: str) -> Iterator[Path]:
    """A file system in memory; mounting it takes root."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.long
def test_a_full_disk_ends_the_run_with_what_to_do_and_with_room_it_resumes_to_the_same_bits(
    world: World, unbroken: bytes, tmp_path: Path
) -> None:
    with small_file_system(tmp_path / "disk", "700k") as disk:
        stopped = world.run(disk / "run")
        assert stopped.returncode == 2, stopped.stderr
        assert "Traceback" not in stopped.stderr
        error = stopped.stderr.splitlines()[-1]
        assert error.startswith("tinybert: error: "), stopped.stderr
        assert "No space left on device" in error
        assert "make room or mend the directory, then continue with --resume" in error
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run_here(world.command(disk / "run", "--resume"))
        assert weights(disk / "run") == unbroken


def test_a_read_only_directory_is_refused_before_anything_is_computed(world: World, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", "1m", "ro") as disk:
        refused = world.run(disk / "run")
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1] == (
            f"tinybert: error: {disk}/run: cannot be written: {disk} is read-only"
        )


@slow
def test_two_processes_give_the_bits_of_one_with_as_many_devices_and_write_each_file_once(
    world: World, unbroken_on_four: bytes, tmp_path: Path
) -> None:
    both = world.start_two(tmp_path / "run")
    (printed, errors), (silent, others) = (process.communicate(timeout=300) for process in both)
    assert [process.returncode for process in both] == [0, 0], errors + others
    assert "written to" in printed
    assert "written to" not in silent, "one process speaks, but for Gloo"
    assert weights(tmp_path / "run") == unbroken_on_four
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(
    number: int, which: int, world: World, unbroken_on_four: bytes, tmp_path: Path
) -> None:
    both = world.start_two(tmp_path / "run")
    wait_for(tmp_path / "run", '"step": 10,', *both)
    both[which].send_signal(number)
    (printed, errors), (_, others) = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == 2 * [128 + number], errors + others
    assert "continue with the same command and --resume" in printed
    resumed = world.start_two(tmp_path / "run", "--resume")
    ended = [process.communicate(timeout=300) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], ended
    assert weights(tmp_path / "run") == unbroken_on_four


@slow
def test_two_processes_agree_on_a_member_that_diverged_also_when_they_resume(
    world: World, unbroken_on_four: bytes, tmp_path: Path
) -> None:
    diverging = (
        "import dataclasses, sys; from tinybert_jax.cli import entry, train\n"
        "def execute(experiments, *more):\n"
        "    first, last = experiments[1].stages\n"
        "    stages = first, dataclasses.replace(last, learning_rate=1e30)\n"
        "    run([experiments[0], dataclasses.replace(experiments[1], stages=stages)], *more)\n"
        "run, train.execute = train.execute, execute; sys.argv[0] = 'tinybert'; entry.main()"
    )
    both = world.start_two(tmp_path / "run", "--population", "2", program=["-c", diverging])
    wait_for(tmp_path / "run" / "member0", '"2-prediction", "step": 10,', *both)
    both[1].send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == 2 * [128 + signal.SIGTERM], ended
    assert "continue with the same command and --resume" in ended[0][0]
    both = world.start_two(tmp_path / "run", "--population", "2", "--resume", program=["-c", diverging])
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    said = (tmp_path / "run" / "member1" / "diverged.txt").read_text().splitlines()[0]
    assert "diverged at step 2 of stage 2-prediction: " in said
    assert said in ended[0][0]
    assert not (tmp_path / "run" / "member1" / "student").exists()
    assert weights(tmp_path / "run" / "member0") == unbroken_on_four


@slow
@pytest.mark.parametrize("which", [0, 1])
def test_of_two_processes_one_that_is_killed_takes_the_other_along_and_both_resume(
    which: int, world: World, unbroken_on_four: bytes, tmp_path: Path
) -> None:
    both = world.start_two(tmp_path / "run")
    wait_for(tmp_path / "run", '"step": 10,', *both)
    both[which].kill()
    killed = time.monotonic()
    errors = both[1 - which].communicate(timeout=90)[1]
    assert both[1 - which].returncode not in (0, None), errors
    assert time.monotonic() - killed < 60
    print(f"the other ended after {time.monotonic() - killed:.1f} s and printed: {errors[-600:]}")
    both[which].communicate()
    resumed = world.start_two(tmp_path / "run", "--resume")
    ended = [process.communicate(timeout=300) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], ended
    assert weights(tmp_path / "run") == unbroken_on_four


@slow
def test_an_error_of_one_of_two_processes_is_the_last_word_of_both(world: World, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    both = world.start_two(tmp_path / "run")
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 1]
    message = f"tinybert: error: {tmp_path / 'run'}: exists already; choose another --out"
    assert errors[0].splitlines()[-1].startswith(message)
    assert "tinybert: error: process 0: " in errors[1].splitlines()[-1]


@slow
def test_each_process_may_prepare_for_longer_than_a_collective_waits(
    world: World, unbroken_on_four: bytes, tmp_path: Path
) -> None:
    """A corpus of gigabytes takes long; and where the others do not see process 0's cache, they build it too."""
    slowly = (
        "import sys, time; from tinybert_jax.cli import entry; from tinybert_jax.training import inputs, run\n"
        "def prepare(*args):\n"
        "    time.sleep(80)\n"
        "    return inputs.load_population(*args)\n"
        "run.load_population = prepare; sys.argv[0] = 'tinybert'; entry.main()"
    )
    both = world.start_two(tmp_path / "run", program=["-c", slowly])
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert weights(tmp_path / "run") == unbroken_on_four


@slow
def test_a_process_that_was_given_something_else_ends_both(
    world: World, teacher: Path, blank_student: Path, tmp_path: Path
) -> None:
    worlds = world, World(teacher, blank_student, write_reviews(tmp_path / "other", train=160))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--mesh", "data=2"]
    both = [
        process_world.start(tmp_path / "run", *joined, "--process-id", str(i))
        for i, process_world in enumerate(worlds)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [1, 2]
    assert f"tinybert: error: experiment.source.data is '{tmp_path / 'other'}' in process 1, and '" in errors[1]
    assert "give all processes the same command, models and rows" in errors[0].splitlines()[-1]
    assert not (tmp_path / "run").exists(), "or the same command, put right, would be refused"


@slow
def test_two_processes_resume_over_a_damaged_checkpoint(world: World, unbroken_on_four: bytes, tmp_path: Path) -> None:
    both = world.start_two(tmp_path / "run")
    wait_for(tmp_path / "run", '"2-prediction"', *both)
    for process in both:
        process.kill()
        process.communicate()
    checkpoint_test.flip_a_bit(newest(tmp_path / "run", "1-transformer"))
    resumed = world.start_two(tmp_path / "run", "--resume")
    ended = [process.communicate(timeout=300) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], ended
    assert "is damaged (" in ended[0][1]
    assert weights(tmp_path / "run") == unbroken_on_four


@slow
def test_twenty_kills_at_random_moments_change_no_bit(world: World, unbroken: bytes, tmp_path: Path) -> None:
    """Every step is saved, so that many kills meet a save. A run goes on until its kill, the last to its end."""
    moments = random.Random(0)
    kills, out = 0, tmp_path / "run"
    while kills < 20:
        process = world.start(out, *(["--resume"] if (out / "experiment.json").is_file() else []), save_every=1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moments.uniform(3, 16))
            assert process.returncode == 0
        if process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
        elif kills < 20:  # it came to its end before: the next kills are of a new run
            assert weights(out) == unbroken
            out = tmp_path / f"run{kills}"
    resumed = world.run(out, "--resume", save_every=1)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(out) == unbroken
