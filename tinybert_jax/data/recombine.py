"""More pairs of texts from few: the first text of one row with the second text of another, for a teacher to label.

This is the pair sampling of Augmented SBERT (arXiv 2010.08240, section 3.1), with TF-IDF in the place of BM25.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FEW_PAIRS = 1000  # with fewer rows of pairs, `distill` and `shrink` recombine them
RECOMBINED = 5000  # up to this number of rows
BLOCK = 256  # rows whose similarities are computed at once
DECIMALS = 4  # of similarities: the last bits depend on the processor


def recombine(pairs: Sequence[tuple[str, str]], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """New pairs of a first and a second text of different rows.

    Each first text gets about as many new second texts. One half are the most similar ones by their characters. The
    other half are random: most random pairs have nothing in common, so they alone teach little.

    Args:
        pairs: the rows [n].
        count: number of new pairs; there are fewer if the rows have not so many.
        seed: seed of the random half, and of the order.

    Returns:
        The new pairs, each once, and none of `pairs`.
    """
    firsts, seconds = ([*dict.fromkeys(side)] for side in zip(*pairs, strict=True))
    random = np.random.default_rng(seed)
    each = math.ceil(count / len(firsts))
    near = min(math.ceil(each / 2) + 1, len(seconds))  # one more, because the row's second text is often among them
    existing, made = set(pairs), dict[tuple[str, str], None]()
    for first, similar in zip(firsts, _most_similar(firsts, seconds, near), strict=True):
        at_random = random.permutation(len(seconds))[: 2 * each]
        partners = [pair for number in (*similar, *at_random) if (pair := (first, seconds[number])) not in existing]
        made |= dict.fromkeys([*dict.fromkeys(partners)][:each])
    chosen = [*made]
    return [chosen[number] for number in random.permutation(len(chosen))[:count]]


def _most_similar(firsts: Sequence[str], seconds: Sequence[str], count: int) -> np.ndarray:
    """The numbers [n, count] of the seconds that are most similar to each first, by the cosine of TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes half a second

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit([*firsts, *seconds])  # of any script
    first_vectors, second_vectors = vectorizer.transform(firsts), vectorizer.transform(seconds).T
    blocks = []
    for start in range(0, len(firsts), BLOCK):
        cosines = (first_vectors[start : start + BLOCK] @ second_vectors).toarray().round(DECIMALS)
        blocks.append(np.argsort(-cosines, axis=1, kind="stable")[:, :count])
    return np.concatenate(blocks)
