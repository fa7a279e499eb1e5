"""The cache of a teacher's targets, for rows or augmented variants that a stage reads more than once.

Targets are computed before the first step and stored on disk. Batches bring them, so no teacher runs in the steps.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.cache import STALE, append_parts, cache_folder, cached, check_parts, partial_of
from tinybert_jax.devices.sharding import batch_sharding, on_mesh, place, replicated, tree_shardings
from tinybert_jax.errors import InputError, nearest_existing
from tinybert_jax.inference.step import outputs
from tinybert_jax.precision import float32_precision

FORMAT_VERSION = 2  # increase it when cached targets would change
TOKENS = -1  # in a shape: the size of an axis over the tokens of a row
COMPACT = np.dtype(jnp.bfloat16)


class TargetSpec(NamedTuple):
    """The shape, for one row, and the dtype of an array of the targets."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def of(self, tokens: int) -> tuple[int, ...]:
        """The shape for a row of `tokens` tokens."""
        return tuple(tokens if size == TOKENS else size for size in self.shape)

    def sizes(self, tokens: np.ndarray) -> np.ndarray:
        """The number of values per row, int64 [n]."""
        result = np.ones(len(tokens), np.int64)
        for size in self.shape:
            result *= tokens if size == TOKENS else size
        return result


class OverLimit(Exception):
    """The targets of all rows exceed the limit. The message has their size."""


