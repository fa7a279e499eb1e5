"""The sizes of students that have no parameters yet."""

from __future__ import annotations

import dataclasses
from typing import Any

from tinybert_jax.errors import InputError
from tinybert_jax.models.config import FULL_RANK, BertConfig
from tinybert_jax.models.families import FAMILIES
from tinybert_jax.settings.choices import STUDENTS, student_shape


def student_config(name: str, teacher: BertConfig, token_types: bool = True) -> BertConfig:
    """The config of a student preset or size. Vocabulary, labels and everything else are the teacher's.

    With `token_types` False, the student of a BERT is a DistilBERT. A student of another family stays in its family.

    The first two presets are the paper's TinyBERT4 and TinyBERT6 (arXiv 1909.10351, section 4.2); the 3-layer one is
    the small student of the quickstart. A preset has as many attention heads as the teacher if that number divides its
    width, else 12.

    A size is LAYERSxWIDTH, LAYERSxWIDTHxFEED_FORWARD or LAYERSxWIDTHxFEED_FORWARDxHEADS. By default, the feed-forward
    width has the teacher's proportion to the width. The default number of heads is the teacher's if it divides the
    width; else the smaller divisor of the width whose head width is nearest to the teacher's.

    Raises:
        InputError: the preset is unknown, the size has another form, or no number of heads divides its width.
    """
    shape = student_shape(name)
    if shape is None:
        raise InputError(f"unknown student preset {name!r}; known are {', '.join(STUDENTS)}; or give a size, as 6x384")
    width, heads = shape["hidden_size"], teacher.num_attention_heads
    if name in STUDENTS:
        shape["num_attention_heads"] = heads if width % heads == 0 else 12
    elif "num_attention_heads" not in shape:
        shape["num_attention_heads"] = _heads(name, width, teacher)
    shape.setdefault("intermediate_size", max(1, round(width * teacher.intermediate_size / teacher.hidden_size)))
    sizes: dict[str, Any] = dict(shape)
    if teacher.family.shares_layers:
        layers, groups = shape["num_hidden_layers"], teacher.num_hidden_groups
        sizes["num_hidden_groups"] = None if groups is None or layers % groups else groups
    if teacher.family.narrow_embeddings and teacher.embedding_width == teacher.hidden_size:
        sizes["embedding_size"] = None
    sizes["model_type"] = teacher.family.whole or teacher.model_type
    if not token_types and (model_type := FAMILIES[sizes["model_type"]].without_token_types) is not None:
        family = FAMILIES[model_type]
        dropout = family.defaults.get("classifier_dropout", teacher.classifier_dropout)
        sizes |= {"model_type": model_type, "classifier_dropout": dropout, **family.fixed}
    try:
        return dataclasses.replace(teacher, head_dim=None, ranks=FULL_RANK, weight_bits=None, embedding=None, **sizes)
    except InputError as error:
        raise InputError(f"student {name!r}: {error}") from None


def _heads(name: str, width: int, teacher: BertConfig) -> int:
    """The default number of attention heads of a student size."""
    heads = teacher.num_attention_heads
    if width % heads == 0:
        return heads
    divisors = [divisor for divisor in range(heads - 1, 1, -1) if width % divisor == 0]
    if not divisors:
        raise InputError(
            f"student size {name!r}: no number of attention heads from 2 to the teacher's {heads} divides the width"
            f" {width}: give another width, best a multiple of {heads}, or LAYERSxWIDTHxFEED_FORWARDxHEADS"
        )
    return min(divisors, key=lambda divisor: abs(width / divisor - teacher.attention_head_dim))  # in a tie, more heads
