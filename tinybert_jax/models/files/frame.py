"""The special tokens that a tokenizer puts around a text or a pair, and how its tokens mark where a word begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tinybert_jax.errors import InputError

SPACES = ("Ġ", "▁")  # a space in the tokens of byte-level BPE and of SentencePiece


class Frame(NamedTuple):
    """`before A after` around one text, `before A between B after` around a pair.

    BERT has `[CLS] A [SEP] B [SEP]`, RoBERTa `<s> A </s></s> B </s>`.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    has_types: bool  # B and the following `after` have token type 1; False: all types are 0
    space: str  # prefix of the first token of a word after a space; "" if later tokens are marked instead, by ##

    @property
    def word_prefix(self) -> str:
        """The text to put before a single word, so that it gets the same tokens as after a space."""
        return " " if self.space else ""

    def size(self, texts: int) -> int:
        """The number of special tokens around one text or two."""
        return len(self.before) + len(self.between) * (texts - 1) + len(self.after)

    def put(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], int]:
        """One text or a pair with special tokens, and the index where token type 1 begins (the length if nowhere)."""
        if second is None:
            ids = [*self.before, *first, *self.after]
            return ids, len(ids)
        ids = [*self.before, *first, *self.between]
        pair_start = len(ids)
        ids += [*second, *self.after]
        return ids, pair_start if self.has_types else len(ids)


def frame_of(tokenizer: Any) -> Frame:
    """The frame of a tokenizer with a Rust backend.

    Raises:
        InputError: special tokens are inside a text, or one text and a pair begin or end with different ones.
    """
    pair, single = (tokenizer(*texts).encodings[0] for texts in (("a a", "a"), ("a a",)))
    of_text = pair.sequence_ids
    first, second = ([i for i, text in enumerate(of_text) if text == number] for number in (0, 1))
    if first and second:
        ids = pair.ids
        frame = Frame(
            before=tuple(ids[: first[0]]),
            between=tuple(ids[first[-1] + 1 : second[0]]),
            after=tuple(ids[second[-1] + 1 :]),
            has_types=pair.type_ids[second[0]] > 0,
            space=next((space for space in SPACES if any(token.startswith(space) for token in pair.tokens)), ""),
        )
        texts = [ids[i] for i in first], [ids[i] for i in second]
        if frame.put(*texts)[0] == ids and frame.put(texts[0])[0] == single.ids:
            return frame
    raise InputError(
        "the tokenizer does not set its special tokens around a pair as around a text: take a BERT's or a RoBERTa's"
    )
