"""Checks that a CoNLL file has words in its first column and tags in its last. Others would be learnt silently."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tinybert_jax.errors import InputError

OUTSIDE = "O"
TAG = re.compile("O|[BIESLUM]-.+")
TAG_TITLE = re.compile("tags?|labels?|ner|iob|bio|ner[_ -]tags?")  # names of a column of tags in a header
SEPARATORS = {",": "commas", ";": "semicolons", "|": "bars"}

Column = Sequence[tuple[str, ...]]  # of the words of each sentence


def check_columns(path: Path, words: Column, tags: Column, lines: Sequence[int]) -> None:
    """Refuse a file whose first column is not words, or whose last column, if there are several, is not tags.

    Args:
        path: the file's name in errors.
        words: the first column.
        tags: the last column.
        lines: the line numbers of the sentences' first words.

    Raises:
        InputError: `path:line: what is wrong and what to do`.
    """
    if tags == words:  # of one column
        cells = [word for sentence in words for word in sentence]
        for sign, name in SEPARATORS.items():
            if len(cells) > 1 and all(sign in cell for cell in cells):
                raise InputError(f"{path}:{lines[0]}: {name} separate the columns: write spaces or tabs between them")
        return
    _check_first_column(path, words, lines)
    _check_tags(path, words, tags, lines)


def _check_first_column(path: Path, words: Column, lines: Sequence[int]) -> None:
    """Refuse a first column that numbers the words, as in CoNLL-U, or is the document's name, as in CoNLL-2012."""
    several = [sentence for sentence in words if len(sentence) > 1]
    if several and all(re.fullmatch("1|1-[0-9]+", sentence[0]) for sentence in words):
        problem = "numbers the words, as in CoNLL-U"
        if not all(re.fullmatch("[12]", sentence[1]) for sentence in several):
            return
    elif len(several) > 1 and len({word for sentence in words for word in sentence}) == 1:
        problem = f"is {words[0][0]!r} everywhere"
    else:
        return
    raise InputError(
        f"{path}:{lines[0]}: the first column must be the word, and {problem}: keep the columns of the word and of the"
        " tag, for example with: cut -f2,4"
    )


def _check_tags(path: Path, words: Column, tags: Column, lines: Sequence[int]) -> None:
    """Refuse a header, and a file in which the tags come before the words."""
    if words[0][0].casefold() in ("word", "words", "token", "tokens") and TAG_TITLE.fullmatch(tags[0][0].casefold()):
        raise InputError(f"{path}:{lines[0]}: the line is a header: remove it")
    first, last = ({cell for sentence in column for cell in sentence} for column in (words, tags))
    if first != {OUTSIDE} and all(map(TAG.fullmatch, first)) and not all(map(TAG.fullmatch, last)):
        raise InputError(f"{path}:{lines[0]}: the first column has the tags: write the word first and its tag last")
