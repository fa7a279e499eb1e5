"""Structured pruning during training: attention heads and feed-forward units are removed while a model learns.

A rule closes gates in the first stage, until the share of multiply-adds is left. Closed heads and units are zeros from
then on, and are cut out of the model before it is saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.compression import hard_concrete, prune
from tinybert_jax.compression.calibration import check_dense, check_heads
from tinybert_jax.compression.gates import Cost, Gates, Rule, are_open, choose, gated, read_by_outputs, share_of
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.schedule import cubic_fall
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import heads_and_units_read
from tinybert_jax.objectives.objective import CARRIED, Metrics, Objective, join_carried, split_carried, take_carried
from tinybert_jax.settings.compression import GradualPrune
from tinybert_jax.settings.stages import Hyper

EVERY = 20  # steps between changes of the gates
DECAY = 0.9  # of the running mean of squared gradients
TOLERANCE = 1e-5  # for the share, because sums are in float32


def build(settings: GradualPrune) -> Method:
    """The method with these settings."""
    sizes = functools.partial(check_sizes, settings.name)
    return Method(check=sizes, apply=check, wrap=functools.partial(wrap, settings), finish=finish)


def check_sizes(method: str, config: BertConfig) -> None:
    """Refuse a model whose dense layers are factorised, or whose heads cannot be removed.

    Raises:
        InputError: as `check_dense` and `check_heads`.
    """
    check_dense(method, config)
    check_heads(method, config)


def check(config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    """Refuse a model that is pruned already. Returns the model unchanged.

    Raises:
        InputError: it has layers of different sizes, padded with zeros.
    """
    if not all(read.all() for read in heads_and_units_read(config, params)):
        raise InputError("pruning in training needs a whole model, and this one is pruned already: use --prune alone")
    return config, params


def wrap(settings: GradualPrune, objective: Objective, config: BertConfig, examples: Examples) -> Objective:
    """The objective with gates, which close until the share of multiply-adds is left.

    If a stage begins with a model that has reached the share, gates do not change. So the first stage prunes, and
    later stages train the rest.
    """
    cost, name = Cost(*prune.costs(config, float(np.mean(examples.lengths)))), settings.name
    rule = RULES[settings.by](settings, cost)

    def kept(gates: Gates) -> Array:
        return share_of(are_open(gates), cost)

    def settled(carried: Any) -> Array:
        return kept(carried[name]["gates"]) <= settings.macs + TOLERANCE

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        params, carried = split_carried(objective.init(key, student_params))
        gates = read_by_outputs(config, params)
        return join_carried(params, carried | {name: {"gates": gates} | rule.init(gates)})

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        known, state = take_carried(trainable, name)
        key, rule_key = (None, None) if key is None else jax.random.split(key)
        done, acting = settled(trainable[CARRIED]), rule.act(state, hyper, rule_key)
        decided = state["gates"], kept(state["gates"]), jnp.zeros(())
        gates, share, penalty = jax.tree.map(lambda *pair: jnp.where(done, *pair), decided, acting)
        total, metrics = objective.loss(gated(known, gates), targets, batch, hyper, key)
        return total + penalty, metrics | {"loss": total + penalty, "kept": share}

    def export(trainable: Params, student_params: Params) -> Params:
        known, state = take_carried(trainable, name)
        return objective.export(gated(known, state["gates"]), student_params)

    def learn(carried: Any, gradients: Any, hyper: Hyper) -> Any:
        if objective.learn is not None:
            carried = objective.learn(carried, gradients, hyper)
        done, state = settled(carried), carried[name]
        learnt = rule.learn(state, gradients[name], hyper)
        return carried | {name: jax.tree.map(lambda *pair: jnp.where(done, *pair), state, learnt)}

    return objective._replace(init=init, loss=loss, export=export, learn=learn, settled=settled)


def finish(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The model without heads and units that are zeros, except those that pad layers to the largest one."""
    params = jax.tree.map(np.asarray, params)
    return prune.removed(config, params, prune.Kept(*heads_and_units_read(config, params)))


def allowed_share(settings: GradualPrune, progress: Any) -> Any:
    """The share of multiply-adds that the cubic schedule leaves when the share `progress` of the steps is done.

    >>> settings = GradualPrune(macs=0.2, until=0.5)
    >>> [round(float(allowed_share(settings, progress)), 6) for progress in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.3, 0.2, 0.2]
    """
    return settings.macs + (1 - settings.macs) * cubic_fall(progress, settings.until)


def fisher(settings: GradualPrune, cost: Cost) -> Rule:
    """The rule that closes the least important gates on a schedule. Closed gates stay closed.

    Importance is the running mean of the squared gradient of the stage's loss on a batch with respect to a gate.
    """

    def init(gates: Gates) -> dict[str, Any]:
        return {"importance": jax.tree.map(jnp.zeros_like, gates), "steps": jnp.zeros(())}

    def act(state: Any, hyper: Hyper, key: PRNGKeyArray | None) -> tuple[Gates, Array, Array]:
        return state["gates"], share_of(state["gates"], cost), jnp.zeros(())

    def learn(state: Any, gradients: Any, hyper: Hyper) -> Any:
        def mean(before: Array, gradient: Array) -> Array:
            return DECAY * before + (1 - DECAY) * jnp.square(gradient)

        importance = jax.tree.map(mean, state["importance"], gradients["gates"])
        steps, progress = state["steps"] + 1, hyper.progress
        gates = jax.lax.cond(
            (steps % EVERY == 0) | (progress >= settings.until),
            lambda: choose(importance, state["gates"], cost, allowed_share(settings, progress)),
            lambda: state["gates"],
        )
        return {"gates": gates, "importance": importance, "steps": steps}

    return Rule(init, act, learn)


RULES: dict[str, Callable[[GradualPrune, Cost], Rule]] = {"fisher": fisher, "l0": hard_concrete.rule}
