"""ALBERT (Lan et al., arXiv 1909.11942).

Its layers share parameters in groups. Its embeddings have a separate width, and are projected to the width of the
layers.
"""

from tinybert_jax.models.families.family import Family

_LAYER = ("encoder", "encoder", "layer", "*")
_HF_LAYER = ("albert", "encoder", "albert_layer_groups", "*", "albert_layers", "0")
_PREDICTIONS = ("cls", "predictions")
ALBERT = Family(
    "albert",
    "Albert",
    "An ALBERT",
    prefix="albert",
    names=(
        ((*_LAYER, "attention", "output", "dense"), (*_HF_LAYER, "attention", "dense")),
        ((*_LAYER, "attention", "output", "LayerNorm"), (*_HF_LAYER, "attention", "LayerNorm")),
        ((*_LAYER, "attention", "self"), (*_HF_LAYER, "attention")),
        ((*_LAYER, "intermediate", "dense"), (*_HF_LAYER, "ffn")),
        ((*_LAYER, "output", "dense"), (*_HF_LAYER, "ffn_output")),
        ((*_LAYER, "output", "LayerNorm"), (*_HF_LAYER, "full_layer_layer_norm")),
        (
            ("encoder", "embeddings", "embedding_hidden_mapping_in"),
            ("albert", "encoder", "embedding_hidden_mapping_in"),
        ),
        (("encoder", "pooler", "dense"), ("albert", "pooler")),
        (("encoder",), ("albert",)),
        ((*_PREDICTIONS, "transform", "dense"), ("predictions", "dense")),
        ((*_PREDICTIONS, "transform", "LayerNorm"), ("predictions", "LayerNorm")),
        (_PREDICTIONS, ("predictions",)),
        (("cls", "seq_relationship"), ("sop_classifier", "classifier")),
    ),
    config_names={"classifier_dropout": "classifier_dropout_prob"},
    defaults={
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_hidden_groups": 1,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.1,
    },
    fixed={},
    narrow_embeddings=True,
    shares_layers=True,
)
