"""Runs of several processes: joining, one writer, stopping at the same step, and ending together after a failure.

With one process, these functions do nothing special.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tinybert_jax.devices.sharding import replicated
from tinybert_jax.errors import InputError

FAILURE = "tinybert_jax/failure"
SHARED, BARRIER = "tinybert_jax/shared", "tinybert_jax/barrier"
# Process 0 may prepare a corpus for days. The heartbeat, not this limit, detects a dead process.
PATIENCE_SECONDS = 30 * 24 * 3600
HEARTBEAT_SECONDS = 30  # a process that is silent for longer counts as dead
POLL_SECONDS = 0.5
# Variables by which a launcher says that it has started several processes: a number of tasks, or a list of hosts.
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_shared, _barriers = itertools.count(), itertools.count()  # a key is set once, a barrier passed once
_ending = threading.Event()  # set when another process failed and this one is about to end


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Make this process one of several. Call it before anything is computed.

    Args:
        coordinator: HOST:PORT of process 0; "auto": jax asks the cluster; None: this process joins others only if the
            environment of SLURM, Open MPI or a TPU pod on Kubernetes names several processes.
        num_processes: the number of processes in the run; None: jax asks the cluster.
        process_id: the number of this process, from 0; None: jax asks the cluster.

    Raises:
        InputError: an argument is missing or out of range, or the other processes did not join.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num-processes and --process-id go with --coordinator HOST:PORT, process 0's address")
        if not _started_by_a_launcher():
            return
    elif coordinator != "auto":
        if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise InputError("--coordinator HOST:PORT needs --num-processes N and a --process-id from 0 to N - 1")
        if not coordinator.rpartition(":")[2].isdigit():
            raise InputError(f"--coordinator {coordinator!r}: give HOST:PORT, the address of process 0, or auto")
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise InputError(
            f"the processes could not join ({line}): check that all are started and can reach process 0"
        ) from None
    ended = threading.Event()
    watcher = threading.Thread(target=_end_with_the_others, args=(ended,), daemon=True)
    watcher.start()

    def end_watch() -> None:  # a thread that is inside the client when the interpreter ends aborts the process
        ended.set()
        watcher.join(10 * POLL_SECONDS)

    atexit.register(end_watch)
    if not is_primary():
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - for as long as the process lives


def _started_by_a_launcher() -> bool:
    tasks = [os.environ.get(name, "1") for name in TASKS]
    return any(n.isdigit() and int(n) > 1 for n in tasks) or any("," in os.environ.get(name, "") for name in HOSTS)


def is_primary() -> bool:
    """Whether this is process 0, which writes all files except Orbax's."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_primary(text: str) -> str:
    """Process 0's text, in every process. It is passed by the coordinator, without a collective on devices."""
    if jax.process_count() == 1:
        return text
    client, key = global_state.client, f"{SHARED}/{next(_shared)}"
    assert client is not None, "several processes have joined"
    if is_primary():
        client.key_value_set(key, text)
        return text
    return str(client.blocking_key_value_get(key, 1000 * PATIENCE_SECONDS))


def tree_from_primary(tree: Any) -> Any:
    """Process 0's arrays, in every process, because different kinds of devices can compute different bits."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


@contextmanager
def primary_first() -> Iterator[None]:
    """Run the body in process 0 first, and then in the others, which find its caches filled. Then all continue."""
    if not is_primary():
        _wait_for_all()
    yield
    if is_primary():
        _wait_for_all()
    _wait_for_all()


def _wait_for_all() -> None:
    """Wait at the coordinator. `barrier` would time out: the devices' first collective waits 1 (CPU) or 10 minutes."""
    if jax.process_count() > 1:
        assert global_state.client is not None, "several processes have joined"
        global_state.client.wait_at_barrier(f"{BARRIER}/{next(_barriers)}", 1000 * PATIENCE_SECONDS)


def tell_others(message: str) -> bool:
    """Make the other processes print the error with which this one ends, and end too. False with one process."""
    if global_state.client is None or global_state.num_processes == 1:
        return False
    try:
        global_state.client.key_value_set(FAILURE, f"process {jax.process_index()}: {message}")
        # Process 0 ends last: the store ends with it, and jax aborts a process that loses the store.
        time.sleep((4 if is_primary() else 2) * POLL_SECONDS)
    except RuntimeError:  # another process failed first, or the store is gone
        pass
    return True


def wait_if_ending() -> None:
    """Wait for the end if another process's failure is ending this one. Call it where something failed."""
    if _ending.is_set():
        threading.Event().wait()


def _end_with_the_others(ended: threading.Event) -> None:
    """End this process when another one fails. Otherwise it would wait for minutes in a collective operation."""
    while not ended.wait(POLL_SECONDS):
        client = global_state.client
        if client is None:  # the run has ended
            return
        try:
            message = client.key_value_try_get(FAILURE)
        except RuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            if global_state.client is None:
                return
            message = "process 0 is gone, and the coordination with it"
        if not message.startswith(f"process {jax.process_index()}:"):
            print(f"tinybert: error: {message}; this process ends too", file=sys.stderr, flush=True)
            _ending.set()
            if is_primary():
                time.sleep(4 * POLL_SECONDS)
            os._exit(1)


class StopRequests:
    """SIGINT, SIGTERM and SIGHUP, received by this process or by any other."""

    def __init__(self, mesh: Mesh) -> None:
        self._received = 0  # the signal's number
        self._mesh = mesh
        self._pending: Any = 0  # the number that the last call reduced over all processes
        self._largest = jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))

    def receive(self, number: int, frame: Any) -> None:
        """The signals' handler; the second signal ends the program."""
        if self._received and number == signal.SIGHUP:  # a terminal that closes sends it twice
            return
        if self._received:
            raise KeyboardInterrupt(number)
        self._received = number
        for file, message in ((1, b""), (2, b"\nstopping after this step; once more to end at once\n")):
            try:
                os.write(file, message)  # print is not reentrant
            except OSError:  # the terminal is gone: what the run prints until it has saved must not end it
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)

    def agreed(self, last: bool) -> int:
        """The number of the signal that asks to stop now, or 0. Call it once per step: all processes get the same
        answer at the same step.

        With several processes, the number is all-reduced asynchronously and read one step later, so that the devices
        do not wait. After the `last` step it is read at once.
        """
        if jax.process_count() == 1:
            return self._received
        previous, self._pending = self._pending, self._largest(self._numbers())
        return int(previous) or (int(self._pending) if last else 0)

    def _numbers(self) -> jax.Array:
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        number = np.array([self._received], np.int32)  # read once: all devices of a process must hold the same number
        return jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: number)


@contextmanager
def stop_requests(mesh: Mesh) -> Iterator[StopRequests]:
    """Catch SIGINT, SIGTERM and, unless nohup ignores it, SIGHUP, for the loop to read."""
    requests = StopRequests(mesh)
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield requests
        return
    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    previous = {number: signal.signal(number, requests.receive) for number in caught}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
