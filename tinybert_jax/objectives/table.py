"""The table of objectives: from the settings of a stage to its functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinybert_jax.errors import InputError
from tinybert_jax.models.heads import HEADS
from tinybert_jax.objectives import (
    distilbert,
    embedding,
    masked_lm,
    patient,
    prediction,
    ranking,
    supervised,
    transformer,
)
from tinybert_jax.objectives.objective import Context, Objective
from tinybert_jax.settings.objectives import (
    DistilBert,
    Embedding,
    MaskedLM,
    ObjectiveSettings,
    Patient,
    Prediction,
    Ranking,
    RankingLabels,
    Supervised,
    Transformer,
)

OBJECTIVES: dict[type[ObjectiveSettings], Callable[[Any, Context], Objective]] = {
    Transformer: transformer.build,
    Prediction: prediction.build,
    Patient: patient.build,
    Embedding: embedding.build,
    Ranking: ranking.build,
    RankingLabels: ranking.build_labels,
    Supervised: supervised.build,
    MaskedLM: masked_lm.build,
    DistilBert: distilbert.build,
}


def build_objective(settings: ObjectiveSettings, context: Context) -> Objective:
    """The objective that a stage's settings describe.

    Raises:
        InputError: the settings have no row in `OBJECTIVES`, or do not fit the models.
    """
    if type(settings) not in OBJECTIVES:
        known = ", ".join(row.__name__ for row in OBJECTIVES)
        raise InputError(f"objective {settings.name!r} has no row in the table of objectives; known are {known}")
    if settings.trains_head and settings.learns_vectors != HEADS[context.head].gives_vectors:
        learns = "vectors of texts" if settings.learns_vectors else "labels, or outputs like them"
        task = "does not give" if settings.learns_vectors else "has not"
        raise InputError(f"stage {settings.name!r} learns {learns}, which the task {task}: take another --stage")
    by_query = settings.group_size is not None
    if settings.trains_head and by_query != context.by_query:
        learns, has = ("queries", "single rows") if by_query else ("single rows", "queries with their passages")
        raise InputError(f"stage {settings.name!r} learns {learns}, and the task has {has}: take another --stage")
    return OBJECTIVES[type(settings)](settings, context)
