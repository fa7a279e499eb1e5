"""The description of an encoder family: how it differs from BERT."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

UNSHARED = {"num_hidden_groups": None, "embedding_size": None}  # `fixed` of families without shared layers
LARGEST_POWER = 6
Path = tuple[str, ...]
Names = tuple[tuple[Path, Path], ...]  # pairs of beginnings of a tensor's path: ours and Hugging Face's


class Family(NamedTuple):
    """A row of the table of families.

    `names` are pairs of beginnings of tensor paths, ours and Hugging Face's. The first pair that matches is used. "*"
    stands for any name, the same on both sides. `head_names` are further pairs for models with a head, tried first.
    """

    model_type: str  # in config.json
    architecture: str  # the beginning of its class names in transformers
    title: str  # in a model card
    prefix: str  # of the names of the encoder's tensors in a model with a head
    names: Names
    head_names: Mapping[str, Names] = {}
    parts: tuple[str, ...] = ("embeddings", "encoder", "pooler")  # of the encoder, under Hugging Face's names
    config_names: Mapping[str, str] = {}  # our field name -> its name in config.json, where they differ
    defaults: Mapping[str, Any] = {}  # of config.json, where they are not BERT's
    fixed: Mapping[str, Any] = UNSHARED  # fields that its config.json does not have, and their values
    narrow_embeddings: bool = False  # embeddings have a separate width, `embedding_size`
    shares_layers: bool = False  # layers share parameters in groups, and embeddings are always projected
    shared: str | None = None  # the `model_type` of the same model with shared layers
    positions_after_padding: bool = False  # position ids count real tokens, from pad_token_id + 1
    position_buckets: int = 0  # number of buckets of the relative position bias; 0: no such bias
    has_pooler: bool = True  # also without a sequence classifier
    pooler_activation: str = "tanh"
    without_token_types: str | None = None  # the `model_type` of the same model without token types
    dropout_before_pooler: bool = False  # the sequence classifier has dropout before its pooler too
    lm_activation: str | None = None  # of the masked-LM head; None: the config's `hidden_act`
    word_rank: tuple[str, int] | None = None  # the rank of a factorised word table: name in config.json, and default
    low_rank_words: str | None = None  # the `model_type` of the same model with a word table of low rank
    whole: str | None = None  # the `model_type` of the same model with a word table of full rank
    required: Mapping[str, tuple[Any, Any]] = {}  # further names in config.json: the only supported value, the default
    other_heads: tuple[str, ...] = ()  # rows of `HEADS` that its classes compute in an unsupported way
    fixed_eps: float | None = None  # of the LayerNorms behind embeddings and feed-forward network; None: the config's

    def to_ours(self, path: Path, head: str | None = None) -> Path:
        """The path of a tensor here, from its path in Hugging Face's names, in a model with that head."""
        return _renamed(path, [(hf, ours) for ours, hf in self._pairs(head)])

    def to_hf(self, path: Path, head: str | None = None) -> Path:
        """The path of a tensor in Hugging Face's names, from its path here, in a model with that head."""
        return _renamed(path, self._pairs(head))

    def table_scale(self, layer_norm_eps: float) -> float:
        """The factor of the embedding tables in files, a power of two. It compensates for a `fixed_eps`.

        A BERT's embeddings are so small (a variance of 0.002) that a `fixed_eps` of 1e-5 changes the outputs.
        LayerNorm of c x with eps c^2 e equals LayerNorm of x with eps e, so larger tables make up for a larger eps. A
        factor above 2^LARGEST_POWER gains nothing, and would slow the training of the tables in `transformers`.
        """
        if self.fixed_eps is None:
            return 1.0
        power = (math.log2(self.fixed_eps) - math.log2(layer_norm_eps)) / 2
        return float(2 ** round(max(-LARGEST_POWER, min(LARGEST_POWER, power))))

    def _pairs(self, head: str | None) -> Names:
        return (*self.head_names.get(head or "", ()), *self.names)


def _renamed(path: Path, pairs: Iterable[tuple[Path, Path]]) -> Path:
    """The path with its beginning replaced by the first pair that matches."""
    for before, after in pairs:
        if len(path) >= len(before) and all(name in ("*", part) for name, part in zip(before, path, strict=False)):
            kept = (part for name, part in zip(before, path, strict=False) if name == "*")
            return (*(next(kept) if name == "*" else name for name in after), *path[len(before) :])
    return path
