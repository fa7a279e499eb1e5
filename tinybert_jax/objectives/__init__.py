"""What each stage minimises: an objective is a set of pure functions."""

from tinybert_jax.objectives.distilbert import distilbert_objective
from tinybert_jax.objectives.embedding import embedding_objective
from tinybert_jax.objectives.masked_lm import masked_lm_objective
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.patient import patient_objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.ranking import ranking_labels_objective, ranking_objective
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.objectives.transformer import relation_split, transformer_objective
from tinybert_jax.settings.objectives import teacher_layers

__all__ = [
    "Objective",
    "distilbert_objective",
    "embedding_objective",
    "masked_lm_objective",
    "patient_objective",
    "prediction_objective",
    "ranking_labels_objective",
    "ranking_objective",
    "relation_split",
    "supervised_objective",
    "teacher_layers",
    "transformer_objective",
]
