"""The candidates that may replace each word of each row: the first half of TinyBERT's data augmentation.

Algorithm 1 of arXiv 1909.10351: a word of one piece is masked, and its candidates are the K most probable words of a
masked LM. The candidates of a word of several pieces are the K nearest words by cosine. Both depend only on the
original sentence. So they are computed once, for many sentences per call, and every variant is a draw from them
(`variants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax.data.augmentation.candidate_table import (
    ROWS_PER_FILE,
    CandidateTable,
    Settings,
    claim,
    has_part,
    save_part,
)
from tinybert_jax.data.augmentation.neighbours import Neighbours
from tinybert_jax.data.augmentation.rules import CANDIDATES, RULES
from tinybert_jax.data.batches import eval_batches
from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.tokenizer import all_tokens, whole_words

# The padded lengths of masked sentences. They are closer than in training, because padding is most of the waste here.
LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 512, 32))
MaskedLM = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]


class Words(NamedTuple):
    """The words of a text: the ids of their pieces, their spelling in the text, and what separates them.

    A gap is the space before its word. Where tokens hold no spaces, all words but the first have one.
    """

    pieces: list[list[int]]
    written: list[str]
    gaps: list[str]


def split_words(texts: Sequence[str], tokenizer: Any) -> list[Words]:
    """The words into which a tokenizer with a Rust backend splits texts, before it splits the words into pieces."""
    split = []
    space = frame_of(tokenizer).space
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    for text, encoding in zip(texts, encoded.encodings, strict=True):
        pieces: list[list[int]] = []
        spans: list[list[int]] = []
        gaps: list[str] = []
        last = None
        for id_, token, word, (start, end) in zip(
            encoding.ids, encoding.tokens, encoding.word_ids, encoding.offsets, strict=True
        ):
            if word is None or word != last:
                after_space = token.startswith(space) and (gaps or (space and text.startswith(" ")))
                gaps.append(" " if after_space else "")
                pieces.append([])
                spans.append([start, end])
            pieces[-1].append(id_)
            spans[-1][1] = end
            last = word
        split.append(Words(pieces, [text[start:end].removeprefix(" ") for start, end in spans], gaps))
    return split


def build_table(
    directory: Path,
    rows: Rows,
    tokenizer: Any,
    mlm: MaskedLM,
    neighbours: Neighbours,
    settings: Settings,
    batch_size: int | None = None,
) -> None:
    """Write the candidates of all rows, with `augmentation.json`. The files of a killed build are kept.

    Args:
        directory: created if it is missing; an unfinished table of the same settings is continued.
        rows: n rows of one or two texts.
        tokenizer: the masked LM's.
        mlm: `masked_lm_function(config, params, RULES[preset].asked)`; the model has at least
            `settings.input_length` positions.
        neighbours: for words of several pieces.
        settings: the preset, and the other settings that are kept with the table.
        batch_size: masked sentences per call of the masked LM; default: 16 on a CPU, where more are
            slower, else 64.

    Raises:
        InputError: the directory holds something else, or the tokenizer has no mask token, or `batch_size` is below 1.
    """
    from tqdm import tqdm

    if batch_size is None:
        batch_size = 16 if jax.default_backend() == "cpu" else 64
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")

    if tokenizer.mask_token_id is None:
        raise InputError("the model's tokenizer has no [MASK]: augmentation needs that of a masked LM")
    claim(directory, rows, tokenizer, neighbours.fingerprint, settings)
    starts = range(0, len(rows.texts), ROWS_PER_FILE)
    missing = [start for start in starts if not has_part(directory, start)]
    if not missing:
        return
    vocabulary = _vocabulary(tokenizer)

    def part(start: int) -> list[tuple[str, ...]]:
        return list(rows.texts[start : start + ROWS_PER_FILE])

    # The words of all files, finished files included: the search is cached under its words.
    unknown = sorted({word for start in starts for word in _of_several_pieces(part(start), vocabulary, settings)})
    near = neighbours.find([word.removeprefix(vocabulary.frame.word_prefix) for word in unknown])
    phrases = _encode_neighbours(unknown, near, vocabulary)
    done = len(rows.texts) - sum(len(part(start)) for start in missing)
    with tqdm(total=len(rows.texts), initial=done, desc="augment", unit="row") as bar:
        for start in missing:
            save_part(directory, start, _part(part(start), vocabulary, mlm, phrases, settings, batch_size))
            bar.update(len(part(start)))


@dataclass(frozen=True, eq=False)
class _Vocabulary:
    """Facts about a tokenizer that are needed repeatedly."""

    tokenizer: Any
    tokens: list[str]  # by id
    frame: Frame
    words: frozenset[int]  # the ids that can stand for a word, after a space
    first_words: frozenset[int]  # the same without a space before it, where tokens hold spaces
    special: frozenset[int]  # ids that are not text, without the id of unknown words

    def after_space(self, id_: int) -> bool:
        """Whether the token of a word holds the space before it; always where no token does."""
        return self.tokens[id_].startswith(self.frame.space)


def _vocabulary(tokenizer: Any) -> _Vocabulary:
    words, first_words = (frozenset(np.flatnonzero(whole_words(tokenizer, x)).tolist()) for x in (True, False))
    special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return _Vocabulary(tokenizer, all_tokens(tokenizer), frame_of(tokenizer), words, first_words, special)


def _texts(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [text for row in rows for text in row]


def _forms(words: Words, vocabulary: _Vocabulary, settings: Settings) -> list[str | None]:
    """The words as the tokenizer normalises them, with the space that their first token holds.

    None for words that get no candidates.
    """
    forms: list[str | None] = []
    frame = vocabulary.frame
    room = settings.max_length - frame.size(1)
    for pieces, written in zip(words.pieces, words.written, strict=True):
        room -= len(pieces)
        prefix = frame.word_prefix if vocabulary.after_space(pieces[0]) else ""
        form = "".join(vocabulary.tokens[i].removeprefix("##") for i in pieces)
        if frame.space or pieces == [vocabulary.tokenizer.unk_token_id]:
            form = written
        # a second space is a separate word, without letters
        is_word = bool(form) and pieces[0] not in vocabulary.special and RULES[settings.preset].replaces(form)
        forms.append(prefix + form if is_word and room >= 0 else None)
    return forms


def _of_several_pieces(rows: list[tuple[str, ...]], vocabulary: _Vocabulary, settings: Settings) -> set[str]:
    return {
        form
        for words in split_words(_texts(rows), vocabulary.tokenizer)
        for form, pieces in zip(_forms(words, vocabulary, settings), words.pieces, strict=True)
        if form is not None and len(pieces) > 1
    }


def _encode_neighbours(
    words: list[str], near: list[list[str]], vocabulary: _Vocabulary
) -> dict[str, list[tuple[int, ...]]]:
    """The pieces of each word's neighbours. A neighbour that the vocabulary cannot write is left out."""
    prefix = vocabulary.frame.word_prefix
    spelt = [
        [f"{prefix}{name}" if word.startswith(prefix) else name for name in row]
        for word, row in zip(words, near, strict=True)
    ]
    names = sorted({name for row in spelt for name in row})
    encoded = vocabulary.tokenizer(names, add_special_tokens=False)["input_ids"] if names else []
    excluded = vocabulary.special | {vocabulary.tokenizer.unk_token_id}
    ids = {name: tuple(row) for name, row in zip(names, encoded, strict=True) if row and not excluded & set(row)}
    return {word: [ids[name] for name in row if name in ids] for word, row in zip(words, spelt, strict=True)}


