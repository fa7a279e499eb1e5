"""The table of encoder families: a row for each `model_type` of a `config.json`.

All families use BERT's layers. A row says how a family differs: names, defaults, positions, token types, and the
layers before the head.
"""

from collections import ChainMap

from tinybert_jax.models.families.albert import ALBERT
from tinybert_jax.models.families.bert import BERT
from tinybert_jax.models.families.distilbert import DISTILBERT
from tinybert_jax.models.families.electra import ELECTRA
from tinybert_jax.models.families.exported import DEBERTA, MODERNBERT
from tinybert_jax.models.families.family import Family
from tinybert_jax.models.families.mobilebert import MOBILEBERT
from tinybert_jax.models.families.mpnet import MPNET
from tinybert_jax.models.families.roberta import ROBERTA, XLM_ROBERTA

ROWS = (BERT, ALBERT, DISTILBERT, ROBERTA, XLM_ROBERTA, ELECTRA, MPNET, MOBILEBERT)
FAMILIES: dict[str, Family] = {row.model_type: row for row in ROWS}
# families of exported models, of which only `config.json` is read
EXPORTED: dict[str, Family] = {row.model_type: row for row in (MODERNBERT, DEBERTA)}

KNOWN = ChainMap(FAMILIES, EXPORTED)  # a ChainMap also has rows that are added later

__all__ = ["EXPORTED", "FAMILIES", "KNOWN", "Family"]
