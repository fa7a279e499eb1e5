"""Objectives of rerankers: the scores of a query's passages are compared, and learnt from a teacher or from labels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax import losses
from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import DEFAULT, BertConfig, Compute
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import BACKWARD, apply_model, forward_flops
from tinybert_jax.objectives.objective import (
    Context,
    Metrics,
    Objective,
    mean_over_examples,
    no_flops,
    no_targets,
    replace_student,
    whole_student,
)
from tinybert_jax.settings.objectives import Ranking, RankingLabels
from tinybert_jax.settings.stages import Hyper

DEFAULTS = Ranking()
LABEL_DEFAULTS = RankingLabels()
MODEL = HEADS["sequence"].model
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def ranking_objective(
    student: BertConfig, teacher: BertConfig | None, settings: Ranking = DEFAULTS, compute: Compute = DEFAULT
) -> Objective:
    """The error of a query's scores against the teacher's, averaged over queries.

    "margin_mse" is the mean squared error of the margins of the first passage over each other one (Hofstätter et al.,
    arXiv 2010.02666). "listwise" is `temperature**2` times the soft cross-entropy over all passages. Batches come from
    `data.queries.Queries`; `targets` also takes batches of single rows.

    Args:
        student: has one output.
        teacher: has one output; any size; any vocabulary, if batches bring `teacher_inputs`. None: all batches bring
            their `targets`.
        settings: which error, and its temperature, used unless `hyper` has it.
        compute: how both models are computed.
    """

    def targets(teacher_params: Params, batch: Batch) -> Any:
        if teacher is None:
            raise ValueError("without a teacher that runs, every batch must bring its targets")
        return _scores(teacher, compute, teacher_params, batch.for_teacher(), None)

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        scores, mask = _scores(student, compute, trainable, batch, key), jnp.asarray(batch.example_mask)
        if settings.ranking_loss == "margin_mse":
            per_query = jax.vmap(losses.margin_mse)(scores, targets, mask)
        else:
            temperature = hyper.number("temperature", settings)
            per_query = jax.vmap(losses.listwise_cross_entropy, (0, 0, 0, None))(scores, targets, mask, temperature)
            per_query = per_query * jnp.square(temperature)
        total = _mean_over_queries(per_query, batch)
        return total, {"loss": total}

    return Objective(
        targets,
        loss,
        whole_student,
        replace_student,
        weight=_count_queries,
        reads_teacher=teacher is not None,
        student_flops=lambda tokens: (1 + BACKWARD) * forward_flops(student, tokens),
        teacher_flops=no_flops if teacher is None else lambda tokens: forward_flops(teacher, tokens),
    )


def ranking_labels_objective(
    config: BertConfig, settings: RankingLabels = LABEL_DEFAULTS, compute: Compute = DEFAULT
) -> Objective:
    """Cross-entropy of a query's scores against the relevance of its passages, averaged over queries. No teacher."""

    def loss(
        trainable: Params, targets: Any, batch: Batch, hyper: Hyper, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        scores = _scores(config, compute, trainable, batch, key)
        relevance, mask = jnp.asarray(batch.labels), jnp.asarray(batch.example_mask)
        total = _mean_over_queries(jax.vmap(losses.relevance_cross_entropy)(scores, relevance, mask), batch)
        return total, {"loss": total}

    return Objective(
        no_targets,
        loss,
        whole_student,
        replace_student,
        weight=_count_queries,
        reads_teacher=False,
        student_flops=lambda tokens: (1 + BACKWARD) * forward_flops(config, tokens),
    )


def _scores(config: BertConfig, compute: Compute, params: Params, batch: Batch, key: PRNGKeyArray | None) -> Array:
    """A model's score for each passage: [b, c] for a batch of queries, [b] for a batch of single rows."""
    inputs: dict[str, Any] = {name: jnp.asarray(getattr(batch, name)) for name in INPUTS}
    shape = inputs["input_ids"].shape
    flat = batch._replace(**{name: x.reshape(-1, shape[-1]) for name, x in inputs.items()})
    return apply_model(MODEL(config, compute), params, flat, key, score_layers=()).logits.reshape(shape[:-1])


def _count_queries(batch: Batch) -> Float[Array, ""]:
    """The number of groups that are not filler."""
    return jnp.sum(jnp.asarray(batch.example_mask, jnp.float32)[:, 0])


def _mean_over_queries(per_query: Float[Array, "b"], batch: Batch) -> Float[Array, ""]:
    """The mean over the groups that are not filler."""
    return mean_over_examples(per_query, batch._replace(example_mask=jnp.asarray(batch.example_mask)[:, 0]))


def build(settings: Ranking, context: Context) -> Objective:
    """The objective of a stage.

    Raises:
        InputError: the preset is `official`; the authors' code has no ranking.
    """
    if context.arithmetic.regression_from_labels:
        raise InputError("the authors' code knows no queries and passages; use --preset default or paper")
    return ranking_objective(context.student, context.teacher, settings, context.compute)


def build_labels(settings: RankingLabels, context: Context) -> Objective:
    """The objective of a stage."""
    return ranking_labels_objective(context.student, settings, context.compute)
