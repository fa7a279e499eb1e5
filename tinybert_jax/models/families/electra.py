"""ELECTRA (Clark et al., arXiv 2003.10555): its discriminators and generators.

It is a BERT without a pooler, whose embeddings may have a separate width. The dense layer of its sequence classifier
is BERT's pooler with GELU. Its masked-LM head is the generator's.
"""

from tinybert_jax.models.families.family import Family

_PREDICTIONS = ("cls", "predictions")
ELECTRA = Family(
    "electra",
    "Electra",
    "An ELECTRA",
    prefix="electra",
    names=(
        (("encoder", "embeddings", "embedding_hidden_mapping_in"), ("electra", "embeddings_project")),
        (("encoder",), ("electra",)),
        ((*_PREDICTIONS, "transform", "dense"), ("generator_predictions", "dense")),
        ((*_PREDICTIONS, "transform", "LayerNorm"), ("generator_predictions", "LayerNorm")),
        ((*_PREDICTIONS, "bias"), ("generator_lm_head", "bias")),
        ((*_PREDICTIONS, "decoder"), ("generator_lm_head",)),
    ),
    head_names={
        "sequence": (
            (("encoder", "pooler", "dense"), ("classifier", "dense")),
            (("classifier",), ("classifier", "out_proj")),
        )
    },
    defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    fixed={"num_hidden_groups": None},
    narrow_embeddings=True,
    has_pooler=False,
    pooler_activation="gelu",
    dropout_before_pooler=True,
    lm_activation="gelu",
)
