"""Gates on attention heads and feed-forward units: their effect on parameters, their cost, and the choice among them.

A gate is a number in [0, 1] that multiplies the output of a head or a unit. If it is 0 (closed), the weights that
compute this output are set to zero too, so that they get no gradient.
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
    """Multiply-adds of one head and of one unit."""

    heads: float
    units: float


class Rule(NamedTuple):
    """A rule that closes gates in training. Its state is a dict of float arrays; "gates" are the decided gates.

    init(gates) -> state: the entries beside "gates".
    act(state, hyper, key) -> gates, share, penalty: the gates of a step, the (expected) share of multiply-adds that
    they leave, and a term that is added to the loss. Without a key, nothing is random.
    learn(state, gradients, hyper) -> state: updates the state, from the gradients of the loss.
    """

    init: Callable[[Gates], dict[str, Any]]
    act: Callable[[Any, Hyper, PRNGKeyArray | None], tuple[Gates, Array, Array]]
    learn: Callable[[Any, Any, Hyper], Any]


def read_by_outputs(config: BertConfig, params: Params) -> Gates:
    """1 for heads and units that an output projection reads, 0 for those whose rows are zeros."""
    return Gates(*(jnp.asarray(read, jnp.float32) for read in heads_and_units_read(config, params)))


def are_open(gates: Gates) -> Gates:
    """1 for gates above 0, else 0, without gradient."""
    return jax.tree.map(lambda gate: jax.lax.stop_gradient(jnp.asarray(gate > 0, jnp.float32)), gates)


def gated(params: Params, gates: Gates) -> Params:
    """The parameters with gates on the rows of the output projections, and with zero inputs to closed gates."""
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
    """The share of the multiply-adds of all heads and units that gates leave. A gate counts by its value.

    >>> float(share_of(Gates(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])), Cost(3.0, 1.0)))
    0.5
    """
    whole = sum(one * gate.size for one, gate in zip(cost, gates, strict=True))
    return sum((one / whole) * jnp.sum(gate) for one, gate in zip(cost, gates, strict=True))


def choose(importance: Gates, gates: Gates, cost: Cost, share: Any) -> Gates:
    """The gates with the largest total importance within a share of the multiply-adds: 1 for them, 0 for the others.

    The result is that of `prune.select`, except for rounding to multiples of units, and it can be compiled. Closed
    gates stay closed.
    """
    values = [jnp.where(gate > 0, x, -1.0).ravel() for gate, x in zip(gates, importance, strict=True)]
    ranks, totals = [], []
    for x in values:
        order = jnp.argsort(-x, stable=True)
        ranks.append(jnp.argsort(order, stable=True))
        totals.append(jnp.append(0.0, jnp.cumsum(jnp.maximum(x[order], 0.0))))
    budget = share * sum(one * x.size for one, x in zip(cost, values, strict=True))
    left = budget - cost.heads * jnp.arange(len(totals[0]))  # for units, by the number of heads
    units = jnp.clip(jnp.floor(left / cost.units), 0, values[1].size).astype(jnp.int32)
    heads = jnp.argmax(jnp.where(left >= 0, totals[0] + totals[1][units], -1.0))
    chosen = [(rank < count) & (x >= 0) for rank, count, x in zip(ranks, (heads, units[heads]), values, strict=True)]
    return Gates(*(jnp.asarray(x, jnp.float32).reshape(gate.shape) for x, gate in zip(chosen, gates, strict=True)))
