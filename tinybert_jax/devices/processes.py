"""Several processes of one run: they join, one of them writes, all stop after the same step, and one that fails takes
the others along. In a run of one process, each of these is nothing or what it always was.
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
# for process 0, which may prepare a corpus for days: that a process lives is its heartbeat's to say
PATIENCE_SECONDS = 30 * 24 * 3600
HEARTBEAT_SECONDS = 30  # after which a process that says nothing counts as dead
POLL_SECONDS = 0.5
# what tells that a launcher has started several of us: a number of tasks, or a list of hosts
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_shared, _barriers = itertools.count(), itertools.count()  # a key is written once, a barrier passed once
_ending = threading.Event()  # another process failed, and this one ends


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Make this process one of several, before anything is computed; alone it stays what it is.

    Args:
        coordinator: HOST:PORT of process 0; "auto": as the cluster says; None: as the environment of SLURM, Open MPI
            or a TPU pod on Kubernetes says, where it speaks of several processes.
        num_processes: of the run; None where the cluster says it.
        process_id: from 0; None where the cluster says it.

    Raises:
        InputError: the numbers are not complete, or the others did not come.
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
            f"the processes could not join ({line}): see that all are started, and can reach process 0"
        ) from None
    ended = threading.Event()
    watcher = threading.Thread(target=_end_with_the_others, args=(ended,), daemon=True)
    watcher.start()

    def end_watch() -> None:  # a thread that is inside the client when the interpreter ends aborts the process
        ended.set()
        watcher.join(10 * POLL_SECONDS)

    atexit.register(end_watch)
    if not is_primary():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def _started_by_a_launcher() -> bool:
    tasks = [os.environ.get(name, "1") for name in TASKS]
    return any(n.isdigit() and int(n) > 1 for n in tasks) or any("," in os.environ.get(name, "") for name in HOSTS)


def is_primary() -> bool:
    """Whether this process is the one that writes what is not Orbax's."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_primary(text: str) -> str:
    """The primary process's text, in every process; no device takes part."""
    if jax.process_count() == 1:
        return text
    client, key = global_state.client, f"{SHARED}/{next(_shared)}"
    assert client is not None, "several processes have joined"
    if is_primary():
        client.key_value_set(key, text)
        return text
    return str(client.blocking_key_value_get(key, 1000 * PATIENCE_SECONDS))


def tree_from_primary(tree: Any) -> Any:
    """The primary process's arrays, in every process: of what unlike devices computed, bits can differ."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


@contextmanager
def primary_first() -> Iterator[None]:
    """The primary process does what is inside, then the others do: they find its caches filled, or its error. Then all
    go on.
    """
    if not is_primary():
        _wait_for_all()
    yield
    if is_primary():
        _wait_for_all()
    _wait_for_all()


def _wait_for_all() -> None:
    """As `barrier`, but at the coordinator: the first collective of devices waits for a minute (CPU) or ten (GPU)."""
    if jax.process_count() > 1:
        assert global_state.client is not None, "several processes have joined"
        global_state.client.wait_at_barrier(f"{BARRIER}/{next(_barriers)}", 1000 * PATIENCE_SECONDS)


def tell_others(message: str) -> bool:
    """Before this process ends with an error: have the others print it and end too. False where there are none."""
    if global_state.client is None or global_state.num_processes == 1:
        return False
    try:
        global_state.client.key_value_set(FAILURE, f"process {jax.process_index()}: {message}")
        # process 0 goes last: it takes the store with it, and jax aborts whoever is without it
        time.sleep((4 if is_primary() else 2) * POLL_SECONDS)
    except RuntimeError:  # of two that fail the first one counts; or the store is gone
        pass
    return True


def wait_if_ending() -> None:
    """To be called where something failed: it may be that another process failed, and this one ends with it."""
    if _ending.is_set():
        threading.Event().wait()


def _end_with_the_others(ended: threading.Event) -> None:
    """Watch for another process's failure. Without it, the living wait for minutes in a collective operation."""
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
    """SIGINT and SIGTERM, at this process or at any other."""

    def __init__(self, mesh: Mesh) -> None:
        self._received = False
        self._mesh = mesh
        self._asked: Any = None
        self._any = jax.jit(lambda flags: flags.any(), out_shardings=replicated(mesh))

    def receive(self, number: int, frame: Any) -> None:
        """The signals' handler; the second signal ends the program."""
        if self._received:
            raise KeyboardInterrupt
        self._received = True
        os.write(2, b"\nstopping after this step; once more to end at once\n")  # print is not reentrant

    def agreed(self, last: bool) -> bool:
        """Whether to stop now. To be called once a step: all processes get the same answer at the same step.

        Of several processes, each puts its question behind the step's work, and reads the answer with the next step,
        so that the devices do not wait; after the `last` step it is read at once.
        """
        if jax.process_count() == 1:
            return self._received
        before, self._asked = self._asked, self._any(self._flags())
        return bool(before) or (last and bool(self._asked))

    def _flags(self) -> jax.Array:
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        flag = np.array([self._received])  # one reading: the devices of a process must agree
        return jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: flag)


@contextmanager
def stop_requests(mesh: Mesh) -> Iterator[StopRequests]:
    """Receive SIGINT and SIGTERM for the loop to read."""
    requests = StopRequests(mesh)
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield requests
        return
    before = {number: signal.signal(number, requests.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
