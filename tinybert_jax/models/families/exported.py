"""Families that are not implemented here: ModernBERT (arXiv 2412.13663), DeBERTa-v2 and v3 (arXiv 2111.09543).

They can be teachers of predictions as ONNX files. Only their `config.json`, beside the ONNX file, is read.
"""

from tinybert_jax.models.families.family import UNSHARED, Family

_FIXED = UNSHARED | {"type_vocab_size": 0}
MODERNBERT = Family(
    "modernbert",
    "ModernBert",
    "A ModernBERT",
    prefix="model",
    names=(),
    defaults={"vocab_size": 50368, "max_position_embeddings": 8192, "pad_token_id": 50283},
    fixed=_FIXED,
)
DEBERTA = Family(
    "deberta-v2", "DebertaV2", "A DeBERTa", prefix="deberta", names=(), defaults={"vocab_size": 128100}, fixed=_FIXED
)
