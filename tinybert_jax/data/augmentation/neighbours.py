"""The nearest words by cosine, in a GloVe or word2vec file or in a model's word embeddings."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.cache import cache_folder, cached
from tinybert_jax.data.augmentation.rules import CANDIDATES, RULES
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.files.foreign import HEAD, foreign_kind
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.tokenizer import all_tokens, whole_words, write_words
from tinybert_jax.settings.choices import Preset

FORMAT_VERSION = 1  # of the cached neighbours; increase it when the same file would give others
BLOCK = 1024  # queries per matrix product; fewer with many vectors
BLOCK_SCORES = 2**26  # at most, per matrix product; a score and its place in the order take 16 bytes


@dataclass(frozen=True, eq=False)
class Neighbours:
    """`find(words)` gives the nearest words of each word, nearest first. A word that is not known has none."""

    find: Callable[[list[str]], list[list[str]]]
    fingerprint: str  # of all that determines the neighbours


def load_neighbours(path: Path | None, table: np.ndarray, tokenizer: Any, preset: Preset) -> Neighbours:
    """Neighbours in a file of vectors; without a file, in the word embeddings, with a note.

    Args:
        path: a GloVe or word2vec text file, plain or by gzip.
        table: the model's word embeddings, float32 [v, d].
        tokenizer: its ids index the table.
        preset: `official` reads the first 100,000 vectors of the file, as the original code does.

    Raises:
        InputError: the file is missing or holds no vectors.
    """
    if path is not None:
        return vector_neighbours(path, RULES[preset].vectors)
    note("no --glove FILE: words of several pieces take the model's own embeddings instead")
    return embedding_neighbours(table, tokenizer)


def vector_neighbours(path: Path, limit: int | None = None, cache_dir: Path | None = None) -> Neighbours:
    """Neighbours in a GloVe or word2vec text file. They are cached: vectors are read only for a new set of words.

    Args:
        path: the file.
        limit: the number of vectors to read; None: all.
        cache_dir: see `cache.cache_folder`.

    Raises:
        InputError: the file cannot be read. `find` raises it if the file holds no vectors.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give --glove FILE, a file of vectors") from None
    form = [FORMAT_VERSION, content, limit, CANDIDATES]

    def find(words: list[str]) -> list[list[str]]:
        key = hashlib.sha256(json.dumps([form, words]).encode()).hexdigest()

        def build(folder: Path) -> None:
            names, vectors = read_vectors(path, limit)
            index = {name: i for i, name in enumerate(names)}
            rows = [index.get(word, index.get(word.lower(), -1)) for word in words]
            known = [row for row in rows if row >= 0]
            # one more than needed, because the nearest word is the word itself
            nearest_rows = iter(nearest(vectors[known], vectors, CANDIDATES + 1))
            near = [[] if row < 0 else [names[i] for i in next(nearest_rows) if i != row][:CANDIDATES] for row in rows]
            (folder / "neighbours.json").write_text(json.dumps(near), "utf-8")

        def load(folder: Path) -> list[list[str]]:
            return json.loads((folder / "neighbours.json").read_text("utf-8"))

        return cached(cache_folder(cache_dir) / "neighbours" / key, build, load)

    return Neighbours(find, hashlib.sha256(json.dumps(form).encode()).hexdigest())


