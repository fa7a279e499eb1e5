"""More pairs of texts from few, for a teacher to label.

Similar and random pairs are those of Augmented SBERT (arXiv 2010.08240, section 3.1), with TF-IDF in place of BM25.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

Pair = tuple[str, str]

FEW_PAIRS = 1000  # with fewer rows of pairs, `distill` and `shrink` recombine them
RECOMBINED = 5000  # up to this number of rows
BLOCK = 256  # rows whose similarities are computed at once
DECIMALS = 4  # of similarities: the last bits depend on the processor
LEFT_OUT = 0.1, 0.5  # the least and the largest share of words


def recombine(pairs: Sequence[Pair], count: int, seed: int = 0) -> list[Pair]:
    """New pairs of the texts of rows, a third of each kind:

    - similar: a first text with a second text of another row that is like it;
    - random: a first text with any second text;
    - shortened: a text with itself, with some words left out of one of the two. Among the others, few pairs are close
      in meaning.

    Args:
        pairs: the rows [n].
        count: number of new pairs. There are fewer if the texts have not so many.
        seed: seed of the random choices.

    Returns:
        The new pairs, each once, and none of `pairs`.
    """
    firsts, seconds = ([*dict.fromkeys(side)] for side in zip(*pairs, strict=True))
    random = np.random.default_rng(seed)
    kinds = (
        _similar(firsts, seconds, count),
        _at_random(firsts, seconds, count, random),
        _shortened([*dict.fromkeys([*firsts, *seconds])], count, random),
    )
    in_turn = (pair for turn in itertools.zip_longest(*kinds) for pair in turn if pair is not None)
    existing = set(pairs)
    return [*dict.fromkeys(pair for pair in in_turn if pair not in existing)][:count]


def _similar(firsts: Sequence[str], seconds: Sequence[str], count: int) -> list[Pair]:
    """At least `count` pairs if there are so many, by the cosine of TF-IDF vectors: each first text's nearest second
    text, then each one's next."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes half a second

    each = min(math.ceil(count / len(firsts)) + 1, len(seconds))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit([*firsts, *seconds])  # of any script
    first_vectors, second_vectors = vectorizer.transform(firsts), vectorizer.transform(seconds).T
    blocks = []
    for start in range(0, len(firsts), BLOCK):
        cosines = (first_vectors[start : start + BLOCK] @ second_vectors).toarray().round(DECIMALS)
        blocks.append(np.argsort(-cosines, axis=1, kind="stable")[:, :each].copy())  # not a view of all columns
    nearest = np.concatenate(blocks)
    return [
        (first, seconds[number]) for rank in nearest.T.tolist() for first, number in zip(firsts, rank, strict=True)
    ]


def _at_random(firsts: Sequence[str], seconds: Sequence[str], count: int, random: np.random.Generator) -> list[Pair]:
    """At least `count` pairs if there are so many, each once."""
    total = len(firsts) * len(seconds)
    numbers = random.choice(total, min(2 * count, total), replace=False)
    return [(firsts[number // len(seconds)], seconds[number % len(seconds)]) for number in numbers.tolist()]


def _shortened(texts: Sequence[str], count: int, random: np.random.Generator) -> list[Pair]:
    """At least `count` pairs of a text and a part of its words. The share that is left out is uniform in LEFT_OUT."""
    pairs: list[Pair] = []
    for text in [*texts] * math.ceil(count / len(texts)):
        words = text.split()
        kept = random.random(len(words)) >= random.uniform(*LEFT_OUT)
        short = " ".join(itertools.compress(words, kept)) or text
        pairs.append((text, short) if random.random() < 0.5 else (short, text))
    return pairs
