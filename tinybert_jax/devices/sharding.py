"""The device mesh, logical axis rules, and the placement of states and batches. One device is a mesh of ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import AXES

T = TypeVar("T")
# Logical axis -> mesh axes. Parameters are sharded along `embed`; activations are not.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "member"),  # a teacher's rows; its students' rows are not split over `member`
    "group": ("data", "member"),  # rows, where the devices of an `fsdp` group hold the same ones
    "member": ("member",),
    "embed": ("fsdp",),
    "heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
}
# End of a leaf's path -> logical axes of its last dimensions. A leaf that is not listed is replicated.
LOGICAL_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("word_embeddings", "embedding"): ("vocab", "embed"),
    ("position_embeddings", "embedding"): (None, "embed"),
    ("self", "query", "kernel"): ("embed", "heads"),
    ("self", "key", "kernel"): ("embed", "heads"),
    ("self", "value", "kernel"): ("embed", "heads"),
    ("self", "query", "bias"): ("heads",),
    ("self", "key", "bias"): ("heads",),
    ("self", "value", "bias"): ("heads",),
    ("attention", "output", "dense", "kernel"): ("heads", "embed"),
    ("intermediate", "dense", "kernel"): ("embed", "mlp"),
    ("intermediate", "dense", "bias"): ("mlp",),
    ("output", "dense", "kernel"): ("mlp", "embed"),
    # factors of low rank
    ("word_embeddings_projection", "kernel"): (None, "embed"),
    ("down", "kernel"): ("embed", None),
    ("up", "kernel"): (None, "embed"),
    ("pooler", "dense", "kernel"): ("embed", None),
    ("transform", "dense", "kernel"): ("embed", None),
    ("predictions", "bias"): ("vocab",),
    # projections to the teacher's width
    ("projections", "embedding", "kernel"): ("embed", None),
    ("projections", "hidden", "kernel"): ("embed", None),
    ("fit_dense", "kernel"): ("embed", None),
    ("fit_denses", "kernel"): ("embed", None),
}
# whether a function of one member is being traced
_of_member: ContextVar[bool] = ContextVar("of_member", default=False)


def make_mesh(
    data: int = 1, fsdp: int = 1, model: int = 1, member: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes `data` (batch), `fsdp` (batch and parameters), `model` (heads and feed-forward width) and
    `member` (the students of a population, and their teacher's batch).

    Raises:
        ValueError: there are fewer devices than the axes ask for.
    """
    needed = data * fsdp * model * member
    available = list(jax.devices() if devices is None else devices)
    if len(available) < needed:
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp}, model={model}, member={member} needs {needed} devices; found"
            f" {len(available)}"
        )
    # Linen's Embed raises on the Explicit axes that are jax.make_mesh's default
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, model, member), AXES, axis_types=types, devices=available[:needed])


def choose_mesh(
    requested: Mapping[str, int] | None, batch_parts: Sequence[int], heads: Mapping[str, int], members: int = 1
) -> Mesh:
    """The requested mesh, checked, or the default: the most devices along `data` that divide every batch evenly.

    Args:
        requested: axis sizes; None for the default.
        batch_parts: rows computed at once, for each stage.
        heads: the number of attention heads of each model on the mesh, by its role.
        members: the size of the population.

    Raises:
        InputError: an axis is unknown, is below 1, or does not divide what it splits; there are too few devices; or
            devices of a multi-process run would be left out.
    """
    devices = jax.devices()
    if requested is None:
        common_divisor = math.gcd(*batch_parts)
        requested = {"data": max(n for n in range(1, len(devices) + 1) if common_divisor % n == 0)}
    if not requested.keys() <= set(AXES) or any(size < 1 for size in requested.values()):
        raise InputError(f"mesh {dict(requested)}: give sizes, at least 1, of {', '.join(AXES)}")
    sizes = {axis: requested.get(axis, 1) for axis in AXES}
    option = "--mesh " + ",".join(f"{axis}={size}" for axis, size in sizes.items() if axis in requested)
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise InputError(f"{option} needs {needed} devices, and there are {len(devices)}: ask for fewer")
    if jax.process_count() > 1 and needed != len(devices):
        raise InputError(
            f"{option} leaves {len(devices) - needed} of {len(devices)} devices out, and a run of several processes"
            " needs all: choose a mesh or a batch size that uses them"
        )
    rows = math.prod(sizes[axis] for axis in RULES["batch"])
    for part in batch_parts:
        if part % rows:
            raise InputError(
                f"{option} cannot split {part} rows (a batch, or its part with accumulation) over"
                f" data x fsdp x member = {rows}: choose a batch size that {rows} divides"
            )
    if members % sizes["member"]:
        raise InputError(
            f"{option}: member={sizes['member']} does not divide the population of {members}: choose one that does"
        )
    for role, number in heads.items():
        if number % sizes["model"]:
            raise InputError(
                f"{option}: model={sizes['model']} does not divide the {number}"
                f" attention heads of the {role}: choose one that does"
            )
    return make_mesh(sizes["data"], sizes["fsdp"], sizes["model"], sizes["member"])


