"""Training on labels alone."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.objectives.objective import (
    Metrics,
    Objective,
    mean_over_examples,
    no_targets,
    replace_student,
    whole_student,
)
from tinybert_jax.settings.choices import Head
from tinybert_jax.settings.stages import Hyper


def supervised_objective(config: BertConfig, head: Head = "sequence") -> Objective:
    """Cross-entropy against the labels; squared error where a sequence has one output. There is no teacher."""
    model = HEADS[head](config)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        logits = apply_model(model, trainable, batch, key, score_layers=()).logits
        if head == "sequence":
            per_example = losses.squared_error if config.num_labels == 1 else losses.cross_entropy
            total = mean_over_examples(jax.vmap(per_example)(logits, batch.labels), batch)
        elif head == "span":
            total = mean_over_examples(
                jax.vmap(losses.span_cross_entropy)(logits, batch.labels, batch.attention_mask), batch
            )
        else:
            total = mean_over_examples(jax.vmap(losses.token_cross_entropy)(logits, batch.labels), batch)
        return total, {"loss": total}

    return Objective(no_targets, loss, whole_student, replace_student)
