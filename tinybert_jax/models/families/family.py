"""What one encoder family has of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

UNSHARED = {"num_hidden_groups": None, "embedding_size": None}  # `fixed`, where layers share nothing
LARGEST_POWER = 6
Path = tuple[str, ...]
Names = tuple[tuple[Path, Path], ...]  # beginnings of a tensor's path: ours, and that of Hugging Face


class Family(NamedTuple):
    """A row of the table of families.

    `names` are pairs of beginnings of tensor paths, ours and Hugging Face's; the first that matches counts. "*" stands
    for any name, the same on both sides. `head_names` are further pairs for models with one head, which come first.
    """

    model_type: str  # in config.json
    architecture: str  # what its classes in transformers begin with
    title: str  # in a model card
    prefix: str  # of the encoder's tensors in a model with a head
    names: Names
    head_names: Mapping[str, Names] = {}
    parts: tuple[str, ...] = ("embeddings", "encoder", "pooler")  # of the encoder, under Hugging Face's names
    config_names: Mapping[str, str] = {}  # our names of fields, and those in config.json, where they differ
    defaults: Mapping[str, Any] = {}  # of config.json, where they are not BERT's
    fixed: Mapping[str, Any] = UNSHARED  # fields that config.json does not have, and their values
    narrow_embeddings: bool = False  # embeddings have a width of their own, `embedding_size`
    shares_layers: bool = False  # layers share parameters in groups; their embeddings are always projected
    shared: str | None = None  # the `model_type` of the same layers, shared
    positions_after_padding: bool = False  # positions count real tokens and begin behind the row of padding
    position_buckets: int = 0  # of distances between tokens that have a bias of the scores; 0: scores have none
    has_pooler: bool = True  # also without a sequence classifier
    pooler_activation: str = "tanh"
    without_token_types: str | None = None  # the `model_type` of the same layers without token types
    dropout_before_pooler: bool = False  # the classifier drops out its input before the pooler, too
    lm_activation: str | None = None  # of the masked-LM head; None: the config's `hidden_act`
    word_rank: tuple[str, int] | None = None  # of a word table that is a product: config.json's name, and default
    low_rank_words: str | None = None  # the `model_type` of the same layers with a word table of low rank
    whole: str | None = None  # the `model_type` of the same layers with a word table of full rank
    required: Mapping[str, tuple[Any, Any]] = {}  # further names in config.json: the only value, and the default
    other_heads: tuple[str, ...] = ()  # rows of `HEADS` that its classes compute in another way
    fixed_eps: float | None = None  # of the LayerNorms behind embeddings and feed-forward network; None: the config's

    def to_ours(self, path: Path, head: str | None = None) -> Path:
        """Our path of a tensor, from Hugging Face's; of a model with that head."""
        return _renamed(path, [(hf, ours) for ours, hf in self._pairs(head)])

    def to_hf(self, path: Path, head: str | None = None) -> Path:
        """Hugging Face's path of a tensor, from ours; of a model with that head."""
        return _renamed(path, self._pairs(head))

    def table_scale(self, layer_norm_eps: float) -> float:
        """What tables that the LayerNorm of the embeddings reads are multiplied by in files: a power of two.

        A BERT's embeddings are so small (a variance of 0.002) that a `fixed_eps` of 1e-5 beside them changes the
        outputs. LayerNorm of c x with an eps of c^2 e is that of x with e, so larger tables make the eps small. More
        than 2^LARGEST_POWER is of no more use, and would slow the training of the tables in `transformers`.
        """
        if self.fixed_eps is None:
            return 1.0
        power = (math.log2(self.fixed_eps) - math.log2(layer_norm_eps)) / 2
        return float(2 ** round(max(-LARGEST_POWER, min(LARGEST_POWER, power))))

    def _pairs(self, head: str | None) -> Names:
        return (*self.head_names.get(head or "", ()), *self.names)


def _renamed(path: Path, pairs: Iterable[tuple[Path, Path]]) -> Path:
    """The path with its beginning replaced, by the first pair whose first beginning matches."""
    for before, after in pairs:
        if len(path) >= len(before) and all(name in ("*", part) for name, part in zip(before, path, strict=False)):
            kept = (part for name, part in zip(before, path, strict=False) if name == "*")
            return (*(next(kept) if name == "*" else name for name in after), *path[len(before) :])
    return path