def batch_shares(mesh: Mesh) -> int:
    """The number of devices that a batch is split over."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def tree_shardings(mesh: Mesh | AbstractMesh, tree: Any, members: bool = False) -> Any:
    """The sharding of every leaf of parameters, or of a state, whose optimizer state repeats the parameters' paths.

    With `members`, the tree is a population's: axis 0 of every leaf runs over the members.
    """
    member_axis: tuple[str | None, ...] = ("member",) if members else ()

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        for ending, logical in LOGICAL_AXES.items():
            if names[-len(ending) :] == ending:
                unsharded = (None,) * (leaf.ndim - len(member_axis) - len(logical))
                return NamedSharding(mesh, _spec(mesh, (*member_axis, *unsharded, *logical), leaf.shape))
        return NamedSharding(mesh, _spec(mesh, member_axis, leaf.shape[: len(member_axis)]))

    return jax.tree.map_with_path(leaf_sharding, tree)


def on_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """Wrap a function that is compiled for the mesh: while it is traced, `constrain` knows the mesh."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with use_abstract_mesh(mesh.abstract_mesh):  # leaves no global state behind
            return function(*args)

    return traced


def of_member(function: Callable[..., T]) -> Callable[..., T]:
    """Wrap a function of one member of a population: while it is traced, `constrain` does not split over `member`."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        token = _of_member.set(True)
        try:
            return function(*args)
        finally:
            _of_member.reset(token)

    return traced


def for_members(batch: T) -> T:
    """Reshard a batch, or the teacher's targets, for the students: rows are no longer split over `member`."""

    def constrained(leaf: Any) -> Any:
        return constrain(leaf, "batch", *[None] * (leaf.ndim - 1))

    return of_member(lambda: jax.tree.map(constrained, batch))()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrain the sharding of an activation on the mesh of `on_mesh`. Without a mesh, `x` is returned."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(mesh, logical, x.shape))


def _spec(mesh: Mesh | AbstractMesh, logical: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """The mesh axes of each dimension. jit requires divisible dimensions; any other dimension is not sharded."""

    def fitted(name: str | None, size: int) -> tuple[str, ...] | str | None:
        axes = RULES[name] if name else ()
        if _of_member.get() and name != "member":
            axes = tuple(axis for axis in axes if axis != "member")
        if not axes or size % math.prod(mesh.shape[axis] for axis in axes):
            return None
        return axes[0] if len(axes) == 1 else axes

    return PartitionSpec(*map(fitted, logical, shape))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays: rows over `data`, `fsdp` and `member`. `batch_shares` must divide the size."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding that keeps the whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Turn arrays that every process holds whole into global arrays. Each device takes its part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(placed, tree, shardings)


def fetch(tree: Any) -> Any:
    """Copy global arrays to numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The numbers of a global batch's rows that this process's devices hold, in order."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[part] for part in slices if part is not None]
    return np.unique(np.concatenate(rows))


def global_batch(mesh: Mesh, local: Any, batch_size: int) -> Any:
    """The global batch, assembled from the `local_rows` of every process."""
    sharding = batch_sharding(mesh)

    def assembled(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(assembled, local)
