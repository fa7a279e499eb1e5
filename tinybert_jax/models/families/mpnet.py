"""MPNet (Song et al., arXiv 2004.09297).

It is a RoBERTa without token types, which adds a relative position bias to the attention scores of all layers.
"""

from tinybert_jax.models.families.family import UNSHARED
from tinybert_jax.models.families.roberta import ROBERTA

_LAYER = ("encoder", "encoder", "layer", "*")
_HF_LAYER = ("mpnet", "encoder", "layer", "*")
MPNET = ROBERTA._replace(
    model_type="mpnet",
    architecture="MPNet",
    title="An MPNet",
    prefix="mpnet",
    names=(
        ((*_LAYER, "attention", "self", "query"), (*_HF_LAYER, "attention", "attn", "q")),
        ((*_LAYER, "attention", "self", "key"), (*_HF_LAYER, "attention", "attn", "k")),
        ((*_LAYER, "attention", "self", "value"), (*_HF_LAYER, "attention", "attn", "v")),
        ((*_LAYER, "attention", "output", "dense"), (*_HF_LAYER, "attention", "attn", "o")),
        ((*_LAYER, "attention", "output", "LayerNorm"), (*_HF_LAYER, "attention", "LayerNorm")),
        (("encoder",), ("mpnet",)),
        *ROBERTA.names[1:],
    ),
    defaults={"vocab_size": 30527},
    # in `transformers`, the padding id is fixed, and dropout before the classifier is `hidden_dropout_prob`
    fixed=UNSHARED | {"type_vocab_size": 0, "pad_token_id": 1, "classifier_dropout": None},
    required={"pad_token_id": (1, 1), "relative_attention_num_buckets": (32, 32)},
    position_buckets=32,
)
