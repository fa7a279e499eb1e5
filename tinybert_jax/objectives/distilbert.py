"""The distillation of DistilBERT (Sanh et al., arXiv 1910.01108): masked-LM training with a masked-LM teacher."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.masked_lm import logits_at
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.objectives.masked_lm import masked_lm_flops, masked_lm_objective, masked_tokens
from tinybert_jax.objectives.objective import Context, Metrics, Objective
from tinybert_jax.settings.objectives import DistilBert
from tinybert_jax.settings.stages import Hyper

DEFAULTS = DistilBert()


def distilbert_objective(
    student: BertConfig, teacher: BertConfig, settings: DistilBert = DEFAULTS, compute: Compute = DEFAULT
) -> Objective:
    """The weighted sum of soft cross-entropy, hard cross-entropy, and cosine distance of hidden states.

    The soft term is the cross-entropy against the teacher's distribution at a temperature, times temperature**2. It is
    averaged over masked tokens alone, as with `--restrict_ce_to_mask` in the authors' code. So is the hard term, the
    cross-entropy against the masked tokens. The cosine distance is that of the last hidden states, averaged over real
    tokens.

    Both models read the masked text. The decoder runs on a quarter of the positions, as in `masked_lm_objective`.

    Args:
        student: any depth and family, with the teacher's width and vocabulary.
        teacher: its parameters hold a masked-LM head.
        settings: temperature and weights, used unless `hyper` has them.
        compute: how both models are computed.

    Raises:
        InputError: width or vocabulary differ.
    """
    for name in ("hidden_size", "vocab_size"):
        if getattr(student, name) != getattr(teacher, name):
            raise InputError(
                f"recipe 'distilbert' compares states and words of models of equal {name}: the student has"
                f" {getattr(student, name)}, the teacher {getattr(teacher, name)}; the recipe 'transformer' allows"
                " another width"
            )
    plain = masked_lm_objective(student, compute)
    student_model, teacher_model = (BertModel(config, compute, add_pooler=False) for config in (student, teacher))

    def states_and_logits(
        model: BertModel, params: Params, batch: Batch, positions: Int[Array, "b p"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b p v"]]:
        states = apply_model(model, params["encoder"], batch, key, score_layers=()).last_hidden_state
        return states, logits_at(model.config, params, states, positions, compute)

    def targets(teacher_params: Params, batch: Batch) -> Any:
        states, logits = states_and_logits(teacher_model, teacher_params, batch, masked_tokens(batch)[0], None)
        return {"states": states, "logits": logits}

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        positions, labels = masked_tokens(batch)
        states, logits = states_and_logits(student_model, trainable, batch, positions, key)
        labels = labels.reshape(-1)
        logits, teacher_logits = (x.reshape(-1, x.shape[-1]) for x in (logits, targets["logits"]))
        temperature = hyper.number("temperature", settings)
        soft = losses.soft_token_cross_entropy(logits, teacher_logits, labels >= 0, temperature)
        soft = soft * jnp.square(temperature)
        hard = losses.token_cross_entropy(logits, labels)
        mask = jnp.asarray(batch.attention_mask).reshape(-1)
        states, teacher_states = (x.reshape(-1, x.shape[-1]) for x in (states, targets["states"]))
        cosine = losses.cosine_distance(states, teacher_states, mask)
        total = (
            hyper.number("soft_weight", settings) * soft
            + hyper.number("hard_weight", settings) * hard
            + hyper.number("cosine_weight", settings) * cosine
        )
        return total, {"loss": total, "soft": soft, "hard": hard, "cosine": cosine}

    # As in masked-LM training, a batch weighs as many as its masked tokens, and targets are not cached, because every
    # epoch masks other tokens.
    return plain._replace(
        targets=targets,
        loss=loss,
        teacher_flops=lambda tokens: masked_lm_flops(teacher, tokens, backward=False),
    )


def build(settings: DistilBert, context: Context) -> Objective:
    """The objective of a stage."""
    assert context.teacher is not None, "a corpus is taught by a model"
    return distilbert_objective(context.student, context.teacher, settings, context.compute)
