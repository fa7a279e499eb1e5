"""DistilBERT (Sanh et al., arXiv 1910.01108).

It is a BERT without token types and without a pooler. Its sequence classifier has a dense layer with ReLU, where
BERT's reads the pooler.
"""

from tinybert_jax.models.families.family import UNSHARED, Family

_LAYER = ("encoder", "encoder", "layer", "*")
_HF_LAYER = ("distilbert", "transformer", "layer", "*")
_PREDICTIONS = ("cls", "predictions")
DISTILBERT = Family(
    "distilbert",
    "DistilBert",
    "A DistilBERT",
    prefix="distilbert",
    parts=("embeddings", "transformer"),
    names=(
        ((*_LAYER, "attention", "self", "query"), (*_HF_LAYER, "attention", "q_lin")),
        ((*_LAYER, "attention", "self", "key"), (*_HF_LAYER, "attention", "k_lin")),
        ((*_LAYER, "attention", "self", "value"), (*_HF_LAYER, "attention", "v_lin")),
        ((*_LAYER, "attention", "output", "dense"), (*_HF_LAYER, "attention", "out_lin")),
        ((*_LAYER, "attention", "output", "LayerNorm"), (*_HF_LAYER, "sa_layer_norm")),
        ((*_LAYER, "intermediate", "dense"), (*_HF_LAYER, "ffn", "lin1")),
        ((*_LAYER, "output", "dense"), (*_HF_LAYER, "ffn", "lin2")),
        ((*_LAYER, "output", "LayerNorm"), (*_HF_LAYER, "output_layer_norm")),
        (("encoder",), ("distilbert",)),
        ((*_PREDICTIONS, "transform", "dense"), ("vocab_transform",)),
        ((*_PREDICTIONS, "transform", "LayerNorm"), ("vocab_layer_norm",)),
        ((*_PREDICTIONS, "bias"), ("vocab_projector", "bias")),
        ((*_PREDICTIONS, "decoder"), ("vocab_projector",)),
    ),
    head_names={"sequence": ((("encoder", "pooler", "dense"), ("pre_classifier",)),)},
    config_names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    defaults={"num_hidden_layers": 6, "classifier_dropout": 0.2},
    fixed=UNSHARED | {"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    has_pooler=False,
    pooler_activation="relu",
)
