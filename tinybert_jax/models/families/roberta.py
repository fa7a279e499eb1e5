"""RoBERTa (Liu et al., arXiv 1907.11692) and XLM-R (Conneau et al., arXiv 1911.02116).

They are BERTs with other names, often one token type, and position ids from pad_token_id + 1. The dense layer of their
sequence classifier is BERT's pooler. Their masked-LM head is BERT's, but always with GELU.
"""

from tinybert_jax.models.families.family import Family

_PREDICTIONS = ("cls", "predictions")
ROBERTA = Family(
    "roberta",
    "Roberta",
    "A RoBERTa",
    prefix="roberta",
    names=(
        (("encoder",), ("roberta",)),
        ((*_PREDICTIONS, "transform", "dense"), ("lm_head", "dense")),
        ((*_PREDICTIONS, "transform", "LayerNorm"), ("lm_head", "layer_norm")),
        ((*_PREDICTIONS, "decoder"), ("lm_head", "decoder")),
        ((*_PREDICTIONS, "bias"), ("lm_head", "bias")),
    ),
    head_names={
        "sequence": (
            (("encoder", "pooler", "dense"), ("classifier", "dense")),
            (("classifier",), ("classifier", "out_proj")),
        )
    },
    defaults={"vocab_size": 50265, "type_vocab_size": 2, "pad_token_id": 1},
    positions_after_padding=True,
    dropout_before_pooler=True,
    lm_activation="gelu",
)
XLM_ROBERTA = ROBERTA._replace(
    model_type="xlm-roberta",
    architecture="XLMRoberta",
    title="An XLM-R",
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
)
