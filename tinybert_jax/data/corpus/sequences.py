"""Text -> the token sequences that a BERT is trained on: a pure function of the text, a recipe and a number."""

from __future__ import annotations

import functools
import io
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.settings.sources import CorpusSource

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
TOKENIZE_AT_ONCE = 1000  # sentences


@dataclass(frozen=True)
class Recipe:
    """All that determines the sequences of a text. Its values are plain, because it is sent to other processes."""

    tokenizer: str  # the Rust backend, as JSON
    tokenizer_fingerprint: str
    frame: Frame  # the fingerprint stands for it in `corpus.json`, where two of its ids are described
    cls_token_id: int
    sep_token_id: int
    pad_token_id: int
    mask_token_id: int | None
    special_ids: tuple[int, ...]
    vocab_size: int
    max_length: int
    one_document_per_line: bool
    pairs: bool
    short_sequence_probability: float
    seed: int

    @property
    def dtype(self) -> str:
        """The dtype of a record."""
        return "<u2" if self.vocab_size <= 1 << 16 else "<i4"


class Document(NamedTuple):
    """The tokens of a document, and the ends of its sentences."""

    ids: np.ndarray  # [n]
    ends: list[int]  # increasing; the last is n


def make_recipe(source: CorpusSource, tokenizer: Any, max_length: int, seed: int) -> Recipe:
    """The recipe of a corpus.

    Args:
        source: how the text is cut; its files are not read.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per sequence, special tokens included.
        seed: the seed of pairs and short lengths.

    Raises:
        InputError: `max_length` leaves no room for text, or does not fit into 16 bits; or the tokenizer lacks a
            special token.
    """
    for token in ("pad", "cls", "sep"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise InputError(f"the tokenizer has no {token} token, which every sequence needs: take a BERT's")
    frame = frame_of(tokenizer)
    minimum = frame.size(2 if source.pairs else 1) + 2
    if not minimum <= max_length < 1 << 16:
        raise InputError(
            f"max_length is {max_length}; with its special tokens a sequence needs {minimum}, and has at most 65535"
        )
    return Recipe(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        frame=frame,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_ids=tuple(sorted(tokenizer.all_special_ids)),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        max_length=max_length,
        one_document_per_line=source.one_document_per_line,
        pairs=source.pairs,
        short_sequence_probability=source.short_sequence_probability,
        seed=seed,
    )


def sequences(text: bytes, recipe: Recipe, number: int) -> Iterator[np.ndarray]:
    """The sequences of a text, without masks. Each is a record: the start of its second segment, then its ids.

    The special tokens are those of the tokenizer's frame; here they are written as in BERT's.

    Sentences end at line ends, and at white space after `.`, `!` or `?`. A sequence `[CLS] A [SEP]` holds as many
    whole sentences of a document as fit. A sentence that does not fit into a sequence is cut, and its rest starts the
    next one. So every token of the text occurs once. With probability `recipe.short_sequence_probability`, a sequence
    is cut to a uniformly random length.

    With `recipe.pairs`, such a stretch of text is divided after a random sentence, `[CLS] A [SEP] B [SEP]`, as in BERT
    (Devlin et al., arXiv 1810.04805, section A.2). In half of the cases, and if the stretch is one sentence, text from
    a random place in another document replaces B. Both are then cut, the longer first, and the text after A starts the
    next sequence. If the text is a single document, every B continues its A or is left out.

    Args:
        text: UTF-8; random texts come from its documents.
        recipe: how it is cut.
        number: the text's number in the corpus. Each number has its own random numbers.

    Returns:
        Arrays of `recipe.dtype` [1 + tokens]. Token types are 0 up to the position in the first value, and then 1.
    """
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([recipe.seed, number])))
    documents = _tokenize(text, recipe)
    for i, document in enumerate(documents):
        segments = _pairs(documents, i, recipe, random) if recipe.pairs else _stretches(document, recipe, random)
        for first, second in segments:
            ids, pair_start = recipe.frame.put(first.tolist(), second.tolist() if len(second) else None)
            yield np.array([pair_start, *ids], recipe.dtype)