def _part(
    rows: list[tuple[str, ...]],
    vocabulary: _Vocabulary,
    mlm: MaskedLM,
    phrases: dict[str, list[tuple[int, ...]]],
    settings: Settings,
    batch_size: int,
) -> CandidateTable:
    """The table of some rows."""
    split = split_words(_texts(rows), vocabulary.tokenizer)
    forms = [_forms(words, vocabulary, settings) for words in split]
    masked = [
        (i, j)
        for i, words in enumerate(split)
        for j, (pieces, form) in enumerate(zip(words.pieces, forms[i], strict=True))
        if form is not None and len(pieces) == 1
    ]
    predicted = dict(zip(masked, _predict(split, masked, vocabulary, mlm, settings, batch_size), strict=True))
    numbers: dict[tuple[int, ...], int] = {}  # the numbers of phrases, in order of occurrence

    def candidates(i: int, j: int) -> list[int]:
        form, original = forms[i][j], tuple(split[i].pieces[j])
        if form is None or len(original) == 1:
            return predicted.get((i, j), [])
        near = dict.fromkeys(ids for ids in phrases[form] if ids != original)
        return [ids[0] if len(ids) == 1 else -1 - numbers.setdefault(ids, len(numbers)) for ids in near]

    pieces, word_pieces = _flat([ids for words in split for ids in words.pieces])
    ids, word_candidates = _flat([candidates(i, j) for i, words in enumerate(split) for j in range(len(words.pieces))])
    text_words = np.cumsum([0, *(len(words.pieces) for words in split)], dtype=np.int64)
    return CandidateTable(pieces, word_pieces, text_words, ids, word_candidates, *_flat(list(numbers)))


