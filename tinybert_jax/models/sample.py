"""A sample of text: arrays per batch, and arrays with one row per real token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch

SAMPLE_TOKENS = 16_384  # size of a sample: ten times the rows that the largest fit needs


@dataclass(frozen=True, eq=False)
class Sample:
    """Batches of text. It converts between arrays per batch and arrays with one row per real token."""

    batches: list[Batch]
    masks: list[np.ndarray]  # bool [b, q]

    @classmethod
    def take(cls, batches: Iterable[Batch]) -> Sample:
        """The first batches, until they have SAMPLE_TOKENS tokens."""
        taken: list[Batch] = []
        masks: list[np.ndarray] = []
        for batch in batches:
            taken.append(batch)
            masks.append(np.asarray(batch.attention_mask) > 0)
            if sum(mask.sum() for mask in masks) >= SAMPLE_TOKENS:
                break
        return cls(taken, masks)

    def tokens(self, arrays: Iterable[Any], dtype: Any = np.float64) -> np.ndarray:
        """Arrays per batch [b, q, ...] -> [n, ...]."""
        pairs = zip(arrays, self.masks, strict=True)
        return np.concatenate([np.asarray(array)[mask] for array, mask in pairs]).astype(dtype, copy=False)

    def batched(self, tokens: np.ndarray) -> list[np.ndarray]:
        """An array [n, d] -> float32 arrays per batch [b, q, d], 0 on padding."""
        parts = np.split(tokens, np.cumsum([mask.sum() for mask in self.masks])[:-1])
        arrays = [np.zeros((*mask.shape, tokens.shape[1]), np.float32) for mask in self.masks]
        for array, mask, part in zip(arrays, self.masks, parts, strict=True):
            array[mask] = part
        return arrays