def embedding_neighbours(table: np.ndarray, tokenizer: Any) -> Neighbours:
    """Neighbours among the whole words of the vocabulary. A word's vector is the mean of its pieces' embeddings.

    Args:
        table: word embeddings, float32 [v, d].
        tokenizer: its ids index the table.
    """
    frame, tokens = frame_of(tokenizer), all_tokens(tokenizer)
    rows = np.flatnonzero(whole_words(tokenizer))
    vectors = _unit(table[rows])

    def find(words: list[str]) -> list[list[str]]:
        texts = [frame.word_prefix + word for word in words]
        pieces = tokenizer(texts, add_special_tokens=False)["input_ids"] if words else []
        queries = np.zeros((len(words), table.shape[1]), np.float32)
        for i, ids in enumerate(pieces):
            queries[i] = table[ids].mean(axis=0)
        near = rows[nearest(_unit(queries), vectors, CANDIDATES + 1)]
        return [
            [write_words(tokenizer, frame, [tokens[i]]) for i in row if [i] != ids][:CANDIDATES]
            for row, ids in zip(near.tolist(), pieces, strict=True)
        ]

    return Neighbours(find, "word embeddings")


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """The rows of highest cosine, highest first.

    Args:
        queries: unit vectors, float32 [n, d].
        vectors: unit vectors, float32 [v, d].
        k: the number of rows per query.

    Returns:
        Row numbers of `vectors`, int64 [n, min(k, v)].
    """
    k = min(k, len(vectors))
    result = np.zeros((len(queries), k), np.int64)
    block = max(1, min(BLOCK, BLOCK_SCORES // len(vectors)))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ vectors.T
        # sorted by number first, so that the earlier row wins among equal scores
        best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        result[start : start + block] = np.take_along_axis(best, order, axis=1)
    return result


def read_vectors(path: Path, limit: int | None = None) -> tuple[list[str], np.ndarray]:
    """The words of a GloVe or word2vec text file, plain or by gzip, and their unit vectors, float32 [v, d].

    A line is a word, which may hold spaces, and d numbers. A first line `v d`, as word2vec writes it, is skipped if
    the lines after it hold d numbers. Lines that cannot be used are left out, and a note on standard error counts
    them.

    Raises:
        InputError: no line holds a word and a vector, or the file is binary.
    """
    index: dict[str, int] = {}
    numbers, lines = array("f"), array("q")
    bad: list[int] = []
    with _open(path) as file:
        head = list(itertools.islice(file, 100))
        if head:
            head[0] = head[0].removeprefix(b"\xef\xbb\xbf")
        match = re.fullmatch(rb"\s*[0-9]+\s+([0-9]+)\s*", head[0]) if head else None
        body = head[1:] if match else head
        # A header must agree with the numbers at the ends of lines. Words with spaces make lines wider.
        header = match is not None and match[1] == b"%d" % _most_common(map(_numbers_at_the_end, body))
        is_binary = re.search(rb"[\0-\x08\x0e-\x1f]", b"".join(head)[:HEAD]) is not None
        if is_binary and match and not header:  # numbers of four bytes, some of which look like text
            raise _binary(path)
        width = int(match[1]) if match and header else _most_common(len(line.split()) - 1 for line in body)
        for line, content in enumerate(itertools.islice(itertools.chain(head, file), header, None), 1 + header):
            if limit is not None and line - header > limit:
                break
            try:
                word, *values = content.rsplit(None, width)
                # Python reads 1_000 as a number; a data file does not
                vector = [] if content.count(b"_") > word.count(b"_") else [float(value) for value in values]
                name = word.decode()
            except ValueError:  # a field is not a number, or the word is not UTF-8
                vector = []
            if width < 1 or len(vector) != width:
                bad.append(line)
            elif index.setdefault(name, len(index)) == len(lines):  # the first of two equal words counts
                numbers.extend(vector)
                lines.append(line)
    vectors = np.frombuffer(numbers, np.float32).reshape(-1, width) if lines else np.zeros((0, 1), np.float32)
    # a zero vector has no direction: its cosine would be 0/0
    usable = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    bad += np.asarray(lines)[~usable].tolist()
    if not usable.any() and is_binary:
        raise _binary(path)
    if not usable.any():
        raise InputError(f"{path}:1: no line holds a word and its vector: give a GloVe or word2vec text file")
    if bad:
        note(f"{path}:{min(bad)}: no word with a vector; lines left out: {len(bad)}")
    return [name for name, used in zip(index, usable.tolist(), strict=True) if used], _unit(vectors[usable])


def _binary(path: Path) -> InputError:
    return InputError(
        f"{path}: binary, as word2vec's .bin: give fastText's .vec, or write it as text, as gensim does:"
        f" KeyedVectors.load_word2vec_format({path.name!r}, binary=True).save_word2vec_format('vectors.txt')"
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The lines of a file, or of one that is compressed by gzip, whatever its name.

    Raises:
        InputError: it is an archive or no text, or its compression is damaged.
    """
    with path.open("rb") as file:
        begin = file.read(HEAD)
    if begin.startswith(b"PK\3\4"):
        raise InputError(f"{path}: a zip archive: unpack it, and give the text file of one width in it")
    is_gzip = begin.startswith(b"\x1f\x8b")
    if not is_gzip and (kind := foreign_kind(begin)):
        raise InputError(f"{path}: {kind}")
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as opened:
            yield opened
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged ({error}): fetch or compress it anew") from None


def _most_common(widths: Iterable[int]) -> int:
    """The most common width; 0 if there is none."""
    counts = Counter(widths)
    return max(counts, key=lambda width: counts[width], default=0)


def _numbers_at_the_end(line: bytes) -> int:
    count = 0
    with contextlib.suppress(ValueError):
        for field in reversed(line.split()[1:]):  # the word may be a number itself
            float(field)
            count += 1
    return count


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Divide each vector by its norm, in place, because the vectors of a file can fill half the memory."""
    # Squares in float32 overflow above 1e38 and vanish below 1e-38. So each vector is first scaled by a power of two,
    # which changes no digit, until its largest number is about 1.
    _, exponents = np.frexp(np.maximum(vectors.max(axis=1), -vectors.min(axis=1)))
    np.ldexp(vectors, -exponents[:, None], out=vectors)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors
