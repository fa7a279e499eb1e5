"""The sizes of preset students."""

from __future__ import annotations

import dataclasses

from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.settings.choices import STUDENTS


def student_config(name: str, teacher: BertConfig) -> BertConfig:
    """The config of a preset student; vocabulary, labels and all else are the teacher's.

    The first two are the paper's TinyBERT4 and TinyBERT6 (arXiv 1909.10351, section 4.2); the 3-layer one is the
    small student of the quickstart. The attention heads are as many as the teacher's where those divide the preset's
    width, else 12.

    Raises:
        InputError: the preset is unknown.
    """
    if name not in STUDENTS:
        raise InputError(f"unknown student preset {name!r}; known are {', '.join(STUDENTS)}")
    shape = STUDENTS[name]
    heads = teacher.num_attention_heads if shape["hidden_size"] % teacher.num_attention_heads == 0 else 12
    return dataclasses.replace(teacher, head_dim=None, num_attention_heads=heads, **shape)
