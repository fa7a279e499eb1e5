"""Training on labels alone."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS, head_losses
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.objectives.objective import (
    Context,
    Metrics,
    Objective,
    mean_over_examples,
    no_targets,
    replace_student,
    whole_student,
)
from tinybert_jax.settings.objectives import Supervised
from tinybert_jax.settings.stages import Hyper


def supervised_objective(config: BertConfig, head: str = "sequence", compute: Compute = DEFAULT) -> Objective:
    """Cross-entropy against the labels, or squared error in regression. There is no teacher."""
    model, hard = HEADS[head].model(config, compute), head_losses(head, config).hard

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = apply_model(model, trainable, batch, key, score_layers=()).logits
        total = mean_over_examples(hard(logits, batch), batch)
        return total, {"loss": total}

    return Objective(
        no_targets,
        loss,
        whole_student,
        replace_student,
        reads_teacher=False,
        student_flops=lambda tokens: (1 + BACKWARD) * forward_flops(config, tokens),
    )


def build(settings: Supervised, context: Context) -> Objective:
    """The objective of a stage."""
    return supervised_objective(context.student, context.head, context.compute)
