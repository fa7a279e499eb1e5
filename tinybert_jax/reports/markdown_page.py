"""A report as Markdown. Drawings become descriptions in words, and tables of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tinybert_jax.compression.links import markdown
from tinybert_jax.reports.document import Block, Fold, Grid, Heading, Items, Pictures, Report, Text, printable


def write_markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {escaped(report.title)}", *_blocks(report.lead)]
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", *_blocks(section.blocks)]
    return "\n\n".join([*parts, escaped(report.origin)]) + "\n"


def escaped(text: str) -> str:
    """A text in one line, with Markdown's special characters escaped.

    >>> escaped("a|b <i> *c*")
    'a\\\\|b \\\\<i\\\\> \\\\*c\\\\*'
    """
    return re.sub(r"([\\`*_{}\[\]<>|#~&!$])", r"\\\1", printable(text))


def _blocks(blocks: Sequence[Block]) -> Iterable[str]:
    for block in blocks:
        match block:
            case Text():
                yield escaped(block.text)
            case Heading():
                yield f"#### {escaped(block.text)}"
            case Items():
                yield "\n".join(f"- {escaped(item)}" for item in block.items)
            case Grid():
                yield from _grid(block)
            case Pictures():
                for picture in block.pictures:
                    yield f"**{escaped(picture.caption)}.** {escaped(picture.alt)}"
                    if picture.numbers is not None:
                        yield from _grid(picture.numbers)
            case Fold():
                yield f"### {escaped(block.summary)}"
                yield from _blocks(block.blocks)


def _grid(grid: Grid) -> Iterable[str]:
    yield f"**{escaped(grid.caption)}**"
    yield markdown([escaped(cell) for cell in grid.header], [[escaped(cell) for cell in row] for row in grid.rows])
