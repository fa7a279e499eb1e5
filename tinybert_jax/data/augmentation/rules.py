"""The table of a preset's rules: which words augmentation replaces, and by which words."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from tinybert_jax.settings.choices import Preset

CANDIDATES = 15  # K of algorithm 1
# Our own list, and the halves that an apostrophe leaves, which are in the authors' list: "won" and "t" of "won't".
STOP_WORDS = frozenset(
    """a about above across after again against all almost alone along already also although always am among an and
    another any anyone anything are around as at away be became because become been before behind being below between
    both but by can cannot could d did do does doing done down during each either else enough even ever every everyone
    everything few for from further had has have having he her here hers herself him himself his how however i if in
    into is it its itself just least less ll m made many may me might mine more most much must my myself near neither
    never no nobody none nor not nothing now o of off often on once only onto or other others ought our ours ourselves
    out over own per perhaps quite rather re s same shall she should since so some someone something still such t than
    that the their theirs them themselves then there therefore these they this those though through thus to together
    too toward towards under until up upon us ve very was we were what whatever when where whether which while who
    whole whom whose why will with within without would yet you your yours yourself yourselves
    ain aren couldn didn doesn don hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
    y""".split()
)


@dataclass(frozen=True)
class Rules:
    """Which words a preset replaces, and by which words.

    `replaces` takes a word as the tokenizer normalises it. Increase `format_version` when the same settings would give
    another table of candidates.
    """

    replaces: Callable[[str], bool]
    asked: int  # number of ids that the masked LM gives for a word; the first 15 words among them are candidates
    in_pairs: bool = False  # the masked sentence is read as a pair with the original sentence
    may_keep_word: bool = True  # a word may be among its candidates
    counts_row: bool = True  # the number of variants includes the row itself
    vectors: int | None = None  # number of word vectors to read from a file; None: all
    format_version: int = 1


@functools.lru_cache(maxsize=2**16)
def _has_only_letters(word: str) -> bool:
    # marks are parts of letters in scripts such as Devanagari
    kinds = {unicodedata.category(c)[0] for c in word}
    return "L" in kinds and kinds <= {"L", "M"}


def _is_word_of_authors(word: str) -> bool:
    return all("a" <= c <= "z" for c in word.lower()) and word.lower() not in STOP_WORDS


# The authors' code drops those of its 15 ids that are not words. It writes the row and N copies of it.
RULES: dict[Preset, Rules] = {
    "default": Rules(_has_only_letters, 2 * CANDIDATES, may_keep_word=False),
    "paper": Rules(lambda word: True, 2 * CANDIDATES),
    "official": Rules(
        _is_word_of_authors, CANDIDATES, in_pairs=True, counts_row=False, vectors=100_000, format_version=2
    ),
}
