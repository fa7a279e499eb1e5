"""Gates on attention heads and feed-forward units: how they act on parameters, what they cost, and which to keep open.

A gate is a number in [0, 1] on what a head or a unit gives. A closed one also takes away the weights that feed it, so
that they are zeros which no gradient reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from tinybert_jax.batch import Params
from tinybert_jax.compression import prune
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import heads_and_units_read
from tinybert_jax.settings.stages import Hyper


class Gates(NamedTuple):
    """A number for every head [l, h] and every feed-forward unit [l, f]."""

    heads: Any
    units: Any


class Cost(NamedTuple):
    """Multiply-adds of a head and of a unit."""

    heads: float
    units: float


class Rule(NamedTuple):
    """What closes gates in training. Its state is a dict of float arrays, in which "gates" are those that are decided.

    init(gates) -> state: what it has beside "gates".
    act(state, hyper, key) -> gates, share, penalty: the gates of a step, the share of the multiply-adds that they
    leave or are expected to leave, and what is added to the loss. Without a key, nothing is random.
    learn(state, gradients, hyper) -> state: by the gradients of the loss.
    """

    init: Callable[[Gates], dict[str, Any]]
    act: Callable[[Any, Hyper, PRNGKeyArray | None], tuple[Gates, Array, Array]]
    learn: Callable[[Any, Any, Hyper], Any]


def read_by_outputs(config: BertConfig, params: Params) -> Gates:
    """1 for the heads and units that an output projection reads; 0 for the others, whose rows are zeros."""
    return Gates(*(jnp.asarray(read, jnp.float32) for read in heads_and_units_read(config, params)))


def are_open(gates: Gates) -> Gates:
    """1 where a gate lets anything through, else 0; no gradient."""
    return jax.tree.map(lambda gate: jax.lax.stop_gradient(jnp.asarray(gate > 0, jnp.float32)), gates)


def gated(params: Params, gates: Gates) -> Params:
    """The parameters with the gates on the rows of the output projections, and without what feeds closed ones."""
    params, mask = prune.masked(params, gates), are_open(gates)
    layer = params["encoder"]["encoder"]["layer"]

    def fed(dense: Params, mask: Array) -> Params:
        mask = mask.repeat(dense["bias"].shape[-1] // mask.shape[-1], axis=1)
        return {"kernel": dense["kernel"] * mask[:, None], "bias": dense["bias"] * mask}

    projections = {name: fed(dense, mask.heads) for name, dense in layer["attention"]["self"].items()}
    layer = layer | {
        "attention": layer["attention"] | {"self": projections},
        "intermediate": {"dense": fed(layer["intermediate"]["dense"], mask.units)},
    }
    return params | {"encoder": params["encoder"] | {"encoder": {"layer": layer}}}


def share_of(gates: Gates, cost: Cost) -> Array:
    """The share of the multiply-adds of all heads and units that these have, each counted as much as its number.

    >>> float(share_of(Gates(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])), Cost(3.0, 1.0)))
    0.5
    """
    whole = sum(one * gate.size for one, gate in zip(cost, gates, strict=True))
    return sum((one / whole) * jnp.sum(gate) for one, gate in zip(cost, gates, strict=True))


def choose(importance: Gates, gates: Gates, cost: Cost, share: Any) -> Gates:
    """The gates of the largest total importance within a share of the multiply-adds, as 1, and the others as 0.

    It is what `prune.select` finds, but for rounding, and can be compiled. Closed gates stay closed.
    """
    values = [jnp.where(gate > 0, x, -1.0).ravel() for gate, x in zip(gates, importance, strict=True)]
    ranks, totals = [], []
    for x in values:
        order = jnp.argsort(-x, stable=True)
        ranks.append(jnp.argsort(order, stable=True))
        totals.append(jnp.append(0.0, jnp.cumsum(jnp.maximum(x[order], 0.0))))
    budget = share * sum(one * x.size for one, x in zip(cost, values, strict=True))
    left = budget - cost.heads * jnp.arange(len(totals[0]))  # after so many heads, for units
    units = jnp.clip(jnp.floor(left / cost.units), 0, values[1].size).astype(jnp.int32)
    heads = jnp.argmax(jnp.where(left >= 0, totals[0] + totals[1][units], -1.0))
    chosen = [(rank < count) & (x >= 0) for rank, count, x in zip(ranks, (heads, units[heads]), values, strict=True)]
    return Gates(*(jnp.asarray(x, jnp.float32).reshape(gate.shape) for x, gate in zip(chosen, gates, strict=True)))
