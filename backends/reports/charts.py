"""Line charts as SVG, for pages that must need no other files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")

_WIDTH, _HEIGHT = 720, 320
# Room for letters as large as a phone shows them, where the chart is half as wide as its units.
_LEFT, _RIGHT, _TOP, _BOTTOM = 106, 40, 34, 62
_LETTER, _LINE = 12.6, 24


class Series(NamedTuple):
    """A line: its name in the legend, its points, and its colour (CSS)."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "#2463a8"


class Mark(NamedTuple):
    """A labelled vertical line at `x`."""

    x: float
    label: str


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, marks: Sequence[Mark] = (), log_y: bool = False
) -> str:
    """The HTML of a line chart: an SVG element that fills the available width, and a legend.

    The horizontal axis starts at 0, or at the smallest x if that is negative. Points that cannot be drawn (not finite,
    or not positive on a logarithmic axis) are left out.
    """
    kept = [s._replace(points=[p for p in s.points if _drawable(p, log_y)]) for s in series]
    xs = [x for s in kept for x, _ in s.points]
    ys = [_scaled(y, log_y) for s in kept for _, y in s.points]
    if not xs:
        return "<p>Nothing to draw yet.</p>"
    axes = _Axes(_padded(min(0.0, *xs), max(xs), 0.0), _padded(min(ys), max(ys), 0.05), log_y)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">',
        *_ticks_of(axes),
        *_mark_lines(axes, marks),
    ]
    for line in kept:
        path = " ".join(f"{axes.across(x):.1f},{axes.height(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline points="{path}" stroke="{line.color}"><title>{escape(line.name)}</title></polyline>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-_HEIGHT / 2}" y="18" text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = "".join(
        f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in kept if len(kept) > 1
    )
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


class _Axes(NamedTuple):
    """The ranges of a chart's axes, and the positions of values in its picture.

    Attributes:
        x_range: the smallest and the largest horizontal value.
        y_range: the smallest and the largest vertical value; their decimal logarithms if `log_y` is true.
        log_y: True if the vertical axis is logarithmic.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_y: bool

    def across(self, x: float) -> float:
        """The horizontal position of a value, from the left edge of the picture."""
        low, high = self.x_range
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def height(self, y: float) -> float:
        """The vertical position of a value, from the top edge of the picture."""
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (_scaled(y, self.log_y) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _ticks_of(axes: _Axes) -> Iterator[str]:
    """The SVG of the grid's lines and of the numbers on both axes."""
    values = _log_ticks(*axes.y_range) if axes.log_y else _ticks(*axes.y_range)
    for value, y in _apart([(value, axes.height(value), _LINE) for value in values]):
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
    steps = [(tick, axes.across(tick), _LETTER * (len(number(tick)) + 1)) for tick in _ticks(*axes.x_range)]
    for tick, x in _apart(steps):
        yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 22}" text-anchor="middle">{number(tick)}</text>'


def _mark_lines(axes: _Axes, marks: Sequence[Mark]) -> Iterator[str]:
    """The SVG of the marks that lie within the chart; labels that would cover each other are left out."""
    low, high = axes.x_range
    shown = [(mark, axes.across(mark.x)) for mark in marks if low <= mark.x <= high]
    for _, x in shown:
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    fitting = [(m, x, _LETTER * len(m.label)) for m, x in shown if x + _LETTER * len(m.label) <= _WIDTH]
    for mark, x in _apart(fitting):
        yield f'<text class="mark" x="{x + 3:.1f}" y="{_TOP - 8}">{escape(mark.label)}</text>'


def _apart(labels: Iterable[tuple[_T, float, float]]) -> Iterator[tuple[_T, float]]:
    """What labels stand for, and where: those that do not cover the one before.

    Args:
        labels: what each stands for, its place, and the room that it takes from there on, in the order of the axis.
    """
    before: tuple[float, float] | None = None
    for what, place, room in labels:
        if before is None or abs(place - before[0]) >= (before[1] + room) / 2:
            before = place, room
            yield what, place


def number(value: float) -> str:
    """A number for an axis, in few letters: 0.25, 1500, 400k, 1.2M, 1e-5."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 1e4 <= abs(value) < 1e12 and abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    if 1e-3 <= abs(value) < 1e4 or value == 0:
        return f"{value:.4g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _drawable(point: tuple[float, float], log_y: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[1] > 0 or not log_y)


def _scaled(y: float, log_y: bool) -> float:
    return math.log10(y) if log_y else y


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = (high - low) * share or (0.0 if high > low else 0.5)
    return low - room, high + room


def _log_ticks(low: float, high: float) -> list[float]:
    """Values between 10^low and 10^high: powers of ten, at most seven, or round numbers where those are too few."""
    powers = [10.0**n for n in range(math.ceil(low), math.floor(high) + 1)]
    if len(powers) > 2:
        return powers[:: math.ceil(len(powers) / 7)]
    round_ones = [m * 10.0**n for n in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [value for value in round_ones if low <= math.log10(value) <= high]
    return inside if len(inside) > 2 else _ticks(10**low, 10**high)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range, about `count` of them."""
    raw = (high - low) / count
    base = 10 ** math.floor(math.log10(raw))
    step = base * next(m for m in (1, 2, 5, 10) if m * base >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