def _predict(
    split: list[Words],
    masked: list[tuple[int, int]],
    vocabulary: _Vocabulary,
    mlm: MaskedLM,
    settings: Settings,
    batch_size: int,
) -> list[list[int]]:
    """The masked LM's candidates for word j of text i, for each (i, j) in `masked`."""
    tokenizer, frame = vocabulary.tokenizer, vocabulary.frame
    room = settings.max_length - frame.size(1)
    sentences = [[i for ids in words.pieces for i in ids][:room] for words in split]
    begins = [np.cumsum([len(frame.before), *(len(ids) for ids in words.pieces)]) for words in split]
    positions = np.array([begins[i][j] for i, j in masked], np.int32)
    inputs, pair_starts = [], []
    for (i, _), position in zip(masked, positions, strict=True):
        ids, pair_start = frame.put(sentences[i], sentences[i] if RULES[settings.preset].in_pairs else None)
        ids[position] = tokenizer.mask_token_id
        inputs.append(ids)
        pair_starts.append(pair_start)
    pairs = np.array(pair_starts, np.int32)
    # Batching carries the position of the mask along as the label.
    queries = Tokens(*_flat(inputs), pairs, labels=positions, fingerprint="", pad_token_id=tokenizer.pad_token_id)
    longest = settings.input_length(frame)
    lengths = (*(length for length in LENGTHS if length < longest), longest)
    calls = [
        (rows, mlm(batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels))
        for rows, batch in eval_batches(queries, batch_size, lengths)
    ]
    candidates: list[list[int]] = [[] for _ in masked]
    for rows, best in calls:  # fetched after all calls are dispatched, so that host and device overlap
        for row, ids in zip(rows.tolist(), np.asarray(best).tolist(), strict=True):
            if row >= 0:
                i, j = masked[row]
                original = split[i].pieces[j][0]
                allowed = vocabulary.words if vocabulary.after_space(original) else vocabulary.first_words
                # the original code may replace a word by itself
                excluded = -1 if RULES[settings.preset].may_keep_word else original
                candidates[row] = [id_ for id_ in ids if id_ in allowed and id_ != excluded][:CANDIDATES]
    return candidates


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated lists, int32, and the offset of each, int64 [n + 1]."""
    flat = np.array([value for values in lists for value in values], np.int32)
    return flat, np.cumsum([0, *(len(values) for values in lists)], dtype=np.int64)
