"""TinyBERT's data augmentation (arXiv 1909.10351, algorithm 1): variants of the rows, drawn when a batch needs them.

A variant replaces each word with probability 0.4 by one of its candidates (`candidates`). It is a pure function of the
seed, its row and its number. So only the candidates are stored, and a resumed run sees the same variants.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.batch import Batch
from tinybert_jax.data.augmentation.candidate_table import CandidateTable, load_table
from tinybert_jax.data.augmentation.candidates import split_words
from tinybert_jax.data.reader import is_quoted_tsv, read_text, table_lines
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.tokenizer import write_words

PROBABILITY = 0.4  # of replacing a word: the paper's p_t


@dataclass(frozen=True, eq=False)
class Augmented:
    """All variants of n rows, as `batch.Examples`. Number i * variants + v is variant v of row i.

    Variant 0 is the row itself. The texts of a pair are drawn independently.
    """

    table: CandidateTable
    pool: np.ndarray  # int32: all ids, then the pieces of words, then the pieces of phrases
    labels: np.ndarray  # [n], class ids or numbers; or [n, c], which classes a row has
    lengths: np.ndarray  # int64 [n * variants], of the longest possible draw
    variants: int
    texts: int  # per row: one, or two for a pair
    max_length: int
    seed: int
    frame: Frame
    pad_token_id: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels) * self.variants

    def batch(self, rows: np.ndarray, length: int, epoch: int = 0) -> Batch:
        """The batch of the given variants; the same in every epoch.

        Args:
            rows: their numbers [b]; -1 gives a filler row, whose masks are 0.
            length: tokens to pad to, q.
            epoch: not used.

        Returns:
            The batch that `tokens.tokenize` gives for the variants' texts: numpy arrays [b, q] and [b].
        """
        real = rows >= 0
        row, variant = np.divmod(np.where(real, rows, 0), self.variants)
        text = row[:, None] * self.texts + np.arange(self.texts)  # [b, t]
        begin = self.table.text_words[text]
        count = np.where(real[:, None], self.table.text_words[text + 1] - begin, 0)
        word = _ranges(begin.ravel(), count.ravel())
        numbers = row[real].tolist(), variant[real].tolist()
        drawn = [draw(self.table, self.texts, self.seed, i, v) for i, v in zip(*numbers, strict=True)]
        starts, sizes = self._pieces(word, np.concatenate([np.zeros(0, np.int64), *drawn]))
        ids = self.pool[_ranges(starts, sizes)]
        ends = np.concatenate([[0], np.cumsum(sizes)])[np.concatenate([[0], np.cumsum(count.ravel())])]
        text_sizes = np.diff(ends).reshape(count.shape)
        special = self.frame.size(self.texts)
        kept = cut_longest_first(text_sizes, self.max_length - special)
        filled = np.where(real, kept.sum(axis=1) + special, 0)
        if filled.max(initial=0) > length:
            raise ValueError(f"a variant of {filled.max()} tokens does not fit into {length}")
        real_rows = real.reshape(-1, *[1] * (self.labels.ndim - 1))
        return Batch(
            *self._assemble(ids, ends[:-1].reshape(count.shape), kept, filled, length),
            labels=np.where(real_rows, self.labels[row], 0).astype(self.labels.dtype),
            example_mask=real.astype(np.float32),
        )

    def _pieces(self, word: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The start in the pool, and the number, of the pieces of each word or of its replacement."""
        table = self.table
        vocabulary = len(self.pool) - len(table.pieces) - len(table.phrases)
        starts = table.word_pieces[word] + vocabulary
        sizes = table.word_pieces[word + 1] - table.word_pieces[word]
        replaced = drawn >= 0
        candidate = table.candidates[drawn[replaced]].astype(np.int64)
        several = candidate < 0
        phrase = -1 - candidate[several]
        candidate_sizes = np.ones(len(candidate), np.int64)
        candidate_sizes[several] = table.phrase_pieces[phrase + 1] - table.phrase_pieces[phrase]
        candidate[several] = table.phrase_pieces[phrase] + vocabulary + len(table.pieces)
        starts[replaced], sizes[replaced] = candidate, candidate_sizes
        return starts, sizes

    def _assemble(
        self, ids: np.ndarray, starts: np.ndarray, kept: np.ndarray, filled: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, mask and types of texts in their frame. The texts start at `starts` [b, t] in `ids`."""
        position = np.arange(length)
        mask = position < filled[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, np.int32)
        token_type_ids = np.zeros(mask.shape, np.int32)
        real = np.flatnonzero(filled)
        begin = np.zeros(len(mask), np.int64)
        for text in range(self.texts):
            begin = _put(input_ids, real, begin, self.frame.between if text else self.frame.before)
            offset = position - begin[:, None]
            inside = (offset >= 0) & (offset < kept[:, text, None])
            input_ids[inside] = ids[(starts[:, text, None] + offset)[inside]]
            token_type_ids[mask & (offset >= 0)] = text * self.frame.has_types
            begin = begin + kept[:, text]
        _put(input_ids, real, begin, self.frame.after)
        return input_ids, mask.astype(np.int32), token_type_ids


def check_truncation(tokenizer: Any) -> None:
    """Refuse a tokenizer that cuts long texts on the left, because variants are cut on the right.

    Raises:
        InputError: the tokenizer does.
    """
    if tokenizer.truncation_side != "right":
        raise InputError(
            "variants are cut on the right, but the tokenizer's truncation_side is 'left': set it to 'right' in"
            " tokenizer_config.json"
        )


def load_augmented(directory: str | Path, rows: Rows, tokenizer: Any, max_length: int, seed: int) -> Augmented:
    """The variants of the training rows, drawn from the candidates in a directory that `tinybert augment` wrote.

    Args:
        directory: the directory that `candidates.build_table` filled.
        rows: the rows whose candidates it holds.
        tokenizer: a Hugging Face tokenizer with the vocabulary of the masked LM.
        max_length: tokens per row, special tokens included; longer variants are cut as `tokens.tokenize` cuts texts.
        seed: the seed of the draws.

    Raises:
        InputError: the candidates are missing, unfinished or damaged, or were made from other rows or with another
            vocabulary; or the tokenizer cuts texts on the left.
    """
    check_truncation(tokenizer)
    frame = frame_of(tokenizer)
    table, settings = load_table(Path(directory), rows, tokenizer)
    texts, variants = len(rows.texts[0]), settings["variants"]
    digest = hashlib.sha256(json.dumps([settings, max_length, seed], sort_keys=True).encode())
    for array in vars(table).values():  # the same settings can give other candidates on another device
        digest.update(array.tobytes())
    original, longest = (
        cut_longest_first(sizes.reshape(-1, texts), max_length - frame.size(texts)).sum(axis=1) + frame.size(texts)
        for sizes in _text_sizes(table)
    )
    lengths = np.repeat(longest[:, None], variants, axis=1)
    lengths[:, 0] = original
    # not the number of tokens, because ids can have gaps
    ids = max(tokenizer.get_vocab().values()) + 1
    return Augmented(
        table=table,
        pool=np.concatenate([np.arange(ids, dtype=np.int32), table.pieces, table.phrases]),
        labels=rows.labels_or_zeros,
        lengths=lengths.ravel(),
        variants=variants,
        texts=texts,
        max_length=max_length,
        seed=seed,
        frame=frame,
        pad_token_id=tokenizer.pad_token_id,
        fingerprint=digest.hexdigest(),
    )


def draw(table: CandidateTable, texts: int, seed: int, row: int, variant: int) -> np.ndarray:
    """The replacements of the words of a row, in all its texts, in one variant.

    Args:
        table: the candidates of all rows.
        texts: the number of texts per row.
        seed: the run's seed.
        row: the number of the row.
        variant: the number of the variant; 0 is the row itself.

    Returns:
        Indices into `table.candidates`, int64 [words of the row]; -1 for a word that stays.
    """
    begin, end = (int(table.text_words[i * texts]) for i in (row, row + 1))
    if variant == 0:
        return np.full(end - begin, -1)
    start, stop = table.word_candidates[begin:end], table.word_candidates[begin + 1 : end + 1]
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, row, variant])))
    replace, choice = random.random((2, end - begin))
    return np.where((replace < PROBABILITY) & (stop > start), start + (choice * (stop - start)).astype(np.int64), -1)


def variant_texts(augmented: Augmented, rows: Rows, tokenizer: Any, row: int) -> list[tuple[str, ...]]:
    """All variants of a row as texts, the row itself first.

    The words of the others are separated by spaces; where tokens hold spaces, by those of the row itself.
    """
    table, texts = augmented.table, rows.texts[row]
    split = split_words(texts, tokenizer)
    variants = [texts]
    for variant in range(1, augmented.variants):
        drawn = iter(draw(table, augmented.texts, augmented.seed, row, variant).tolist())
        replaced = [
            [
                gap + (_candidate_text(augmented, i, tokenizer) if (i := next(drawn)) >= 0 else word)
                for gap, word in zip(words.gaps, words.written, strict=True)
            ]
            for words in split
        ]
        variants.append(tuple("".join(words) for words in replaced))
    return variants


def write_variants(
    path: Path,
    augmented: Augmented,
    rows: Rows,
    tokenizer: Any,
    train: Path,
    text_columns: tuple[str, ...],
    headerless: tuple[str, ...] = (),
) -> None:
    """Write all variants of the training rows as a TSV with the columns, and quotes if any, of the training file.

    Args:
        path: the file to write.
        augmented: the variants.
        rows: the rows that `train` holds.
        tokenizer: the tokenizer of the candidates.
        train: the training file, a TSV that `rows.read_rows` accepts.
        text_columns: the columns of the texts.
        headerless: the columns of a training file without a header.

    Raises:
        InputError: `train` is not a TSV.
    """
    if train.suffix.lower() != ".tsv":
        raise InputError(
            f"{train}: not a .tsv, and the variants are written in its layout: leave --tsv out, or give a .tsv"
        )
    text = read_text(train).rstrip("\r\n")
    cells = dict(table_lines(train, text))
    columns = list(headerless) or cells[1]
    indices = [columns.index(column) for column in text_columns]
    partial = path.with_name(f".{path.name}.tmp")  # so that a command that was stopped can be given again
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            quoted = csv.writer(file, delimiter="\t", lineterminator="\n") if is_quoted_tsv(train, text) else None

            def write(values: list[str]) -> None:
                if quoted is None:
                    file.write("\t".join(values) + "\n")
                else:
                    quoted.writerow(values)

            if not headerless:
                write(columns)
            for row, number in enumerate(rows.lines):
                values = cells[number]
                for texts in variant_texts(augmented, rows, tokenizer, row):
                    for index, text in zip(indices, texts, strict=True):
                        values[index] = text
                    write(values)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cut_longest_first(sizes: np.ndarray, room: int) -> np.ndarray:
    """The sizes of one or two texts per row after truncation as by Hugging Face's tokenizers.

    The longer text is cut first. If both are cut, the second keeps the odd token, or the first if it was the longer.

    Args:
        sizes: tokens before truncation, int64 [b, t].
        room: the number of tokens for all t texts.
    """
    if sizes.shape[1] == 1:
        return np.minimum(sizes, room)
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    fits = np.where(
        shorter + longer <= room, longer, room - shorter
    )  # tokens of the longer text beside the whole shorter one
    both = fits < shorter
    shorter, longer = np.where(both, room // 2, shorter), np.where(both, room - room // 2, fits)
    first_is_longer = sizes[:, 0] > sizes[:, 1]
    return np.stack([np.where(first_is_longer, longer, shorter), np.where(first_is_longer, shorter, longer)], axis=1)


def _text_sizes(table: CandidateTable) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of each text, and of its longest possible draw, int64 [texts]."""
    original = np.diff(table.word_pieces)
    sizes = np.ones(len(table.candidates), np.int64)
    several = table.candidates < 0
    sizes[several] = np.diff(table.phrase_pieces)[-1 - table.candidates[several]]
    longest = original.copy()
    chosen = np.diff(table.word_candidates) > 0
    if chosen.any():
        best = np.maximum.reduceat(sizes, table.word_candidates[:-1][chosen])
        longest[chosen] = np.maximum(longest[chosen], best)
    original, longest = (np.concatenate([[0], np.cumsum(x)])[table.text_words] for x in (original, longest))
    return np.diff(original), np.diff(longest)


def _candidate_text(augmented: Augmented, index: int, tokenizer: Any) -> str:
    """The candidate with this index as text."""
    table = augmented.table
    candidate = int(table.candidates[index])
    ids = [candidate]
    if candidate < 0:
        begin, end = table.phrase_pieces[-1 - candidate : 1 - candidate]
        ids = table.phrases[begin:end].tolist()
    return write_words(tokenizer, augmented.frame, tokenizer.convert_ids_to_tokens(ids))


def _put(input_ids: np.ndarray, rows: np.ndarray, begin: np.ndarray, special: tuple[int, ...]) -> np.ndarray:
    """Write special tokens into rows of `input_ids` [b, q] from `begin` [b] on, and return where they end."""
    for id_ in special:
        input_ids[rows, begin[rows]] = id_
        begin = begin + 1
    return begin


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The concatenated ranges `start, ..., start + size - 1`."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
