"""The device mesh, logical axis rules, and the placing of states and batches. One device is a mesh of ones."""

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
# logical axis -> mesh axes. Of `embed`, only parameters are shared out: activations stay whole along it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "member"),  # of a teacher; its students are shared out over `member`, and not their rows
    "group": ("data", "member"),  # rows, where devices of one `fsdp` group hold the same ones
    "member": ("member",),
    "embed": ("fsdp",),
    "heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
}
# end of a leaf's path -> logical axes of its last dimensions; whatever is not listed is replicated
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
    wanted = data * fsdp * model * member
    found = list(jax.devices() if devices is None else devices)
    if len(found) < wanted:
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp}, model={model}, member={member} needs {wanted} devices; found"
            f" {len(found)}"
        )
    # Linen's Embed raises on the Explicit axes that are jax.make_mesh's default
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, model, member), AXES, axis_types=types, devices=found[:wanted])


def choose_mesh(
    asked: Mapping[str, int] | None, batch_parts: Sequence[int], heads: Mapping[str, int], members: int = 1
) -> Mesh:
    """The mesh that was asked for, checked, or the default: as many devices along `data` as share every batch evenly.

    Args:
        asked: sizes of axes; None for the default.
        batch_parts: rows that are computed at once, in each stage.
        heads: the numbers of attention heads of the models that run on the mesh, by their role.
        members: of the population.

    Raises:
        InputError: an axis is unknown, below 1, or does not divide what it is to share out; there are not that many
            devices; of several processes, some would have no part.
    """
    devices = jax.devices()
    if asked is None:
        share = math.gcd(*batch_parts)
        asked = {"data": max(n for n in range(1, len(devices) + 1) if share % n == 0)}
    if not asked.keys() <= set(AXES) or any(size < 1 for size in asked.values()):
        raise InputError(f"mesh {dict(asked)}: give sizes, at least 1, of {', '.join(AXES)}")
    sizes = {axis: asked.get(axis, 1) for axis in AXES}
    described = ",".join(f"{axis}={size}" for axis, size in sizes.items() if axis in asked)
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        raise InputError(f"--mesh {described} needs {wanted} devices, and there are {len(devices)}: ask for fewer")
    if jax.process_count() > 1 and wanted != len(devices):
        raise InputError(
            f"--mesh {described} leaves {len(devices) - wanted} of {len(devices)} devices out; of several processes"
            " all must take part: choose a mesh, or a batch size, that all devices divide"
        )
    rows = math.prod(sizes[axis] for axis in RULES["batch"])
    for part in batch_parts:
        if part % rows:
            raise InputError(
                f"--mesh {described} cannot share {part} rows (a batch, or with accumulation its part) over"
                f" data x fsdp x member = {rows}: choose a batch size that {rows} divides"
            )
    if members % sizes["member"]:
        raise InputError(
            f"--mesh {described}: member={sizes['member']} does not divide the population of {members}: choose one"
            " that does"
        )
    for role, number in heads.items():
        if number % sizes["model"]:
            raise InputError(
                f"--mesh {described}: model={sizes['model']} does not divide the {number}"
                f" attention heads of the {role}: choose one that does"
            )
    return make_mesh(sizes["data"], sizes["fsdp"], sizes["model"], sizes["member"])


def batch_shares(mesh: Mesh) -> int:
    """How many devices share the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def tree_shardings(mesh: Mesh | AbstractMesh, tree: Any, members: bool = False) -> Any:
    """The sharding of every leaf of a state, parameters or optimizer state (which repeat the parameters' paths); with
    `members`, of a population, whose leaves have the members on axis 0.
    """
    first: tuple[str | None, ...] = ("member",) if members else ()

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        for ending, logical in LOGICAL_AXES.items():
            if names[-len(ending) :] == ending:
                whole = (None,) * (leaf.ndim - len(first) - len(logical))
                return NamedSharding(mesh, _spec(mesh, (*first, *whole, *logical), leaf.shape))
        return NamedSharding(mesh, _spec(mesh, first, leaf.shape[: len(first)]))

    return jax.tree.map_with_path(leaf_sharding, tree)


def on_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """`function`, to be compiled for the mesh: while it is traced, `constrain` knows the mesh."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with use_abstract_mesh(mesh.abstract_mesh):  # no state outlives it, as global rules would
            return function(*args)

    return traced


def of_member(function: Callable[..., T]) -> Callable[..., T]:
    """`function` of one member of a population: while it is traced, `constrain` shares rows out over the devices that
    hold the same member.
    """

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        token = _of_member.set(True)
        try:
            return function(*args)
        finally:
            _of_member.reset(token)

    return traced


def for_members(batch: T) -> T:
    """A batch, or the teacher's targets, of all rows, as the devices of one member share them out."""

    def constrained(leaf: Any) -> Any:
        return constrain(leaf, "batch", *[None] * (leaf.ndim - 1))

    return of_member(lambda: jax.tree.map(constrained, batch))()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Tell the compiler how an activation lies on the mesh of `on_mesh`; without one, `x` itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(mesh, logical, x.shape))


def _spec(mesh: Mesh | AbstractMesh, logical: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """The mesh axes of each dimension. jit asks for divisible dimensions; one that does not divide stays whole."""

    def fitted(name: str | None, size: int) -> tuple[str, ...] | str | None:
        axes = RULES[name] if name else ()
        if _of_member.get() and name != "member":
            axes = tuple(axis for axis in axes if axis != "member")
        if not axes or size % math.prod(mesh.shape[axis] for axis in axes):
            return None
        return axes[0] if len(axes) == 1 else axes

    return PartitionSpec(*map(fitted, logical, shape))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows over `data`, `fsdp` and `member`; `batch_shares` must divide a batch's size."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as global arrays: each device takes its part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(placed, tree, shardings)


def fetch(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The numbers of the rows of a global batch that this process's devices hold, in order."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[own] for own in slices if own is not None]
    return np.unique(np.concatenate(rows))


def global_batch(mesh: Mesh, local: Any, batch_size: int) -> Any:
    """The global batch of which every process gives its `local_rows`."""
    sharding = batch_sharding(mesh)

    def assembled(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(assembled, local)
