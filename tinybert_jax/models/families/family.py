"""What one encoder family has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Path = tuple[str, ...]
Names = tuple[tuple[Path, Path], ...]  # beginnings of a tensor's path: ours, and that of Hugging Face


class Family(NamedTuple):
    """A row of the table of families.

    `names` are pairs of beginnings of tensor paths, ours and Hugging Face's; the first that matches counts.
    `head_names` are further pairs for models with one head, which come first.
    """

    model_type: str  # in config.json
    architecture: str  # what its classes in transformers begin with
    title: str  # in a model card
    prefix: str  # of the encoder's tensors in a model with a head
    names: Names
    head_names: Mapping[str, Names] = {}
    defaults: Mapping[str, Any] = {}  # of config.json, where they are not BERT's
    positions_after_padding: bool = False  # positions count real tokens and begin behind the row of padding
    dropout_before_pooler: bool = False  # the classifier drops out its input before the pooler, too
    lm_activation: str | None = None  # of the masked-LM head; None: the config's `hidden_act`

    def to_ours(self, path: Path, head: str | None = None) -> Path:
        """Our path of a tensor, from Hugging Face's; of a model with that head."""
        for ours, hf in (*self.head_names.get(head or "", ()), *self.names):
            if path[: len(hf)] == hf:
                return ours + path[len(hf) :]
        return path

    def to_hf(self, path: Path, head: str | None = None) -> Path:
        """Hugging Face's path of a tensor, from ours; of a model with that head."""
        for ours, hf in (*self.head_names.get(head or "", ()), *self.names):
            if path[: len(ours)] == ours:
                return hf + path[len(ours) :]
        return path
