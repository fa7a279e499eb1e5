"""The device mesh, logical axis rules, and the placing of states and batches. One device is a 1x1x1 mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from tinybert_jax.config import AXES, BertConfig, InputError

T = TypeVar("T")

# logical axis -> mesh axes. Of `embed`, only parameters are shared out: activations stay whole along it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "group": ("data",),  # rows, where devices of one `fsdp` group hold the same ones
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


def make_mesh(data: int = 1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data` (batch), `fsdp` (batch and parameters) and `model` (heads and feed-forward width).

    Raises:
        ValueError: there are fewer devices than the axes ask for.
    """
    wanted = data * fsdp * model
    found = list(jax.devices() if devices is None else devices)
    if len(found) < wanted:
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp}, model={model} needs {wanted} devices; found {len(found)}"
        )
    # Linen's Embed raises on the Explicit axes that are jax.make_mesh's default
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, model), AXES, axis_types=types, devices=found[:wanted])


def choose_mesh(asked: Mapping[str, int] | None, batch_parts: Sequence[int], models: Mapping[str, BertConfig]) -> Mesh:
    """The mesh that was asked for, checked, or the default: as many devices along `data` as share every batch evenly.

    Args:
        asked: sizes of axes; None for the default.
        batch_parts: rows that are computed at once, in each stage.
        models: the configs that run on the mesh, by their role.

    Raises:
        InputError: an axis does not divide what it is to share out, or there are not that many devices; of several
            processes, some would have no part.
    """
    devices = jax.devices()
    if asked is None:
        share = math.gcd(*batch_parts)
        asked = {"data": max(n for n in range(1, len(devices) + 1) if share % n == 0)}
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
    rows = sizes["data"] * sizes["fsdp"]
    for part in batch_parts:
        if part % rows:
            raise InputError(
                f"--mesh {described} cannot share {part} rows (a batch, or with accumulation its part) over"
                f" data x fsdp = {rows}: choose a batch size that {rows} divides"
            )
    for role, config in models.items():
        if config.num_attention_heads % sizes["model"]:
            raise InputError(
                f"--mesh {described}: model={sizes['model']} does not divide the {config.num_attention_heads}"
                f" attention heads of the {role}: choose one that does"
            )
    return make_mesh(sizes["data"], sizes["fsdp"], sizes["model"])


def tree_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """The sharding of every leaf of a state, parameters or optimizer state (which repeat the parameters' paths)."""

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        for ending, logical in LOGICAL_AXES.items():
            if names[-len(ending) :] == ending:
                whole = (None,) * (leaf.ndim - len(logical))
                return NamedSharding(mesh, _spec(mesh, (*whole, *logical), leaf.shape))
        return replicated(mesh)

    return jax.tree.map_with_path(leaf_sharding, tree)


def on_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """`function`, to be compiled for the mesh: while it is traced, `constrain` knows the mesh."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with use_abstract_mesh(mesh.abstract_mesh):  # no state outlives it, as global rules would
            return function(*args)

    return traced


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
        if not axes or size % math.prod(mesh.shape[axis] for axis in axes):
            return None
        return axes[0] if len(axes) == 1 else axes

    return PartitionSpec(*map(fitted, logical, shape))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows over `data` and `fsdp`; a batch's size must divide by their product."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as global arrays: each device takes its part."""

    def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
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
