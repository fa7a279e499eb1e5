"""Rows -> token ids, computed once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch
from tinybert_jax.cache import cached_arrays
from tinybert_jax.data.batches import PROGRESS_FROM
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import note
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint

FORMAT_VERSION = 1  # of the cached tokens; increase it when the same rows would give other tokens
TOKENIZE_AT_ONCE = 1000  # rows
MANY_FULL = 0.05  # share of rows as long as they may be, from which a note says so


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of n rows, concatenated.

    Row i is `input_ids[offsets[i] : offsets[i + 1]]`. Its `token_type_ids` are 0 up to `pair_starts[i]` and then 1.
    `fingerprint` covers the rows, the tokenizer and the length, not the label names.
    """

    input_ids: np.ndarray  # int32 [sum of lengths]
    offsets: np.ndarray  # int64 [n + 1]
    pair_starts: np.ndarray  # int32 [n]
    labels: np.ndarray  # [n], zeros without labels; answers [n, 2]; or one per token, as `input_ids`
    fingerprint: str
    pad_token_id: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def has_pairs(self) -> bool:
        """Whether any row has tokens of the second type, because it is a pair of texts."""
        return bool((self.pair_starts < self.lengths).any())

    def __len__(self) -> int:
        return len(self.pair_starts)

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The batch of the given rows; the same in every epoch.

        Args:
            rows: row numbers [b]; -1 gives a filler row, whose masks are 0.
            length: tokens to pad to, q.
            epoch: not used.

        Returns:
            A `Batch` of numpy arrays [b, q] and [b]. `labels` are [b], [b, 2], or one per token [b, q], -1 on padding.
        """
        real = rows >= 0
        row = np.where(real, rows, 0)
        lengths = np.where(real, self.offsets[row + 1] - self.offsets[row], 0)
        if lengths.max(initial=0) > length:
            raise ValueError(f"a row of {lengths.max()} tokens does not fit into {length}")
        position = np.arange(length)
        mask = position < lengths[:, None]
        index = np.where(mask, self.offsets[row][:, None] + position, 0)
        if len(self.labels) == len(self):
            real_rows = real.reshape(-1, *[1] * (self.labels.ndim - 1))
            labels = np.where(real_rows, self.labels[row], 0)
        else:
            labels = np.where(mask, self.labels[index], -1)
        return Batch(
            input_ids=np.where(mask, self.input_ids[index], self.pad_token_id).astype(np.int32),
            attention_mask=mask.astype(np.int32),
            token_type_ids=(mask & (position >= self.pair_starts[row][:, None])).astype(np.int32),
            labels=labels.astype(self.labels.dtype),
            example_mask=real.astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class TwoVocabularies:
    """The same n rows in the student's vocabulary and in the teacher's, padded to a common length."""

    tokens: Tokens
    teacher: Tokens

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [n], in the vocabulary that needs more of them."""
        return np.maximum(self.tokens.lengths, self.teacher.lengths)

    @property
    def fingerprint(self) -> str:
        """sha256 of both fingerprints."""
        return hashlib.sha256((self.tokens.fingerprint + self.teacher.fingerprint).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The student's batch, with the teacher's inputs in `teacher_inputs`; see `Tokens.batch`."""
        teacher_batch = self.teacher.batch(rows, length, epoch)
        return self.tokens.batch(rows, length, epoch)._replace(teacher_inputs=tuple(teacher_batch[:3]))


def tokenize(rows: Rows, tokenizer: Any, max_length: int, cache_dir: Path | None = None) -> Tokens:
    """The token ids of rows, with special tokens, truncated to `max_length`. A pair's longer text is cut first.

    A note says how many rows have `max_length` tokens, if these are many.

    Args:
        rows: n rows of one or two texts.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per row, special tokens included.
        cache_dir: see `cache.cache_folder`.

    Raises:
        InputError: the cache cannot be written.
    """
    form = [FORMAT_VERSION, rows.fingerprint, tokenizer_fingerprint(tokenizer), max_length]
    fingerprint = hashlib.sha256(json.dumps(form).encode()).hexdigest()
    arrays = cached_arrays(cache_dir, "tokens", fingerprint, lambda: _token_arrays(rows.texts, tokenizer, max_length))
    tokens = Tokens(
        **arrays, labels=rows.labels_or_zeros, fingerprint=fingerprint, pad_token_id=tokenizer.pad_token_id
    )
    full = int((tokens.lengths == max_length).sum())
    if full >= max(1, MANY_FULL * len(tokens)):
        note(f"{full:,} of {len(tokens):,} rows have {max_length} tokens, where longer texts are cut (--max-length)")
    return tokens


def encode(texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> Tokens:
    """The token ids of texts, as in `tokenize`, but not cached, and with zeros as labels."""
    labels = np.zeros(len(texts), np.int32)
    arrays = _token_arrays(texts, tokenizer, max_length)
    return Tokens(**arrays, labels=labels, fingerprint="", pad_token_id=tokenizer.pad_token_id)


def _token_arrays(texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    """The fields of `Tokens` that the tokenizer computes."""
    from tqdm import tqdm

    n = len(texts)
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths: list[int] = []
    pair_starts: list[int] = []
    with tqdm(total=n, desc="tokenize", unit="row", disable=n < PROGRESS_FROM) as bar:
        for start in range(0, n, TOKENIZE_AT_ONCE):
            chunk = texts[start : start + TOKENIZE_AT_ONCE]
            encoded = tokenizer(
                *([row[i] for row in chunk] for i in range(len(chunk[0]))),
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=True,
            )
            ids += [np.array(row, np.int32) for row in encoded["input_ids"]]
            lengths += [len(row) for row in encoded["input_ids"]]
            pair_starts += [row.count(0) for row in encoded["token_type_ids"]]
            bar.update(len(chunk))
    return {
        "input_ids": np.concatenate(ids),
        "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        "pair_starts": np.array(pair_starts, np.int32),
    }
