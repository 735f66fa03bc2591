# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG: no script, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
POINTS = 240  # of a line; more would be closer than a pixel
LONG = 40  # steps from which on a line is smoothed

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it is, shown where the pointer rests on it.
        values: Its heights; None where there is none.
        colour: Number of its colour.
    """

    name: str
    values: Sequence[float | None]
    colour: int = 0


def bars(values: Sequence[tuple[str, float | None]], top: float) -> str:
    """Horizontal bars, one below the other, as wide as where they are put.

    Args:
        values: CSS class and length of each; None draws none.
        top: The length that fills the width.
    """
    parts = []
    for place, (kind, value) in enumerate(values):
        y = 1 + 10 * place
        parts.append(f'<rect class="track" y="{y}" width="100%" height="8" rx="4"/>')
        if value is not None and top > 0:
            share = min(100.0, max(0.4, 100 * value / top))
            parts.append(
                f'<rect class="{escape(kind)}" y="{y}" width="{share:.2f}%" height="8" rx="4"/>'
            )
    height = 10 * len(values)
    return f'<svg class="bars" height="{height}" aria-hidden="true">{"".join(parts)}</svg>'


def stacked(values: Sequence[float]) -> str:
    """One bar whose parts are as long as the values are large, in the colours 0, 1, ...."""
    total, x, parts = sum(values), 0.0, []
    for colour, value in enumerate(values):
        share = 100 * value / total if total > 0 else 0.0
        parts.append(
            f'<rect class="c{colour}" x="{x:.2f}%" width="{share:.2f}%" height="14" rx="2"/>'
        )
        x += share
    return f'<svg class="bars" height="14" aria-hidden="true">{"".join(parts)}</svg>'


def line_chart(lines: Sequence[Line], label: str, unit: str = 'step') -> str:
    """Lines over the steps of a search; empty where no line has two points.

    Long lines are drawn twice, as they are and as a running mean.

    Args:
        lines: At least one value each.
        label: What the chart shows, for those who cannot see it.
        unit: What is counted along the width.
    """
    shown = [line for line in lines if sum(v is not None for v in line.values) > 1]
    if not shown:
        return ''
    length = max(len(line.values) for line in shown)
    known = [v for line in shown for v in line.values if v is not None]
    low, high, ticks = _ticks(min(known), max(known))

    def x_of(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(1, length - 1)

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [_grid(ticks, length, x_of, y_of, unit)]
    for line in shown:
        drawn = _points(line)
        css, smooth = f's{line.colour}', len(drawn) >= LONG
        if smooth:
            parts.append(_path(_thinned(drawn), x_of, y_of, f'faint {css}'))
            drawn = _running_mean(drawn)
        path = _path(_thinned(drawn), x_of, y_of, css)
        step, value = drawn[-1]
        end = f'<circle class="c{line.colour}" cx="{x_of(step):.1f}" cy="{y_of(value):.1f}" r="3"/>'
        parts.append(f'<g><title>{escape(line.name)}</title>{path}{end}</g>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def spark(line: Line, label: str) -> str:
    """One small line without axes; empty where it has no two points."""
    drawn = _points(line)
    if len(drawn) < 2:
        return ''
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    span, length = (high - low) or 1.0, len(line.values)
    path = _path(
        _thinned(drawn),
        lambda step: 3 + 114 * (step - 1) / max(1, length - 1),
        lambda value: 3 + 26 * (high - value) / span,
        f's{line.colour}',
    )
    return (
        f'<svg class="spark" viewBox="0 0 120 32" role="img" aria-label="{escape(label)}">'
        f'<title>{escape(label)}</title>{path}</svg>'
    )


def _points(line: Line) -> list[Point]:
    return [(float(step), v) for step, v in enumerate(line.values, start=1) if v is not None]


def _grid(ticks: Sequence[float], length: int, x_of: Scale, y_of: Scale, unit: str) -> str:
    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in _whole_ticks(length):
        parts.append(
            f'<text x="{x_of(step):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f'{step}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(unit)}</text>')
    return ''.join(parts)


def _path(points: Sequence[Point], x_of: Scale, y_of: Scale, css: str) -> str:
    places = ' '.join(f'{x_of(step):.1f},{y_of(value):.1f}' for step, value in points)
    return f'<polyline class="{css}" points="{places}"/>'


def _thinned(points: list[Point]) -> list[Point]:
    """Means of as many neighbours as leave no more points than can be told apart."""
    size = math.ceil(len(points) / POINTS)
    if size == 1:
        return points
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean([s for s, _ in part]), _mean([v for _, v in part])) for part in parts]


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """Each value with those before it, a tenth of the line at most."""
    window = max(3, len(points) // 10)
    values = [value for _, value in points]
    return [
        (step, _mean(values[max(0, i + 1 - window) : i + 1])) for i, (step, _) in enumerate(points)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round limits around two values, and round numbers between them."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    size = _round_size((high - low) / 4)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    ticks = [round(size * i, 10) for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _whole_ticks(length: int) -> list[int]:
    size = max(1, round(_round_size(length / 5)))
    return [1, *range(size if size > 1 else 2, length + 1, size)]


def _round_size(rough: float) -> float:
    power = 10 ** math.floor(math.log10(rough))
    return next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