@dataclass(frozen=True, eq=False)
class WithTargets:
    """n rows whose batches bring their targets: a base of `batch.Examples`."""

    examples: Examples

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int [n]."""
        return self.examples.lengths

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the rows."""
        return self.examples.fingerprint

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The batch of the rows, with `targets` in place of `teacher_inputs`."""
        batch = self.examples.batch(rows, length, epoch)
        return batch._replace(teacher_inputs=None, targets=self.targets(rows, length))

    def targets(self, rows: np.ndarray, length: int) -> Any:
        """The targets of the rows, -1 for filler. Axes over tokens are padded to `length`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ExamplesWithTargets(WithTargets):
    """n rows with stored targets. Targets past a row's tokens are 0."""

    tokens: np.ndarray  # int64 [n], number of tokens per row whose targets are stored
    offsets: Sequence[np.ndarray]  # for each array, int64 [n]: the start of each row
    flat: Sequence[np.ndarray]  # for each array, the values of all rows
    specs: Sequence[TargetSpec]
    tree: Any  # the structure of the targets

    def targets(self, rows: np.ndarray, length: int) -> Any:
        leaves = [self._padded(number, rows, length) for number in range(len(self.specs))]
        return jax.tree.unflatten(self.tree, leaves)

    def _padded(self, number: int, rows: np.ndarray, length: int) -> np.ndarray:
        spec, offsets, flat = self.specs[number], self.offsets[number], self.flat[number]
        result = np.zeros((len(rows), *spec.of(length)), spec.dtype)
        for i, row in enumerate(rows):
            if row >= 0:
                shape = spec.of(int(self.tokens[row]))
                values = flat[offsets[row] : offsets[row] + int(np.prod(shape))]
                index: tuple[Any, ...] = (i, *map(slice, shape))
                result[index] = values.reshape(shape)
        return result


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """The cache of a teacher's targets for an objective, and how they are computed.

    Args:
        objective: an `Objective`. It says whether targets of padding are needed, and which dtype is stored.
        params: the teacher's parameters, on the mesh.
        identity: the teacher's fingerprint, and everything else that determines the targets, except the rows.
        mesh: the devices that compute the targets.
        batch_size: rows computed at once.
        buckets: the padded lengths of batches.
        title: names teacher and objective, for `tinybert cache`.
    """

    objective: Any
    params: Params
    identity: Sequence[Any]
    mesh: Mesh
    batch_size: int
    buckets: tuple[int, ...]
    title: str = ""

    def with_targets(self, examples: Examples, limit: float, cache_dir: Path | None = None) -> ExamplesWithTargets:
        """The rows with their targets, computed or from the cache. Equal runs on equal devices share cached targets.

        Args:
            examples: n rows whose batches are the same in every epoch.
            limit: largest size of the cached targets of all runs, in bytes. Older ones are removed for new ones.
            cache_dir: see `cache.cache_folder`. In a multi-process run, each process has a copy until it ends.

        Raises:
            OverLimit: the rows need more than `limit`.
            InputError: the disk is too full, or the cache cannot be written.
        """
        specs, tree = self._specs(examples)
        tokens = (
            np.full(len(examples), self.buckets[-1]) if self.objective.reads_padding else np.asarray(examples.lengths)
        )
        sizes = [int(spec.sizes(tokens).sum()) for spec in specs]
        needed = sum(size * spec.dtype.itemsize for size, spec in zip(sizes, specs, strict=True))
        if needed > limit:
            raise OverLimit(f"need {needed / 1e9:,.1f} GB")
        order = np.argsort(examples.lengths, kind="stable")  # the order of `eval_batches`, and of the files
        offsets = []
        for spec in specs:
            row_sizes = spec.sizes(tokens)
            offset = np.empty_like(row_sizes)
            offset[order] = np.cumsum(row_sizes[order]) - row_sizes[order]
            offsets.append(offset)

        def build(folder: Path) -> None:
            self._write(folder, examples, tokens, specs)

        def load(folder: Path) -> list[np.ndarray]:
            """Map the files into memory. Each is read once, for its checksum."""
            check_parts(folder)
            pairs = enumerate(zip(sizes, specs, strict=True))
            return [np.memmap(folder / f"{n}.bin", spec.dtype, "r", shape=(size,)) for n, (size, spec) in pairs]

        folder = cache_folder(cache_dir) / "targets"
        if jax.process_count() > 1:  # no shared cache: a process that reads it would leave the others computing alone
            _make_room(folder, needed, limit)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-", ignore_cleanup_errors=True) as temporary:
                    build(Path(temporary))
                    flat = load(Path(temporary))  # a mapped file can be read after it is removed
            except OSError as error:
                raise InputError(f"{folder}: cannot write the cache ({error}): set TINYBERT_JAX_CACHE") from error
            return ExamplesWithTargets(examples, tokens, offsets, flat, specs, tree)
        entry = folder / self._fingerprint(examples, specs)
        if not entry.is_dir():
            _make_room(folder, needed, limit, partial_of(entry))
        flat = cached(entry, build, load, resumable=True)
        return ExamplesWithTargets(examples, tokens, offsets, flat, specs, tree)

    def _specs(self, examples: Examples) -> tuple[list[TargetSpec], Any]:
        """The specs of the targets' arrays. An axis that grows with the length of a batch is over tokens."""
        longest = self.buckets[-1]
        shapes = [
            jax.eval_shape(self.objective.targets, self.params, examples.batch(np.array([-1]), length, 0))
            for length in (longest, longest - 1)
        ]
        leaves, tree = jax.tree.flatten(shapes[0])
        specs = []
        for leaf, shorter in zip(leaves, jax.tree.leaves(shapes[1]), strict=True):
            sizes = zip(leaf.shape[1:], shorter.shape[1:], strict=True)
            shape = tuple(size if size == other else TOKENS for size, other in sizes)
            specs.append(
                TargetSpec(shape, COMPACT if self.objective.target_dtype == COMPACT else np.dtype(leaf.dtype))
            )
        return specs, tree

    def _fingerprint(self, examples: Examples, specs: Sequence[TargetSpec]) -> str:
        arrays = [(spec.shape, spec.dtype.name) for spec in specs]
        device, mesh = self.mesh.devices.flat[0].device_kind, dict(self.mesh.shape)
        versions = [FORMAT_VERSION, jax.__version__, os.environ.get("XLA_FLAGS", ""), float32_precision()]
        computed = [self.batch_size, self.buckets, self.objective.reads_padding, device, mesh, versions]
        content = [*self.identity, examples.fingerprint, arrays, computed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @functools.cached_property
    def _step(self) -> Any:
        return make_targets_step(self.objective, self.mesh, self.params)

    def _write(self, folder: Path, examples: Examples, tokens: np.ndarray, specs: Sequence[TargetSpec]) -> None:
        """Write a file for each array, with the rows in the order of `eval_batches`."""

        def parts(first: int) -> Iterator[list[bytes]]:
            named = "teacher's outputs"
            computed = outputs(self._step, self.params, examples, self.batch_size, self.buckets, named, first)
            for rows, targets in computed:
                arrays = [
                    np.asarray(leaf).astype(spec.dtype)
                    for spec, leaf in zip(specs, jax.tree.leaves(targets), strict=True)
                ]
                yield [
                    b"".join(
                        values[tuple(map(slice, spec.of(int(tokens[row]))))].tobytes()
                        for row, values in zip(rows, array, strict=True)
                        if row >= 0
                    )
                    for spec, array in zip(specs, arrays, strict=True)
                ]

        title = f"{self.title}: {len(examples):,} rows"
        print(f"computing the teacher's outputs, which are kept: {title}", file=sys.stderr, flush=True)
        append_parts(folder, title, len(specs), parts)


def with_known_targets(examples: Examples, outputs: np.ndarray) -> ExamplesWithTargets:
    """The rows with outputs [n, ...] as targets."""
    spec = TargetSpec(outputs.shape[1:], outputs.dtype)
    offsets = np.arange(len(outputs), dtype=np.int64) * int(np.prod(spec.shape))
    return ExamplesWithTargets(
        examples, np.asarray(examples.lengths), [offsets], [outputs.ravel()], [spec], jax.tree.structure(0)
    )


def _make_room(folder: Path, needed: int, limit: float, begun: Path | None = None) -> None:
    """Remove the least recently used entries until a new one of `needed` bytes fits into `limit`.

    Args:
        folder: the folder of the entries.
        needed: bytes of the new entry.
        limit: largest number of bytes of all entries.
        begun: the unfinished folder of the new entry that an interrupted run left.

    Raises:
        InputError: the disk is too full for the new entry.
    """
    used: dict[Path, float] = {}
    kept: dict[Path, int] = {}
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run removes entries too, or has just finished one
            size = sum(file.stat().st_size for file in path.rglob("*"))
            if path == begun:
                needed = max(needed - size, 0)
                limit -= size
            else:
                used[path], kept[path] = path.stat().st_mtime, size
    for path in sorted(used, key=lambda path: used[path]):
        being_written = path.name.startswith(".") and time.time() - used[path] < STALE
        if sum(kept.values()) + needed > limit and not being_written:
            del kept[path]
            shutil.rmtree(path, ignore_errors=True)
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise InputError(
            f"{folder}: the teacher's outputs need {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: set"
            " TINYBERT_JAX_CACHE to a larger disk, or --teacher-cache-gb 0, which runs the teacher in every step"
        )


def make_targets_step(objective: Any, mesh: Mesh, teacher_params: Params) -> Callable[[Params, Batch], Any]:
    """The compiled `(teacher_params, batch) -> targets` of an objective.

    Every process passes the whole batch and gets all targets.
    """
    rows = batch_sharding(mesh)
    compiled = jax.jit(
        on_mesh(mesh, objective.targets),
        in_shardings=(tree_shardings(mesh, teacher_params), rows),
        out_shardings=replicated(mesh),
    )

    def step(teacher_params: Params, batch: Batch) -> Any:
        return compiled(teacher_params, place(batch, jax.tree.map(lambda _: rows, batch)))

    return step
