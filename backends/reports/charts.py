"""Line charts as SVG, for pages that must need nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 24, 40


class Series(NamedTuple):
    """A line: its name in the legend, its points, and its colour (CSS)."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "#2463a8"


class Mark(NamedTuple):
    """A vertical line with words."""

    x: float
    label: str


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, marks: Sequence[Mark] = (), log_y: bool = False
) -> str:
    """An SVG element that takes the width of its place; its horizontal axis starts at 0.

    Points that cannot be drawn (not finite, or not positive on a logarithmic axis) are left out.
    """
    kept = [s._replace(points=[p for p in s.points if _drawable(p, log_y)]) for s in series]
    xs = [x for s in kept for x, _ in s.points]
    ys = [_scaled(y, log_y) for s in kept for _, y in s.points]
    if not xs:
        return "<p>Nothing to draw yet.</p>"
    x_range, y_range = _padded(min(0.0, *xs), max(xs), 0.0), _padded(min(ys), max(ys), 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (_scaled(y, log_y) - y_range[0]) / (y_range[1] - y_range[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for value in _log_ticks(*y_range) if log_y else _ticks(*y_range):
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for tick in _ticks(*x_range):
        x, _ = place(tick, kept_y := 10 ** y_range[0] if log_y else y_range[0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for mark in marks:
        if x_range[0] <= mark.x <= x_range[1]:
            x, _ = place(mark.x, kept_y)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="mark" x="{x + 3:.1f}" y="{_TOP - 8}">{escape(mark.label)}</text>')
    for line in kept:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line.points))
        parts.append(f'<polyline points="{path}" stroke="{line.color}"><title>{escape(line.name)}</title></polyline>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-_HEIGHT / 2}" y="18" text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = "".join(
        f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in kept if len(kept) > 1
    )
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


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
    """Round numbers within a range, about so many."""
    raw = (high - low) / count
    base = 10 ** math.floor(math.log10(raw))
    step = base * next(m for m in (1, 2, 5, 10) if m * base >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
