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
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.settings.sources import CorpusSource

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
TOKENIZE_AT_ONCE = 1000  # sentences


@dataclass(frozen=True)
class Recipe:
    """What determines the sequences of a text. Plain values: it is sent to other processes."""

    tokenizer: str  # the Rust backend, as JSON
    tokenizer_fingerprint: str
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
        """Of a record."""
        return "<u2" if self.vocab_size <= 1 << 16 else "<i4"


class Document(NamedTuple):
    """The tokens of a document, and where its sentences end."""

    ids: np.ndarray  # [n]
    ends: list[int]  # increasing; the last is n


def make_recipe(source: CorpusSource, tokenizer: Any, max_length: int, seed: int) -> Recipe:
    """The recipe of a corpus.

    Args:
        source: how the text is cut; its files are not read.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens a sequence, special ones included.
        seed: of pairs and short lengths.

    Raises:
        InputError: `max_length` holds no text, or does not fit into 16 bits; the tokenizer lacks a special token.
    """
    least = 5 if source.pairs else 4
    if not least <= max_length < 1 << 16:
        raise InputError(
            f"max_length is {max_length}; with its special tokens a sequence needs {least}, and has at most 65535"
        )
    for token in ("pad", "cls", "sep"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise InputError(f"the tokenizer has no {token} token, which every sequence needs: take a BERT's")
    return Recipe(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
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
    """The sequences of a text, each as one record: where its second segment starts, then its ids.

    Sentences are what lies between line ends, and between `.`, `!` or `?` and the space after it. As many whole ones
    of a document as fit make a sequence `[CLS] A [SEP]`; where not even one fits it is cut, and its rest starts the
    next sequence, so every token of the text comes once. With `recipe.short_sequence_probability` a sequence is cut to
    a uniformly random length.

    With `recipe.pairs` such a stretch of text is divided after a random sentence, `[CLS] A [SEP] B [SEP]`, as for BERT
    (Devlin et al., arXiv 1810.04805, section A.2). In half of the cases, and where the stretch is one sentence, B is
    then replaced by text from a random place of another document; both are cut, the longer first, and what A did not
    take starts the next sequence. Where the text is a single document every B continues its A, or is left out.

    Nothing is masked.

    Args:
        text: UTF-8; the documents from which random texts come.
        recipe: how it is cut.
        number: of the text in the corpus; each has its own random numbers.

    Returns:
        Arrays of `recipe.dtype` [1 + tokens]. The token types are 0 up to the first value, and 1 from there.
    """
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([recipe.seed, number])))
    documents = _tokenize(text, recipe)
    for i, document in enumerate(documents):
        segments = _pairs(documents, i, recipe, random) if recipe.pairs else _stretches(document, recipe, random)
        for first, second in segments:
            ids = [recipe.cls_token_id, *first.tolist(), recipe.sep_token_id]
            pair_start = len(ids)
            if len(second):
                ids += [*second.tolist(), recipe.sep_token_id]
            yield np.array([pair_start, *ids], recipe.dtype)


def split_documents(text: bytes, one_document_per_line: bool) -> Iterator[list[str]]:
    """The sentences of each document; documents are lines, or what blank lines separate.

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
    tokenizer.no_truncation()  # the last call's stay in it
    tokenizer.no_padding()
    return tokenizer


def _tokenize(text: bytes, recipe: Recipe) -> list[Document]:
    """All documents that have tokens."""
    tokenizer = _backend(recipe.tokenizer)
    texts: list[str] = []
    counts: list[int] = []
    for document in split_documents(text, recipe.one_document_per_line):
        texts += document
        counts.append(len(document))
    sentences: list[np.ndarray] = []
    for start in range(0, len(texts), TOKENIZE_AT_ONCE):
        encoded = tokenizer.encode_batch_fast(texts[start : start + TOKENIZE_AT_ONCE], add_special_tokens=False)
        sentences += [np.array(sentence.ids, recipe.dtype) for sentence in encoded]
    documents = []
    for stop, count in zip(np.cumsum(counts), counts, strict=True):
        own = [sentence for sentence in sentences[stop - count : stop] if len(sentence)]
        if own:
            documents.append(Document(np.concatenate(own), np.cumsum([len(sentence) for sentence in own]).tolist()))
    return documents


def _target(limit: int, recipe: Recipe, random: np.random.Generator) -> int:
    """How many tokens of text a sequence may have."""
    return int(random.integers(2, limit + 1)) if random.random() < recipe.short_sequence_probability else limit


def _stop(document: Document, start: int, target: int) -> int:
    """Where a stretch from `start` ends: after the last sentence that fits, or, where none does, at the limit."""
    last = document.ends[bisect_right(document.ends, start + target) - 1]
    return last if start < last <= start + target else start + target


def _stretches(
    document: Document, recipe: Recipe, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    start = 0
    while start < len(document.ids):
        stop = _stop(document, start, _target(recipe.max_length - 2, recipe, random))
        yield document.ids[start:stop], document.ids[:0]
        start = stop


def _pairs(
    documents: list[Document], i: int, recipe: Recipe, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    ids, ends = documents[i]
    alone = len(documents) == 1
    start = 0
    while start < len(ids):
        target = _target(recipe.max_length - 3, recipe, random)
        stop = _stop(documents[i], start, target)
        inner = ends[bisect_right(ends, start) : bisect_left(ends, stop)]
        border = inner[random.integers(len(inner))] if inner else stop
        if alone or (inner and random.random() < 0.5):
            yield ids[start:border], ids[border:stop]
            start = stop
        else:
            other = int(random.integers(len(documents) - 1))
            second = _random_text(documents[other + (other >= i)], target - (border - start), random)
            first, second = _cut_pair(ids[start:border], second, target)
            yield first, second
            start += len(first)


def _random_text(document: Document, wanted: int, random: np.random.Generator) -> np.ndarray:
    """Whole sentences from a random one on: as few as have `wanted` tokens, at least one."""
    starts = [0, *document.ends[:-1]]
    start = starts[random.integers(len(starts))]
    stop = bisect_left(document.ends, max(start + wanted, start + 1))
    return document.ids[start : document.ends[min(stop, len(starts) - 1)]]


def _cut_pair(first: np.ndarray, second: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Both from their start, together at most `limit` tokens; the longer one loses its end first."""
    second = second[: max(limit // 2, limit - len(first))]
    return first[: limit - len(second)], second
