"""The device mesh, logical axis rules, and the sharding of any pytree of ours. One device is a 1x1x1 mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "model")

# logical axis -> mesh axis
RULES = {"vocab": None, "embed": "fsdp", "heads": "model", "mlp": "model"}

# end of a leaf's path -> logical axes of its last dimensions; whatever is not listed is replicated
LOGICAL_AXES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("word_embeddings", "embedding"): ("vocab", "embed"),
    ("self", "query", "kernel"): ("embed", "heads"),
    ("self", "key", "kernel"): ("embed", "heads"),
    ("self", "value", "kernel"): ("embed", "heads"),
    ("attention", "output", "dense", "kernel"): ("heads", "embed"),
    ("intermediate", "dense", "kernel"): ("embed", "mlp"),
    ("output", "dense", "kernel"): ("mlp", "embed"),
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


def tree_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """The sharding of every leaf of a state, parameters or optimizer state (which repeat the parameters' paths)."""

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        for ending, logical in LOGICAL_AXES.items():
            if names[-len(ending) :] == ending:
                axes = (None,) * (leaf.ndim - len(logical)) + tuple(RULES[axis] for axis in logical)
                # jit asks for divisible dimensions; one that does not divide stays whole
                fitted = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, leaf.shape, strict=True))
                return NamedSharding(mesh, PartitionSpec(*fitted))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows over `data` and `fsdp`; a batch's size must divide by their product."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())
