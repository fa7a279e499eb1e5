"""Masked-LM training (Devlin et al., arXiv 1810.04805)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.masked_lm import logits_at
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.objectives.objective import Context, Metrics, Objective, no_targets
from tinybert_jax.objectives.projections import without_projections
from tinybert_jax.settings.objectives import MaskedLM
from tinybert_jax.settings.stages import Hyper

MASKED_SHARE = 4  # a quarter of a sequence's positions reach the masked-LM decoder


def masked_lm_objective(config: BertConfig, compute: Compute = DEFAULT) -> Objective:
    """Mean cross-entropy of a batch's masked tokens (Devlin et al., arXiv 1810.04805). There is no teacher.

    The decoder runs on a quarter of the positions, masked ones first. Further masked tokens are not counted.
    """
    model = BertModel(config, compute, add_pooler=False)

    def weight(batch: Batch) -> Float[Array, ""]:
        labels = jnp.asarray(batch.labels)
        return jnp.sum(jnp.minimum(jnp.sum(labels >= 0, axis=1), _decoded(labels)), dtype=jnp.float32)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        states = apply_model(model, trainable["encoder"], batch, key, score_layers=()).last_hidden_state
        positions, labels = masked_tokens(batch)
        logits = logits_at(config, trainable, states, positions, compute)
        # not a mean over sequences: a sequence without masked tokens would count as a loss of 0
        total = losses.token_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        return total, {"loss": total}

    def init(key: PRNGKeyArray, student_params: Params) -> Params:
        reached = {name: student_params["encoder"][name] for name in ("embeddings", "encoder")}
        return {"encoder": reached, "cls": {"predictions": student_params["cls"]["predictions"]}}

    def export(trainable: Params, student_params: Params) -> Params:
        heads = student_params["cls"] | trainable["cls"]
        return without_projections(student_params) | {
            "encoder": student_params["encoder"] | trainable["encoder"],
            "cls": heads,
        }

    return Objective(
        no_targets,
        loss,
        init,
        export,
        weight,
        reads_teacher=False,
        student_flops=lambda tokens: masked_lm_flops(config, tokens, backward=True),
    )


def masked_tokens(batch: Batch) -> tuple[Int[Array, "b p"], Int[Array, "b p"]]:
    """The positions on which the masked-LM decoder runs, masked ones first, and their labels, -1 if not masked."""
    labels = jnp.asarray(batch.labels)
    positions = jnp.argsort(labels < 0, axis=1, stable=True)[:, : _decoded(labels)]
    return positions, jnp.take_along_axis(labels, positions, axis=1)


def masked_lm_flops(config: BertConfig, tokens: int, backward: bool) -> float:
    """Floating-point operations of a masked LM on a sequence, with its decoder on a quarter of the positions."""
    decoder = config.hidden_size * (config.vocab_size + config.hidden_size)
    forward = forward_flops(config, tokens) + 2.0 * decoder * tokens / MASKED_SHARE
    return forward * (1 + BACKWARD if backward else 1)


def _decoded(labels: Int[Array, "b q"]) -> int:
    """The number of positions of a sequence on which the decoder runs."""
    return -(-labels.shape[1] // MASKED_SHARE)


def build(settings: MaskedLM, context: Context) -> Objective:
    """The objective of a stage."""
    return masked_lm_objective(context.student, context.compute)