def split_documents(text: bytes, one_document_per_line: bool) -> Iterator[list[str]]:
    """The sentences of each document. Documents are lines, or are separated by blank lines.

    >>> list(split_documents(b"One. Two\\nthree.\\n\\nFour!", False))
    [['One.', 'Two', 'three.'], ['Four!']]
    """
    document: list[str] = []
    for line in io.BytesIO(text):
        content = line.decode().strip()
        if document and (one_document_per_line or not content):
            yield document
            document = []
        if content:
            document += SENTENCE_END.split(content)
    if document:
        yield document


@functools.lru_cache(maxsize=1)
def _backend(serialized: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()  # the JSON holds those of the last call
    tokenizer.no_padding()
    return tokenizer


def _tokenize(text: bytes, recipe: Recipe) -> list[Document]:
    """The documents that have tokens."""
    tokenizer = _backend(recipe.tokenizer)
    texts: list[str] = []
    counts: list[int] = []
    for document in split_documents(text, recipe.one_document_per_line):
        texts += [document[0], *(recipe.frame.word_prefix + sentence for sentence in document[1:])]
        counts.append(len(document))
    sentences: list[np.ndarray] = []
    for start in range(0, len(texts), TOKENIZE_AT_ONCE):
        encoded = tokenizer.encode_batch_fast(texts[start : start + TOKENIZE_AT_ONCE], add_special_tokens=False)
        sentences += [np.array(sentence.ids, recipe.dtype) for sentence in encoded]
    documents = []
    for stop, count in zip(np.cumsum(counts), counts, strict=True):
        parts = [sentence for sentence in sentences[stop - count : stop] if len(sentence)]
        if parts:
            documents.append(Document(np.concatenate(parts), np.cumsum([len(part) for part in parts]).tolist()))
    return documents


def _target(limit: int, recipe: Recipe, random: np.random.Generator) -> int:
    """The number of text tokens that a sequence may have."""
    return int(random.integers(2, limit + 1)) if random.random() < recipe.short_sequence_probability else limit


def _stop(document: Document, start: int, target: int) -> int:
    """The end of a stretch from `start`: after the last sentence that fits, or at the limit if none fits."""
    last = document.ends[bisect_right(document.ends, start + target) - 1]
    return last if start < last <= start + target else start + target


def _stretches(
    document: Document, recipe: Recipe, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The document as single segments; the second segment of each sequence is empty."""
    start = 0
    while start < len(document.ids):
        stop = _stop(document, start, _target(recipe.max_length - recipe.frame.size(1), recipe, random))
        yield document.ids[start:stop], document.ids[:0]
        start = stop


def _pairs(
    documents: list[Document], i: int, recipe: Recipe, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Document i as pairs of segments."""
    ids, ends = documents[i]
    is_only = len(documents) == 1
    start = 0
    while start < len(ids):
        target = _target(recipe.max_length - recipe.frame.size(2), recipe, random)
        stop = _stop(documents[i], start, target)
        inner = ends[bisect_right(ends, start) : bisect_left(ends, stop)]
        border = inner[random.integers(len(inner))] if inner else stop
        if is_only or (inner and random.random() < 0.5):
            yield ids[start:border], ids[border:stop]
            start = stop
        else:
            other = int(random.integers(len(documents) - 1))
            second = _random_text(documents[other + (other >= i)], target - (border - start), random)
            first, second = _cut_pair(ids[start:border], second, target)
            yield first, second
            start += len(first)


def _random_text(document: Document, tokens: int, random: np.random.Generator) -> np.ndarray:
    """Whole sentences from a random one on: as few as hold `tokens` tokens, and at least one."""
    starts = [0, *document.ends[:-1]]
    start = starts[random.integers(len(starts))]
    stop = bisect_left(document.ends, max(start + tokens, start + 1))
    return document.ids[start : document.ends[min(stop, len(starts) - 1)]]


def _cut_pair(first: np.ndarray, second: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Both segments, cut at their ends to `limit` tokens in total. The longer one is cut first."""
    second = second[: max(limit // 2, limit - len(first))]
    return first[: limit - len(second)], second
