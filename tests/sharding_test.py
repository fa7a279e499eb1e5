"""Meshes and shardings: rules reach parameters and optimizer state alike, and give way where sizes do not divide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from tinybert_jax import optim, sharding


def test_one_device_is_a_mesh_with_all_axes() -> None:
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 1, "model": 1}


def test_too_few_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="data=64, fsdp=1, model=1 needs 64 devices; found"):
        sharding.make_mesh(data=64)


def test_rules_hold_for_parameters_and_their_moments() -> None:
    mesh = AbstractMesh((1, 2, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    kernel = jnp.zeros((3, 8, 16))  # [l, d, mlp]
    params = {"encoder": {"layer": {"intermediate": {"dense": {"kernel": kernel, "bias": jnp.zeros((3, 16))}}}}}
    state = {"params": params, "opt_state": optim.make_optimizer("adamw").init(params)}
    specs = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, state))
    dense = specs["params"]["encoder"]["layer"]["intermediate"]["dense"]
    assert dense["kernel"] == PartitionSpec(None, "fsdp", "model")
    assert dense["bias"] == PartitionSpec()
    moments = [spec for spec in jax.tree.leaves(specs["opt_state"]) if spec == dense["kernel"]]
    assert len(moments) == 2


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    mesh = AbstractMesh((1, 3, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    tree = {"intermediate": {"dense": {"kernel": jnp.zeros((3, 8, 16))}}}
    spec = sharding.tree_shardings(mesh, tree)["intermediate"]["dense"]["kernel"].spec
    assert spec == PartitionSpec(None, None, "model")
