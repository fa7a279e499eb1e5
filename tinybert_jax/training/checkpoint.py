"""Orbax checkpoints of one stage. The newest two are kept, and checksums verify what is restored."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from tinybert_jax.devices import processes
from tinybert_jax.errors import InputError

T = TypeVar("T")
# errors of the system that say nothing about the content of a file
NOT_DAMAGE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}


class Checkpoints:
    """The checkpoints of one stage in `directory`, written while training goes on."""

    def __init__(self, directory: Path) -> None:
        # if Orbax cannot create a directory in the background, its threads keep the process for 300 seconds
        in_the_foreground = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, async_options=in_the_foreground)
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._step = 0  # of the last save

    def save(self, step: int, state: Any) -> None:
        """Start to save `state`, as of `step`, in the background. It includes the best parameters so far.

        Raises:
            InputError: this save or the one before failed; older checkpoints are sound.
        """
        self._guarded(self._manager.wait_until_finished)  # else an error of that save would be reported for this one
        self._step = step
        state = jax.tree.map(jnp.copy, state)  # the next step donates the buffers of the original
        saved = ocp.args.StandardSave(state), ocp.args.JsonSave(checksums(state))
        args = ocp.args.Composite(state=saved[0], checksums=saved[1])
        if not self._guarded(lambda: self._manager.save(step, args=args)):
            raise RuntimeError(f"step {step} was not saved; {self._manager.latest_step()} is the newest")

    def check(self) -> None:
        """Check whether a save failed in the background.

        Raises:
            InputError: one failed.
        """
        self._guarded(self._manager.check_for_errors)

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            InputError: it could not be written.
        """
        self._guarded(self._manager.wait_until_finished)

    def restore(self, like: Any) -> Any | None:
        """The newest sound state, with the shapes and shardings of `like`; None if there is none.

        A checkpoint that cannot be read or has wrong checksums is reported in a warning and renamed to N.damaged.

        Raises:
            OSError: the system does not open files now, or not to this user; nothing is known about the checkpoint.
        """
        abstract = jax.tree.map(_abstract, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), checksums=ocp.args.JsonRestore())
            try:
                restored = self._manager.restore(step, args=args)
                damage = _difference(checksums(restored["state"]), restored["checksums"])
            except Exception as error:  # a damaged file can fail in any way, in any of three libraries
                if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise  # nothing is wrong with the file
                if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
                    raise
                damage = _reason(error)
            if not damage:
                return restored["state"]
            self._set_aside(step, damage)
        return None

    def close(self) -> None:
        """Wait until everything is on disk, and end.

        Raises:
            InputError: it could not be written.
        """
        self._guarded(self._manager.close)

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:  # a file system's error, raised by Python, TensorStore or Orbax
            raise InputError(
                f"{self._directory}: step {self._step} could not be saved ({_reason(error)}); the checkpoints before"
                " it are sound: make room or mend the directory, then continue with --resume"
            ) from error

    def _set_aside(self, step: int, damage: str) -> None:
        if processes.is_primary():
            names = (f"{step}.damaged{number}" for number in ("", *range(2, 1000)))  # a step can be damaged again
            aside = next(path for name in names if not (path := self._directory / name).exists())
            print(
                f"warning: {self._directory / str(step)} is damaged ({damage}); kept as {aside.name}", file=sys.stderr
            )
            (self._directory / str(step)).rename(aside)
        processes.barrier(f"set aside {step}")
        self._manager.reload()


def checksums(tree: Any) -> dict[str, str]:
    """A checksum of every leaf, by its path. It does not depend on how the leaf is sharded.

    Two sums modulo 2**32 over the words of a leaf; each word is multiplied by an odd number that depends on its index.
    A flipped bit always changes them, the order of summation does not matter, and each process can sum its shards.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    sums = np.stack([_partial_checksum(leaf) for leaf in leaves.values()])
    if jax.process_count() > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(axis=0, dtype=np.uint32)
    return {name: f"{first:08x}{second:08x}" for name, (first, second) in zip(leaves, sums, strict=True)}


def _partial_checksum(leaf: jax.Array) -> np.ndarray:
    """The sums over this process's shards, uint32 [2]. Replicas are counted once."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    total = np.zeros(2, np.uint32)
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        data = np.ascontiguousarray(shard.data)
        # leaves of a state have 32 bits, except bool masks
        words = data.view(f"u{data.itemsize}").ravel().astype(np.uint32, copy=False)
        place: np.ndarray = np.zeros((), np.uint32)
        for axis, size in enumerate(leaf.shape):
            index = np.arange(size, dtype=np.uint32)[shard.index[axis]]
            place = place[..., None] * np.uint32(size) + index
        place = place.ravel()
        mixed = (words ^ words >> 16) * np.uint32(0x85EBCA6B)
        products = np.stack([words * (2 * place + 1), mixed * (place * np.uint32(0x9E3779B2) + 1)])
        total += products.sum(axis=1, dtype=np.uint32)
    return total


def _difference(restored: dict[str, str], saved: dict[str, str]) -> str:
    """A message about leaves whose checksums differ; "" if there are none."""
    names = [name for name in restored | saved if restored.get(name) != saved.get(name)]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the checksum of {names[0]} differs{more}" if names else ""


def _reason(error: Exception) -> str:
    """One line about an error. Messages of TensorStore fill a screen."""
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:160]}"


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
