"""BERT (Devlin et al., arXiv 1810.04805). This package uses its names and defaults."""

from tinybert_jax.models.families.family import Family

BERT = Family(
    "bert",
    "Bert",
    "A BERT",
    prefix="bert",
    names=((("encoder",), ("bert",)),),
    without_token_types="distilbert",
    shared="albert",
    low_rank_words="mobilebert",
)
