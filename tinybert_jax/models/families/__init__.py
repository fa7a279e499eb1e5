"""The table of encoder families: a row for each `model_type` of a `config.json`.

BERT's layers serve every family here. A row says what differs: names, defaults, positions, and the head's dropout.
"""

from tinybert_jax.models.families.bert import BERT
from tinybert_jax.models.families.family import Family
from tinybert_jax.models.families.roberta import ROBERTA, XLM_ROBERTA

FAMILIES: dict[str, Family] = {row.model_type: row for row in (BERT, ROBERTA, XLM_ROBERTA)}

__all__ = ["FAMILIES", "Family"]
