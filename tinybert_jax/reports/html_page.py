"""A report as one HTML file that needs no network: it contains its style sheet and drawings, and has no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from tinybert_jax.reports.charts import COLOURS
from tinybert_jax.reports.document import (
    Block,
    Fold,
    Grid,
    Heading,
    Items,
    Picture,
    Pictures,
    Report,
    Section,
    Text,
    printable,
)

# nothing is loaded from elsewhere, even if a row's text contains HTML
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
LIGHT = ("#0b63b0", "#b3470a", "#1b7a45", "#8a2f8f", "#7a6000", "#b0213f", "#00707a", "#565e66")
DARK = ("#6fb4f2", "#f0995f", "#6fcf97", "#dc93e0", "#d9bd4a", "#f2879c", "#5ccbd6", "#b4bcc4")
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "none", "7 3", "2 3", "9 3 2 3")


def _colours(colours: Sequence[str]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


STYLE = (
    f""":root{{color-scheme:light dark;--page:#fff;--ink:#1c2126;--soft:#56606a;--rule:#d5dbe1;--zone:#f4f6f8;
--link:#0b57a4;{_colours(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{--page:#14181c;--ink:#e7ebef;--soft:#a7b1bb;--rule:#3a434c;--zone:#1d2329;
--link:#8cc4ff;{_colours(DARK)}}}}}
"""
    """*{box-sizing:border-box}
body{--back:var(--page);--shade:color-mix(in srgb,var(--soft) 40%,transparent);margin:0;background:var(--back);
color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
header,main,footer,nav{max-width:75rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .5rem}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--rule)}
p,ul{max-width:46rem}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:3px solid var(--link);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;padding:0;max-width:none}
.wide{overflow-x:auto;margin:1rem 0;
background:linear-gradient(to right,var(--back) 50%,transparent) 0 0/3rem 100%,
linear-gradient(to left,var(--back) 50%,transparent) 100% 0/3rem 100%,
linear-gradient(to right,var(--shade),transparent) 0 0/.5rem 100%,
linear-gradient(to left,var(--shade),transparent) 100% 0/.5rem 100%;
background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:separate;border-spacing:0;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0;min-width:16rem}
caption span{display:inline-block;position:sticky;left:0;max-width:calc(100vw - 3.5rem)}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;
overflow-wrap:normal}
th:first-child,.prose th,.prose td{text-align:left}
.prose th,.prose td{overflow-wrap:anywhere;min-width:9rem}
.prose thead th{overflow-wrap:break-word}
.prose tbody th{min-width:14rem;font-weight:400}
thead th{border-bottom:2px solid var(--soft);vertical-align:bottom}
tbody th{font-weight:600;min-width:6rem}
.numbers th:first-child,.shaded th:first-child{position:sticky;left:0;background:var(--back)}
.shaded td{background:color-mix(in srgb,var(--c0) calc(var(--v)*45%),transparent)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem;margin:1rem 0}
figure{--back:var(--zone);margin:0;padding:.75rem;background:var(--back);border-radius:.5rem;min-width:0}
figcaption{font-weight:600}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--rule);stroke-width:1}
.tick,.axis,.mark{fill:var(--soft);font:11px system-ui,sans-serif}
.mark{fill:var(--ink);font-weight:600;text-anchor:middle}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-dasharray:var(--d);stroke-linejoin:round}
.dot{fill:var(--c)}
.diagonal{fill:none;stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
.legend{list-style:none;padding:0;margin:.5rem 0 0;display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:.85rem}
.legend svg{display:inline-block;width:1.6rem;height:.6rem;margin-right:.35rem}
details{margin:.75rem 0}
figure details{font-size:.85rem;margin:.5rem 0 0}
summary{cursor:pointer;font-weight:600;padding:.15rem 0}
footer{color:var(--soft);font-size:.85rem;margin-top:3rem;padding-bottom:2rem}
@media (max-width:40rem){th,td{padding:.3rem .35rem}
.prose th,.prose td{min-width:4.5rem}.prose tbody th{min-width:8.5rem}
header ul,section>ul{padding-left:1.2rem}}
@media print{.wide{overflow:visible}}
""" + "".join(f".s{i}{{--c:var(--c{i});--d:{DASHES[i]}}}" for i in range(COLOURS))
)


def write_html(report: Report) -> str:
    """The whole page."""
    title = _text(report.title)
    links = "".join(f'<li><a href="#{_name(part)}">{_text(part.title)}</a></li>' for part in report.sections)
    body = "".join(_section(part) for part in report.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{title}</h1>{_blocks(report.lead)}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>{body}</main>
<footer>{_text(report.origin)}</footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    name = _name(section)
    heading = f'<h2 id="{name}">{_text(section.title)}</h2>'
    return f'\n<section aria-labelledby="{name}">{heading}{_blocks(section.blocks)}</section>'


def _name(section: Section) -> str:
    """The section's id."""
    return re.sub("[^a-z]+", "-", section.title.lower()).strip("-")


def _blocks(blocks: Sequence[Block]) -> str:
    return "".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"\n<p>{_text(block.text)}</p>"
        case Heading():
            return f"\n<h3>{_text(block.text)}</h3>"
        case Items():
            return f"\n<ul>{''.join(f'<li>{_text(item)}</li>' for item in block.items)}</ul>"
        case Grid():
            return _grid(block)
        case Pictures():
            return f'\n<div class="pictures">{"".join(map(_picture, block.pictures))}</div>'
        case Fold():
            is_open = " open" if block.is_open else ""
            return f"\n<details{is_open}><summary>{_text(block.summary)}</summary>{_blocks(block.blocks)}</details>"


def _grid(grid: Grid) -> str:
    """A table. If it is wider than the screen, it scrolls separately, also by keyboard."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in grid.header)
    rows = []
    for number, (first, *cells) in enumerate(grid.rows):
        shades = [None] * len(cells) if grid.shades is None else grid.shades[number]
        tds = "".join(
            f"<td>{_text(cell)}</td>" if shade is None else f'<td style="--v:{shade:.3f}">{_text(cell)}</td>'
            for cell, shade in zip(cells, shades, strict=True)
        )
        rows.append(f'<tr><th scope="row">{_text(first)}</th>{tds}</tr>')
    kind = "prose" if grid.prose else "shaded" if grid.shades is not None else "numbers"
    return (
        f'\n<div class="wide" role="region" tabindex="0" aria-label="{_text(grid.caption)}"><table class="{kind}">'
        f"<caption><span>{_text(grid.caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _picture(picture: Picture) -> str:
    legend = "".join(f"<li>{_swatch(i, picture.dots)}{_text(name)}</li>" for i, name in picture.legend)
    legend = f'<ul class="legend">{legend}</ul>' if legend else ""
    numbers = ""
    if picture.numbers is not None:
        numbers = f"<details><summary>The numbers</summary>{_grid(picture.numbers)}</details>"
    return f"<figure><figcaption>{_text(picture.caption)}</figcaption>{picture.svg}{legend}{numbers}</figure>"


def _swatch(number: int, is_dot: bool) -> str:
    """A short line or a dot in a series' colour."""
    kind = f"s{number % COLOURS}"
    line = f'<polyline class="line {kind}" points="0,5 26,5"/>'
    drawn = f'<circle class="dot {kind}" cx="13" cy="5" r="4"/>' if is_dot else line
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{drawn}</svg>'


def _text(text: str) -> str:
    """A text escaped for HTML, also for attributes."""
    return escape(printable(text))
