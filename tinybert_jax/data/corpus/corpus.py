"""A corpus: shards of token sequences, built once, and batches that are read at random and masked on the way."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch
from tinybert_jax.cache import cache_folder
from tinybert_jax.data.corpus.sequences import Recipe, make_recipe
from tinybert_jax.data.corpus.shards import build_shards, key, read_manifest, shard_files
from tinybert_jax.data.corpus.text import survey
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource


@dataclass(frozen=True, eq=False)
class Corpus:
    """n sequences in shards, as `batch.Examples`. Rows are numbered through the shards in their order.

    With a `masking_probability`, batches are masked as in BERT's training, anew in every epoch, and labels are the ids
    to predict. Without one, all tokens are unchanged.

    Raises:
        InputError: there is a masking probability, but the tokenizer has no mask token.
    """

    records: Any  # an ArrayRecordDataSource
    lengths: np.ndarray  # uint16 [n], tokens, special tokens included
    fingerprint: str
    recipe: dict[str, Any]  # from the manifest: a `Recipe` without the tokenizer's JSON, and the dtype of records
    seed: int  # of the masking
    masking_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.masking_probability > 0 and self.recipe["mask_token_id"] is None:
            raise InputError("the tokenizer has no mask token, which masked_lm needs: take a BERT's")

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def ordinary(self) -> np.ndarray:
        """Which ids do not belong to special tokens, bool [v]."""
        return ~np.isin(np.arange(self.recipe["vocab_size"]), self.recipe["special_ids"])

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids that do not belong to special tokens, int [v - s]."""
        return np.flatnonzero(self.ordinary)

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The batch of the given rows.

        Args:
            rows: row numbers [b]; -1 gives a filler row, whose masks are 0.
            length: tokens to pad to, q.
            epoch: each epoch masks other tokens.

        Returns:
            A `Batch` of numpy arrays [b, q]. `labels` are the original ids of tokens to predict, else -1.
        """
        dtype = np.dtype(self.recipe["dtype"])
        input_ids = np.full((len(rows), length), self.recipe["pad_token_id"], np.int32)
        attention_mask, token_type_ids = np.zeros_like(input_ids), np.zeros_like(input_ids)
        labels = np.full_like(input_ids, -1)
        for i, row in enumerate(rows.tolist()):
            if row < 0:
                continue
            record = np.frombuffer(self.records[row], dtype).astype(np.int32)
            pair_start, ids = record[0], record[1:]
            if len(ids) > length:
                raise ValueError(f"a row of {len(ids)} tokens does not fit into {length}")
            if self.masking_probability > 0:
                random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, row])))
                mask_id, probability = self.recipe["mask_token_id"], self.masking_probability
                ids, labels[i, : len(ids)] = mask_tokens(
                    ids, self.ordinary, self.ordinary_ids, mask_id, probability, random
                )
            input_ids[i, : len(ids)] = ids
            attention_mask[i, : len(ids)] = 1
            token_type_ids[i, pair_start : len(ids)] = 1
        return Batch(input_ids, attention_mask, token_type_ids, labels, (rows >= 0).astype(np.float32))


def mask_tokens(
    ids: np.ndarray,
    ordinary: np.ndarray,
    ordinary_ids: np.ndarray,
    mask_token_id: int,
    probability: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (Devlin et al., arXiv 1810.04805, section 3.1), drawn independently for each token.

    80 % of the chosen tokens become [MASK], 10 % become a random ordinary id, and 10 % are unchanged. Special tokens
    are never chosen.

    Args:
        ids: int [q].
        ordinary: bool [v], which ids of a vocabulary of v do not belong to special tokens.
        ordinary_ids: the ids that `ordinary` marks.
        mask_token_id: the id of [MASK].
        probability: the chance that an ordinary token is chosen.
        random: the number of draws depends only on q and v.

    Returns:
        The masked ids, and the labels: the original id of a chosen token, else -1. Both are int32 [q].
    """
    draw, kind = random.random((2, len(ids)))
    chosen = ordinary[ids] & (draw < probability)
    random_ids = ordinary_ids[random.integers(len(ordinary_ids), size=len(ids))]
    masked = np.where(kind < 0.8, mask_token_id, np.where(kind < 0.9, random_ids, ids))
    return np.where(chosen, masked, ids).astype(np.int32), np.where(chosen, ids, -1).astype(np.int32)


def prepare(source: CorpusSource, tokenizer: Any, max_length: int, seed: int, cache_dir: Path | None = None) -> Corpus:
    """The corpus of a source. Shards of text files are kept in the user's cache folder, and built if they are missing.

    Args:
        source: text files, or one directory of finished shards.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per sequence, special tokens included.
        seed: the seed of pairs, short lengths and masking.
        cache_dir: see `cache.cache_folder`.

    Raises:
        InputError: a file is missing, empty or not UTF-8; the shards are damaged or do not fit the model or the
            source; or the cache cannot be written.
    """
    recipe = make_recipe(source, tokenizer, max_length, seed)
    if len(source.files) == 1 and Path(source.files[0]).is_dir():
        corpus = load(Path(source.files[0]))
        _check_fits(source.files[0], corpus.recipe, recipe)
        return dataclasses.replace(corpus, seed=seed)
    text = survey(source)
    directory = cache_folder(cache_dir) / "corpus" / key(recipe, text)
    try:
        return load(directory)
    except InputError:  # not finished, or damaged
        build_shards(source, recipe, text, directory)
    return load(directory)


def build(source: CorpusSource, tokenizer: Any, max_length: int, seed: int, out: Path) -> None:
    """Build the shards of text files in a directory. A killed build of the same shards is continued.

    Args:
        source: text files; they are read twice, the first time to check them.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per sequence, special tokens included.
        seed: the seed of pairs and short lengths.
        out: the directory: new, empty, or from an earlier build of the same shards.

    Raises:
        InputError: a file is missing, empty or not UTF-8; `out` holds something else, or cannot be written.
    """
    recipe = make_recipe(source, tokenizer, max_length, seed)
    build_shards(source, recipe, survey(source), out)


def load(directory: Path) -> Corpus:
    """The corpus of a directory of finished shards, without masking. The checksums are verified.

    Raises:
        InputError: the directory is not finished or damaged, or has more shards than files may be open.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    recipe, shards, fingerprint = read_manifest(directory)
    files = [shard_files(directory, shard.name) for shard in shards]
    return Corpus(
        records=ArrayRecordDataSource([str(records) for records, _ in files]),
        lengths=np.concatenate([np.load(lengths, allow_pickle=False) for _, lengths in files]),
        fingerprint=fingerprint,
        recipe=recipe,
        seed=recipe["seed"],
    )


def _check_fits(where: str, built: dict[str, Any], recipe: Recipe) -> None:
    if built["tokenizer_fingerprint"] != recipe.tokenizer_fingerprint:
        raise InputError(f"{where}: the shards were built with another tokenizer: build them with this model's")
    if built["max_length"] > recipe.max_length:
        raise InputError(
            f"{where}: the shards have up to {built['max_length']} tokens a sequence: take --max-length "
            f"{built['max_length']}, or build others"
        )
    if recipe.pairs != built["pairs"]:
        kind, remedy = ("without pairs", "leave out --pairs") if recipe.pairs else ("of pairs", "add --pairs")
        raise InputError(f"{where}: the shards were built {kind}: {remedy}, or build others")
