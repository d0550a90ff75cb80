"""Line charts as SVG, for pages that need no other file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 24, 40


class Series(NamedTuple):
    """A line: its name in the legend, its points (x, y), and its colour (CSS)."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "#2463a8"


class Mark(NamedTuple):
    """A vertical line at x, with a label."""

    x: float
    label: str


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, marks: Sequence[Mark] = (), log_y: bool = False
) -> str:
    """A line chart as an SVG element of the width of its container, whose horizontal axis starts at 0.

    Points that cannot be drawn (not finite, or not positive on a logarithmic axis) are left out.

    Args:
        series: the lines.
        x_label, y_label: the labels of the axes.
        marks: vertical lines; those outside of the chart are left out.
        log_y: make the vertical axis logarithmic.
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
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-_HEIGHT / 2}" y="18" text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = "".join(
        f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in kept if len(kept) > 1
    )
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


class _Axes(NamedTuple):
    """The ranges of a chart, and where its values lie on the page.

    Attributes:
        x_range: the smallest and the largest value across.
        y_range: the same for the heights, in powers of ten where `log_y` is true.
        log_y: True if heights are logarithmic.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_y: bool

    def across(self, x: float) -> float:
        """The distance of a value from the left edge of the picture."""
        low, high = self.x_range
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def height(self, y: float) -> float:
        """The distance of a value from the top edge of the picture."""
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (_scaled(y, self.log_y) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _ticks_of(axes: _Axes) -> Iterator[str]:
    """The grid's lines and the numbers of both axes."""
    for value in _log_ticks(*axes.y_range) if axes.log_y else _ticks(*axes.y_range):
        y = axes.height(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    for tick in _ticks(*axes.x_range):
        x = axes.across(tick)
        yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'


def _mark_lines(axes: _Axes, marks: Sequence[Mark]) -> Iterator[str]:
    """The lines and labels of the marks that lie within the chart."""
    low, high = axes.x_range
    for mark in marks:
        if low <= mark.x <= high:
            x = axes.across(mark.x)
            yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            yield f'<text class="mark" x="{x + 3:.1f}" y="{_TOP - 8}">{escape(mark.label)}</text>'


def _drawable(point: tuple[float, float], log_y: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[1] > 0 or not log_y)


def _scaled(y: float, log_y: bool) -> float:
    return math.log10(y) if log_y else y


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = (high - low) * share or (0.0 if high > low else 0.5)
    return low - room, high + room


def _log_ticks(low: float, high: float) -> list[float]:
    """Values between 10^low and 10^high: powers of ten, or round numbers where those are too few."""
    powers = [10.0**n for n in range(math.ceil(low), math.floor(high) + 1)]
    return powers if len(powers) > 2 else _ticks(10**low, 10**high)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within a range."""
    raw = (high - low) / count
    base = 10 ** math.floor(math.log10(raw))
    step = base * next(m for m in (1, 2, 5, 10) if m * base >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
