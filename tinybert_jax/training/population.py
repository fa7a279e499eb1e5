"""Populations: runs that train together with one teacher. The arrays of all members are stacked on axis 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tinybert_jax.devices.sharding import of_member
from tinybert_jax.errors import InputError
from tinybert_jax.settings.experiment import Experiment

# Fields in which members may differ, beside the numbers that are arguments of the step.
OWN_FIELDS = ("model", "start", "seed")


def shared_part(experiment: Experiment) -> dict[str, Any]:
    """The fields of an experiment that must be equal for all members."""
    fields = experiment.as_dict() | {"data_seed": experiment.order_seed}
    stages = [
        {name: value for name, value in described.items() if name != "learning_rate"}
        | {"objective": {name: value for name, value in described["objective"].items() if name not in swept}}
        for described, swept in zip(
            fields["stages"], [stage.objective.swept for stage in experiment.stages], strict=True
        )
    ]
    return {name: fields[name] for name in fields if name not in OWN_FIELDS} | {"stages": stages}


def check_members(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments that cannot train together.

    Raises:
        InputError: there is none, or one differs from the first in a field that must be equal for all.
    """
    if not experiments:
        raise InputError("a population needs at least one member")
    first = shared_part(experiments[0])
    for number, experiment in enumerate(experiments[1:], 1):
        for name, value in shared_part(experiment).items():
            if value != first[name]:
                raise InputError(
                    f"member {number} of the population has {name} {value!r}, and member 0 {first[name]!r}; members"
                    f" may differ in {', '.join(OWN_FIELDS)}, and in {', '.join(_swept(experiments[0]))} of a stage"
                )


def _swept(experiment: Experiment) -> list[str]:
    """The numbers of the stages in which members may differ."""
    return ["learning_rate", *dict.fromkeys(name for stage in experiment.stages for name in stage.objective.swept)]


def stack(trees: Sequence[Any]) -> Any:
    """One tree with the leaves of all members stacked on axis 0, also with a single member.

    Raises:
        InputError: a member's tree has other leaves than the first one's, for example if only some have projections.

    >>> stack([{"a": 1.0}, {"a": 2.0}])["a"].shape, stack([{"a": 1.0}])["a"].shape
    ((2,), (1,))
    """
    first = _shapes(trees[0])
    for number, tree in enumerate(trees[1:], 1):
        if differing := sorted(dict(first.items() ^ _shapes(tree).items())):
            raise InputError(
                f"member {number} of the population has not the same parameters as member 0: {differing[0]} is in one"
                " of them only, or of another shape; train it apart"
            )
    return jax.tree.map(_stacked, *trees)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _stacked(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.Array):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf, np.float32) if isinstance(leaf, float) else leaf for leaf in leaves])


def member(tree: Any, number: int) -> Any:
    """One member's part of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def over_members(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Apply a function of one member to the stacked arguments of all members.

    On a CPU, members are computed one after the other. Then each gets the same numbers as in a run alone, bit for bit,
    and `vmap` would be slower. On an accelerator, or if the mesh has several devices on its axis `member`, they are
    computed at once by `vmap`. A single member needs neither a loop nor a batch axis.
    """
    one = of_member(function)
    one_by_one = mesh.devices.flat[0].platform == "cpu" and mesh.shape["member"] == 1

    def mapped(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] == 1:
            result = one(*jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), args))
            return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), result)
        if one_by_one:
            return jax.lax.map(lambda member: one(*member), args)
        return jax.vmap(one, spmd_axis_name="member")(*args)

    return mapped
