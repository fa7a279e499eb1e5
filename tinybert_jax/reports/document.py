"""The content of a report, without its layout. `html_page` and `markdown_page` write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHORT = 240  # number of characters of a row's text that are shown


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of short paragraphs."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table. Its first column has the names of rows. `shades`, in [0, 1], colour the other cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float]] | None = None
    prose: bool = False  # its cells are texts, not numbers


@dataclass(frozen=True)
class Picture:
    """A drawing, with a description in words, a legend, and its numbers as a table."""

    caption: str
    svg: str
    alt: str
    legend: tuple[tuple[int, str], ...] = ()  # numbers and names of series
    dots: bool = False  # the legend is of dots, not of lines
    numbers: Grid | None = None


@dataclass(frozen=True)
class Pictures:
    """Drawings side by side."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader may open."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A whole report. `lead` comes before the first section; `origin`, at the end, says what wrote it and when."""

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    origin: str


Block = Text | Heading | Items | Grid | Pictures | Fold


def printable(text: str) -> str:
    """The text in one line, without control characters and halves of surrogate pairs.

    >>> printable("a\\tb" + chr(0) + "  c")
    'a b c'
    """
    kept = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", text)
    return " ".join(kept.split())


def shortened(text: str, most: int = SHORT) -> str:
    """The text in one line, cut after a word.

    >>> shortened("one two three", 9)
    'one two …'
    """
    text = printable(text)
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    return (cut.rpartition(" ")[0] or cut).rstrip() + " …"
