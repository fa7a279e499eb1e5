"""L0 regularisation with hard-concrete gates. A Lagrangian keeps the expected share of open gates at a target.

Sources: Louizos et al., arXiv 1712.01312 (the gates); Xia et al., arXiv 2204.00408 (CoFi: the Lagrangian, and the
final values of the gates).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from tinybert_jax.compression.gates import Cost, Gates, Rule, choose, share_of
from tinybert_jax.settings.compression import GradualPrune
from tinybert_jax.settings.stages import Hyper

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1  # a sigmoid is stretched to this range, then clipped to [0, 1]
AT_START, LIMIT = 2.5, 4.6  # initial value and largest absolute value of logits
SOFTNESS = 0.8  # factor on the logits in the final values of gates
ANNEALED = 0.5  # share of the steps in which the target falls
# Rates are for a whole stage, so that short and long stages have the same effect.
TRAVEL = 20.0  # the largest way of a logit
ASCENT = 1000.0  # the growth of a multiplier for a gap of 1
MULTIPLIERS = (0.0, 100.0)  # initial values; without the second one, the share oscillates around the target


def sample(logits: Array, key: PRNGKeyArray) -> Array:
    """Random gates in [0, 1]. A logit has a gradient if its gate is neither 0 nor 1."""
    noise = jax.random.logistic(key, logits.shape)
    return jnp.clip(jax.nn.sigmoid((noise + logits) / TEMPERATURE) * (HIGH - LOW) + LOW, 0.0, 1.0)


def chance(logits: Array) -> Array:
    """The probability that a gate is open, which is its expected L0 norm."""
    return jax.nn.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))


def fixed(logits: Array) -> Array:
    """The final value of an open gate."""
    return jax.nn.sigmoid(logits * SOFTNESS / TEMPERATURE)


def rule(settings: GradualPrune, cost: Cost) -> Rule:
    """The rule that trains the gates' probabilities to be open, by the loss and a Lagrangian with trained multipliers.

    At `until`, the gates with the largest probabilities are decided to be open, as many as the share allows.
    """

    def target(progress: Any) -> Any:
        return 1 - (1 - settings.macs) * jnp.minimum(progress / ANNEALED, 1.0)

    def init(gates: Gates) -> dict[str, Any]:
        zeros = jax.tree.map(jnp.zeros_like, gates)
        return {
            "logits": jax.tree.map(lambda gate: jnp.full_like(gate, AT_START), gates),
            "mean": zeros,
            "square": jax.tree.map(jnp.copy, zeros),
            "multipliers": jnp.array(MULTIPLIERS),
            "steps": jnp.zeros(()),
        }

    def act(state: Any, hyper: Hyper, key: PRNGKeyArray | None) -> tuple[Gates, Array, Array]:
        logits = state["logits"]
        gates = jax.tree.map(fixed, logits) if key is None else Gates(*map(sample, logits, jax.random.split(key)))
        gates, chances = (jax.tree.map(jnp.multiply, state["gates"], x) for x in (gates, jax.tree.map(chance, logits)))
        share = share_of(chances, cost)
        gap = share - target(hyper.progress)
        return gates, share, state["multipliers"][0] * gap + state["multipliers"][1] * jnp.square(gap)

    def learn(state: Any, gradients: Any, hyper: Hyper) -> Any:
        """Adam on the logits and gradient ascent on the multipliers; from `until` on, the decision."""
        steps, progress = state["steps"] + 1, hyper.progress
        of_step = progress / jnp.maximum(state["steps"], 1.0)  # one step's share of all steps; 0 in the first step
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["mean"], gradients["logits"])
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, state["square"], gradients["logits"])

        def moved(logit: Array, m: Array, v: Array) -> Array:
            direction = m / (1 - 0.9**steps) / (jnp.sqrt(v / (1 - 0.999**steps)) + 1e-12)
            return jnp.clip(logit - TRAVEL * of_step * direction, -LIMIT, LIMIT)

        logits = jax.tree.map(moved, state["logits"], mean, square)

        def decided() -> Gates:
            worth = jax.tree.map(lambda logit, one: one * chance(logit), logits, Gates(*cost))
            chosen = choose(worth, state["gates"], cost, settings.macs)
            return jax.tree.map(lambda gate, logit: gate * fixed(logit), chosen, logits)

        return {
            "gates": jax.lax.cond(progress >= settings.until, decided, lambda: state["gates"]),
            "logits": logits,
            "mean": mean,
            "square": square,
            "multipliers": state["multipliers"] + ASCENT * of_step * gradients["multipliers"],
            "steps": steps,
        }

    return Rule(init, act, learn)
