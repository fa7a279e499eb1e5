"""The words nearest to a word by cosine: in a GloVe or word2vec file, or in a model's own word embeddings."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.config import InputError, Preset
from tinybert_jax.rows import cache_folder, cached

FORMAT_VERSION = 1  # of the cached neighbours; count it up when the same file would give others
OFFICIAL_ROWS = 100_000  # of the vectors that the original code reads
BLOCK = 1024  # queries per matrix product, fewer where the vectors are many
BLOCK_SCORES = 2**26  # at most, of one matrix product; they and their order take 16 bytes each
CANDIDATES = 15  # K of algorithm 1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """`find(words)` gives each word's nearest ones, nearest first; none for a word that is not known."""

    find: Callable[[list[str]], list[list[str]]]
    fingerprint: str  # of all that determines them


def load_neighbours(
    path: Path | None, table: np.ndarray, tokenizer: Any, preset: Preset, cache_dir: Path | None = None
) -> Neighbours:
    """Neighbours in the file of vectors, or, where there is none, in the word embeddings; a note says so.

    Args:
        path: a GloVe or word2vec text file.
        table: the model's word embeddings, float32 [v, d].
        tokenizer: whose ids the table has.
        preset: `official` reads the first 100,000 vectors of the file, as the original code does.
        cache_dir: as in `rows.read_rows`.

    Raises:
        InputError: the file is missing or holds no vectors.
    """
    if path is not None:
        return vector_neighbours(path, OFFICIAL_ROWS if preset == "official" else None, cache_dir)
    print("note: no --glove FILE: words of several pieces take the model's own embeddings instead", file=sys.stderr)
    return embedding_neighbours(table, tokenizer)


def vector_neighbours(path: Path, limit: int | None = None, cache_dir: Path | None = None) -> Neighbours:
    """Neighbours in a GloVe or word2vec text file, kept in the cache: vectors are read only for a new set of words.

    Args:
        path: the file.
        limit: read only so many of its first vectors; None: all.
        cache_dir: as in `rows.read_rows`.

    Raises:
        InputError: the file cannot be read; when it is searched, that it holds no vectors.
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
            # one more than asked for: the nearest of all is the word itself
            found = iter(nearest(vectors[known], vectors, CANDIDATES + 1))
            near = [[] if row < 0 else [names[i] for i in next(found) if i != row][:CANDIDATES] for row in rows]
            (folder / "neighbours.json").write_text(json.dumps(near), "utf-8")

        def load(folder: Path) -> list[list[str]]:
            return json.loads((folder / "neighbours.json").read_text("utf-8"))

        return cached(cache_folder(cache_dir) / "neighbours" / key, build, load)

    return Neighbours(find, hashlib.sha256(json.dumps(form).encode()).hexdigest())


def embedding_neighbours(table: np.ndarray, tokenizer: Any) -> Neighbours:
    """Neighbours among the vocabulary's whole words; a word is the mean of its pieces' embeddings.

    Args:
        table: word embeddings, float32 [v, d].
        tokenizer: whose ids the table has.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    rows = np.flatnonzero(whole_words(tokenizer))
    vectors = _unit(table[rows])

    def find(words: list[str]) -> list[list[str]]:
        pieces = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        queries = np.zeros((len(words), table.shape[1]), np.float32)
        for i, ids in enumerate(pieces):
            queries[i] = table[ids].mean(axis=0)
        found = rows[nearest(_unit(queries), vectors, CANDIDATES + 1)]
        return [
            [names[i] for i in row if [i] != ids][:CANDIDATES] for row, ids in zip(found.tolist(), pieces, strict=True)
        ]

    return Neighbours(find, "word embeddings")


def whole_words(tokenizer: Any) -> np.ndarray:
    """Which ids of a vocabulary are words: bool [v], False for special and unused tokens and for later pieces."""
    special = set(tokenizer.all_special_tokens)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array(
        [t not in special and not t.startswith("##") and not t.startswith("[unused") for t in tokens], bool
    )


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """The rows of highest cosine, highest first.

    Args:
        queries: unit vectors, float32 [n, d].
        vectors: unit vectors, float32 [v, d].
        k: how many.

    Returns:
        Row numbers of `vectors`, int64 [n, min(k, v)].
    """
    k = min(k, len(vectors))
    found = np.zeros((len(queries), k), np.int64)
    block = max(1, min(BLOCK, BLOCK_SCORES // len(vectors)))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ vectors.T
        # sorted by number first, so that of equal scores the earlier row wins
        best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        found[start : start + block] = np.take_along_axis(best, order, axis=1)
    return found


def read_vectors(path: Path, limit: int | None = None) -> tuple[list[str], np.ndarray]:
    """The words of a GloVe or word2vec text file, and their unit vectors, float32 [v, d].

    A line is a word, which may hold spaces, and d numbers. A first line `v d`, as word2vec writes it, is recognised.
    Lines that cannot be used are left out, and a note on standard error counts them.

    Raises:
        InputError: no line holds a word and a vector.
    """
    index: dict[str, int] = {}
    numbers, lines = array("f"), array("q")
    bad: list[int] = []
    with path.open("rb") as file:
        head = list(itertools.islice(file, 100))
        header = bool(head) and len(head[0].split()) == 2 and all(field.isdigit() for field in head[0].split())
        widths = Counter(len(line.split()) - 1 for line in head[header:])  # a word with spaces makes a line wider
        width = int(head[0].split()[1]) if header else max(widths, key=lambda w: widths[w], default=0)
        for line, content in enumerate(itertools.islice(itertools.chain(head, file), header, None), 1 + header):
            if limit is not None and line - header > limit:
                break
            try:
                word, *values = content.rsplit(None, width)
                vector = [float(value) for value in values]
                name = word.decode()
            except ValueError:  # a field is no number, or the word not UTF-8
                vector = []
            if width < 1 or len(vector) != width:
                bad.append(line)
            elif index.setdefault(name, len(index)) == len(lines):  # of a word that comes twice, the first counts
                numbers.extend(vector)
                lines.append(line)
    vectors = np.frombuffer(numbers, np.float32).reshape(-1, width) if lines else np.zeros((0, 1), np.float32)
    # a zero has no direction: its cosine is 0/0
    usable = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    bad += np.asarray(lines)[~usable].tolist()
    if not usable.any():
        raise InputError(f"{path}:1: no line holds a word and its vector: give a GloVe or word2vec text file")
    if bad:
        print(f"note: {path}:{min(bad)}: no word with a vector; {len(bad)} such lines are left out", file=sys.stderr)
    return [name for name, used in zip(index, usable.tolist(), strict=True) if used], _unit(vectors[usable])


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors, each divided by its norm, in place: a file of them can fill half the memory."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors
