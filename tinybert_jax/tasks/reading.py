"""A model's predictions on a split for reports: for each row, whether it is right, and the model's confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tinybert_jax.data.rows import Rows
from tinybert_jax.tasks.classes import FEW, class_rows, confusion
from tinybert_jax.tasks.metrics import RANKING_METRICS
from tinybert_jax.tasks.split import Judged, Reading, Table

BETWEEN = " / "  # between the two texts of a pair
NOTHING = "(none)"  # shown if there is no class, tag or answer


def of_texts(rows: Rows, logits: np.ndarray) -> Reading:
    """Classes or numbers of texts; logits are [n, c], or [n, 1] in regression."""
    from scipy.special import softmax

    assert rows.labels is not None, "what is judged has labels"
    texts = [BETWEEN.join(text) for text in rows.texts]
    if not rows.label_names:
        cells = zip(texts, rows.labels.tolist(), logits[:, 0].tolist(), strict=True)
        return Reading([Judged(text, f"{label:.4g}", f"{x:.4g}", -abs(x - label)) for text, label, x in cells])
    likely, names = softmax(logits, axis=1), rows.label_names
    best, right = likely.argmax(axis=1), likely.argmax(axis=1) == rows.labels
    judged = [
        Judged(text, names[label], names[said], float(said == label), float(row[said]))
        for text, label, said, row in zip(texts, rows.labels, best, likely, strict=True)
    ]
    return Reading(judged, "texts", likely.max(axis=1), right)


def of_pairs(rows: Rows, similarity: np.ndarray) -> Reading:
    """Pairs of texts by the similarity of their vectors [n]. A pair is judged by its rank among all pairs, because
    labels and similarities may have different scales.
    """
    from scipy.stats import rankdata

    assert rows.labels is not None, "what is judged has labels"
    distances = np.abs(rankdata(similarity) - rankdata(rows.labels)) / len(similarity)
    cells = zip(rows.texts, rows.labels.tolist(), similarity.tolist(), distances.tolist(), strict=True)
    return Reading([Judged(BETWEEN.join(text), f"{label:.4g}", f"{x:.3f}", -far) for text, label, x, far in cells])


def of_queries(ranked: Iterable[tuple[str, Sequence[str], np.ndarray, np.ndarray]]) -> Reading:
    """Queries, each with its passages, their scores [n] and their relevance [n].

    The right answer to a query is its most relevant passage, and the model's answer is the passage with the highest
    score. A query is judged by nDCG@10.
    """
    judged = []
    for query, passages, scores, relevance in ranked:
        best, first = (passages[int(values.argmax())] or NOTHING for values in (relevance, scores))
        judged.append(Judged(query, best, first, RANKING_METRICS["ndcg_at_10"](scores, relevance)))
    return Reading(judged)


def of_label_sets(rows: Rows, logits: np.ndarray) -> Reading:
    """Texts with any number of classes; logits are [n, c]. Each class of a text is one decision."""
    from scipy.special import expit

    assert rows.labels is not None, "what is judged has labels"
    likely, said, names = expit(logits), logits > 0, rows.label_names
    right = said == (rows.labels != 0)

    def named(flags: np.ndarray) -> str:
        return ", ".join(names[c] for c in np.flatnonzero(flags)) or NOTHING

    judged = [
        Judged(BETWEEN.join(text), named(label), named(chosen), float(same.all()))
        for text, label, chosen, same in zip(rows.texts, rows.labels, said, right, strict=True)
    ]
    return Reading(judged, "classes of texts", np.maximum(likely, 1 - likely).ravel(), right.ravel())


def of_tags(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], names: Sequence[str], logits: np.ndarray
) -> Reading:
    """Tags of words; logits are those of all words in order, [w, c]. A sentence is right if all its tags are."""
    from scipy.special import softmax

    likely = softmax(logits, axis=1)
    best = likely.argmax(axis=1)
    said = np.split(best, np.cumsum([len(sentence) for sentence in words])[:-1])
    judged = []
    for sentence, gold, ids in zip(words, tags, said, strict=True):
        chosen = [names[i] for i in ids]
        judged.append(
            Judged(" ".join(sentence), _tagged(sentence, gold), _tagged(sentence, chosen), float([*gold] == chosen))
        )
    right = np.array([tag == names[i] for tag, i in zip(_flat(tags), best, strict=True)], bool)
    return Reading(judged, "words", likely.max(axis=1), right)


def tag_tables(tags: Sequence[Sequence[str]], names: Sequence[str], logits: np.ndarray) -> list[Table]:
    """Tables of the model's results for each tag; arguments as in `of_tags`."""
    if not 1 < len(names) <= FEW:
        return []
    numbers = {name: i for i, name in enumerate(names)}
    predicted, labels = logits.argmax(axis=1), np.array([numbers[tag] for tag in _flat(tags)], int)
    each = (np.eye(len(names), dtype=int)[ids] for ids in (predicted, labels))
    (_, *header), rows = class_rows(names, *each)
    return [(["tag", "words", *header[1:]], rows), confusion(names, predicted, labels)]


def of_answers(
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    said: Sequence[tuple[str, float]],
    scores: Iterable[tuple[float, float]],
) -> Reading:
    """Answers to questions: each text with its probability, and its F1 and exact match. An exact match is right."""
    judged, right = [], []
    for question, gold, (text, probability), (f1, exact) in zip(questions, answers, said, scores, strict=True):
        accepted = BETWEEN.join(dict.fromkeys(gold)) or NOTHING
        judged.append(Judged(question, accepted, text or NOTHING, f1, probability))
        right.append(exact == 1)
    return Reading(judged, "answers", np.array([probability for _, probability in said]), np.array(right, bool))


def _flat(tags: Sequence[Sequence[str]]) -> list[str]:
    return [tag for sentence in tags for tag in sentence]


def _tagged(words: Sequence[str], tags: Sequence[str]) -> str:
    """The words with a tag other than O, as word/TAG."""
    return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True) if tag != "O") or NOTHING
