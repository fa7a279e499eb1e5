"""MobileBERT (Sun et al., arXiv 2004.02984) without its bottlenecks: a BERT whose word table has a low rank.

Only this form is supported. It has BERT's layers, and a dense layer behind a narrow word table.
"""

from tinybert_jax.models.families.family import Family

MOBILEBERT = Family(
    "mobilebert",
    "MobileBert",
    "A MobileBERT",
    prefix="mobilebert",
    names=(
        (
            ("encoder", "embeddings", "word_embeddings_projection"),
            ("mobilebert", "embeddings", "embedding_transformation"),
        ),
        (("encoder",), ("mobilebert",)),
    ),
    defaults={
        "hidden_size": 512,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
    },
    word_rank=("embedding_size", 128),
    # without bottlenecks, their sizes are not read
    required={
        "use_bottleneck": (False, True),
        "trigram_input": (False, True),
        "num_feedforward_networks": (1, 4),
        "normalization_type": ("layer_norm", "no_norm"),
        "classifier_activation": (True, True),
    },
    other_heads=("masked_lm",),
    fixed_eps=1e-5,
    whole="bert",
)
