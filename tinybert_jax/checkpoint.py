"""Orbax checkpoints of one stage: the newest and the best are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

METRIC = "selection"


def _ranked(metrics: dict[str, float]) -> float:
    value = metrics[METRIC]
    return -math.inf if math.isnan(value) else value  # NaN would rank first, and push out the best


class Checkpoints:
    """The checkpoints of one stage in `directory`; saves return when they are on disk."""

    def __init__(self, directory: Path) -> None:
        policy = AnyPreservationPolicy(
            [LatestN(n=2), BestN(get_metric_fn=_ranked, n=1, keep_checkpoints_without_metrics=False)]
        )
        # synchronous: the step donates the state's buffers, which an asynchronous save might still be reading
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, metric: float | None = None) -> None:
        """Save `state` as of `step`, with the evaluation's selection metric where there was one."""
        metrics = None if metric is None else {METRIC: metric}
        if not self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics):
            raise RuntimeError(f"step {step} was not saved; {self._manager.latest_step()} is the newest")

    def restore(self, like: Any) -> Any | None:
        """The newest state, with the shapes and shardings of `like`; None where nothing was saved."""
        step = self._manager.latest_step()
        if step is None:
            return None
        return self._manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))

    def close(self) -> None:
        self._manager.close()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
