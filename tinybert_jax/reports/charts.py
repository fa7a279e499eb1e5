"""Small drawings as SVG: lines and points over two axes. Colours are classes, which the page's style sheet defines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from tinybert_jax.reports.document import printable

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 40  # margins
COLOURS = 8  # classes s0 to s7; further series start again from s0
MOST_POINTS = 240  # in a line
LOG_FROM = 30  # an axis is logarithmic if the ratio of its largest to its smallest number is at least this
TICKS = 5
RADIUS, LEAST, LARGEST = 4.0, 1.5, 9.0  # radius of a dot, and the range of radii that grow with a count
NAME = 12  # the width and height of a letter beside a dot


class Series(NamedTuple):
    """The name of a line or mark, and its points."""

    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """The range of an axis, and the numbers of its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """The position of a value between the ends, in [0, 1]."""
        if self.logarithmic:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], logarithmic: bool | None = None) -> Axis:
    """An axis for these values. By default it is logarithmic if they are positive and far apart.

    >>> axis([0.0, 9.0]).ticks
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    >>> axis([2.0, 400.0]).ticks
    (1.0, 10.0, 100.0, 1000.0)
    """
    low, high = min(values), max(values)
    if logarithmic is None:
        logarithmic = low > 0 and high > LOG_FROM * low
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last += first == last
        steps = (1.0, 2.0, 5.0) if last - first < 3 else (1.0,)
        ticks = [step * 10.0**power for power in range(first, last) for step in steps] + [10.0**last]
        below = [tick for tick in ticks if tick <= low]
        above = [tick for tick in ticks if tick >= high]
        kept = tuple(tick for tick in ticks if below[-1] <= tick <= above[0])
        kept = kept if len(kept) > 1 else (kept[0], 10 * kept[0])
        return Axis(kept[0], kept[-1], kept, True)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-300):
        room = 0.1 * abs(high) or 0.1
        low, high = low - room, high + room
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(round(i * step, 12) for i in range(first, last + 1)))


UNIT = Axis(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


def lines(series: Sequence[Series], x_label: str, y_label: str, alt: str, dots: bool = False) -> str:
    """A line for each series."""
    points = [point for one in series for point in one.points]
    x, y = axis([px for px, _ in points], False), axis([py for _, py in points])
    drawn = []
    for number, one in enumerate(series):
        placed = [_placed(x, y, point) for point in thinned(one.points)]
        drawn.append(f'<polyline class="line s{number % COLOURS}" points="{" ".join(placed)}"/>')
        if dots or len(one.points) == 1:
            drawn += [_dot(at, number) for at in placed]
    return _figure(x, y, x_label, y_label, alt, drawn)


def marks(points: Mapping[int, Series], x_label: str, y_label: str, alt: str, logarithmic: bool) -> str:
    """A dot for each series at its only point, with its name above it. The names of dots that overlap are in a row."""
    x = axis([px for one in points.values() for px, _ in one.points], logarithmic)
    y = axis([py for one in points.values() for _, py in one.points], False)
    drawn, named = [], list[tuple[float, float]]()
    for number, one in points.items():
        at = _placed(x, y, one.points[0])
        left, top = map(float, at.split(","))
        while any(abs(left - other) < NAME and abs(top - beside) < NAME for other, beside in named):
            left += NAME
        named.append((left, top))
        drawn += [_dot(at, number), f'<text class="mark" x="{left:.1f}" y="{top - 8:.1f}">{_text(one.name)}</text>']
    return _figure(x, y, x_label, y_label, alt, drawn)


def reliability(
    points: Sequence[tuple[float, float]], counts: Sequence[int], x_label: str, y_label: str, alt: str
) -> str:
    """A line in the unit square, with the diagonal. The area of each point's dot grows with its count."""
    corner, other = (_placed(UNIT, UNIT, point) for point in ((0.0, 0.0), (1.0, 1.0)))
    placed = [_placed(UNIT, UNIT, point) for point in points]
    drawn = [f'<polyline class="diagonal" points="{corner} {other}"/>']
    drawn.append(f'<polyline class="line s0" points="{" ".join(placed)}"/>')
    drawn += [_dot(at, 0, LARGEST * math.sqrt(count / max(counts))) for at, count in zip(placed, counts, strict=True)]
    return _figure(UNIT, UNIT, x_label, y_label, alt, drawn)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of a line's points, evenly spaced, including the last.

    >>> len(thinned([(float(i), 0.0) for i in range(1000)])), thinned([(0.0, 1.0)])
    (240, [(0.0, 1.0)])
    """
    if len(points) <= MOST_POINTS:
        return [*points]
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _placed(x: Axis, y: Axis, point: tuple[float, float]) -> str:
    left = LEFT + x.share(point[0]) * (WIDTH - LEFT - RIGHT)
    top = HEIGHT - BOTTOM - y.share(point[1]) * (HEIGHT - TOP - BOTTOM)
    return f"{left:.1f},{top:.1f}"


def _dot(at: str, number: int, radius: float = RADIUS) -> str:
    left, top = at.split(",")
    return f'<circle class="dot s{number % COLOURS}" cx="{left}" cy="{top}" r="{max(radius, LEAST):.1f}"/>'


def _figure(x: Axis, y: Axis, x_label: str, y_label: str, alt: str, drawn: Sequence[str]) -> str:
    """The drawing with its axes. `alt` is its text for screen readers."""
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y.ticks:
        top = float(_placed(x, y, (x.low, tick)).split(",")[1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks:
        left = float(_placed(x, y, (tick, y.low)).split(",")[0])
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{left:.1f}" y="{base + 15}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + right) / 2
    across = f'x="{middle}" y="{HEIGHT - 6}" text-anchor="middle"'
    up = f'transform="translate(12 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle"'
    labels = f'<text class="axis" {across}>{_text(x_label)}</text><text class="axis" {up}>{_text(y_label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(alt)}">'
        f"{''.join(parts)}{''.join(drawn)}{labels}</svg>"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _number(value: float) -> str:
    """A tick's number as text, with k for thousands and M for millions.

    >>> _number(0.2), _number(2000.0), _number(1500000.0)
    ('0.2', '2k', '1.5M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
