"""Charts as SVG, inside of a page whose style sheet colours them (page.css).

There are no scripts: the figures of a point are its tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH = 640
HEIGHT = 220
_WIDE = 2 * WIDTH
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 46, 10, 24
_SPARK_WIDTH, _SPARK_HEIGHT = 110, 24
_SPARK_POINTS = 60


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: its name, the class that colours it, and a value for each moment, None where there is none."""

    name: str
    css: str
    values: Sequence[float | None]


def chart(title: str, unit: str, seconds: Sequence[float], lines: Sequence[Line], *, limit: float | None = None) -> str:
    """Lines over the time of the run, from zero. `limit` is drawn across, where one was asked for."""
    known = [value for line in lines for value in line.values if value is not None]
    ticks = ticks_to(max([*known, limit or 0.0], default=0.0))
    x = _scale(0.0, max(seconds[-1], 1e-9), _LEFT, WIDTH - _RIGHT)
    y = _scale(0.0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<figure class="chart"><figcaption>{escape(title)} <span class="unit">{escape(unit)}</span>{_legend(lines)}'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    ]
    parts += [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{short_number(tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{clock(tick)}</text>'
        for tick in _time_ticks(seconds[-1])
    ]
    if limit is not None:
        parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
        )
    labels: list[float] = []
    for line in lines:
        parts.append(f'<path class="line {line.css}" d="{_path(seconds, line.values, x, y)}"/>')
        last = next((value for value in reversed(line.values) if value is not None), None)
        if last is not None and len(lines) > 1:
            # Names of lines that end side by side would cover each other; the legend has them too.
            at = y(last) + 4
            if all(abs(at - other) >= 11 for other in labels):
                labels.append(at)
                parts.append(f'<text class="label" x="{WIDTH - _RIGHT + 5}" y="{at:.1f}">{escape(line.name)}</text>')
    parts += [_hover(seconds, lines, unit, x), "</svg></figure>"]
    return "".join(parts)


def sparkline(values: Sequence[float | None], css: str) -> str:
    """The course of a figure in a cell of a table; of many points the highest of each few."""
    step = max(1, math.ceil(len(values) / _SPARK_POINTS))
    squeezed = [
        max((value for value in values[start : start + step] if value is not None), default=None)
        for start in range(0, len(values), step)
    ]
    top = max((value for value in squeezed if value is not None), default=0.0) or 1.0
    x = _scale(0.0, max(len(squeezed) - 1, 1), 1, _SPARK_WIDTH - 1)
    y = _scale(0.0, top, _SPARK_HEIGHT - 2, 2)
    path = _path(list(range(len(squeezed))), squeezed, x, y)
    return (
        f'<svg class="spark" viewBox="0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}" aria-hidden="true">'
        f'<path class="line {css}" d="{path}"/></svg>'
    )


def ranges(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Median, 95th and 99th percentile of several sets of calls on one logarithmic axis, ms."""
    height, left = 22, 380
    low = min(row[1] for row in rows)
    high = max(row[3] for row in rows)
    first, last = math.floor(math.log10(max(low, 1e-3))), math.ceil(math.log10(max(high, 1e-3)) + 1e-9)
    last = max(last, first + 1)
    x = _scale(float(first), float(last), left, _WIDE - 20)
    bottom = height * len(rows) + 6
    parts = [f'<svg viewBox="0 0 {_WIDE} {bottom + 22}" role="img" aria-label="Response times by endpoint">']
    parts += [
        f'<line class="grid" x1="{x(power):.1f}" x2="{x(power):.1f}" y1="0" y2="{bottom}"/>'
        f'<text class="tick" x="{x(power):.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{short_number(10.0**power)} ms</text>"
        for power in range(first, last + 1)
    ]
    for number, (name, *values) in enumerate(rows):
        middle = height * number + height / 2
        places = [x(math.log10(max(value, 1e-3))) for value in values]
        cut = name if len(name) <= 60 else f"{name[:59]}…"
        tip = f"{name}: p50 {milliseconds(values[0])}, p95 {milliseconds(values[1])}, p99 {milliseconds(values[2])}"
        parts.append(
            f'<g><title>{escape(tip)}</title><rect class="hover" x="0" y="{middle - height / 2:.1f}" width="{_WIDE}" '
            f'height="{height}"/><text class="name" x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">'
            f'{escape(cut)}</text><line class="range" x1="{places[0]:.1f}" x2="{places[2]:.1f}" y1="{middle}" '
            f'y2="{middle}"/>'
        )
        parts += [
            f'<circle class="dot {css}" cx="{place:.1f}" cy="{middle}" r="4.5"/>'
            for css, place in zip(("p50", "p95", "p99"), places, strict=True)
        ]
        parts.append("</g>")
    legend = _legend([Line(name, name, ()) for name in ("p50", "p95", "p99")])
    return (
        f'<figure class="chart wide"><figcaption>Response times by endpoint <span class="unit">ms, logarithmic</span>'
        f"{legend}</figcaption>{''.join(parts)}</svg></figure>"
    )


def ticks_to(highest: float) -> list[float]:
    """Four to six round numbers from 0 to `highest` or just above."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if highest / (power * part) <= 5)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def short_number(value: float) -> str:
    """A number on an axis: `0.5`, `250`, `1.5k`, `2M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """Time since the start of the load: `0:30`, `1:05:00`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def milliseconds(value: float) -> str:
    """`0.42 ms`, `12.3 ms`, `1.25 s`."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


class _scale:  # noqa: N801  # a function that remembers its numbers
    """Maps numbers from `low` to `high` to places from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low = low
        self._start = start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _path(places: Sequence[float], values: Sequence[float | None], x: _scale, y: _scale) -> str:
    """A line that is broken where there is no value; a value between two gaps is a dot."""
    parts = []
    drawing = False
    for place, value in zip(places, values, strict=True):
        if value is None:
            drawing = False
            continue
        at = f"{x(place):.1f} {y(value):.1f}"
        parts.append(f"L{at}" if drawing else f"M{at}h.1")
        drawing = True
    return "".join(parts)


def _time_ticks(length: float) -> list[float]:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((step for step in steps if length / step <= 8), 28800)
    return [float(tick) for tick in range(0, int(length) + 1, step)]


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    return "".join(f'<span class="key {line.css}">{escape(line.name)}</span>' for line in lines)


def _hover(seconds: Sequence[float], lines: Sequence[Line], unit: str, x: _scale) -> str:
    """A strip for each moment that tells its figures to whoever points at it."""
    borders = [x(0.0), *(x((a + b) / 2) for a, b in pairwise(seconds)), x(seconds[-1])]
    parts = []
    for number, second in enumerate(seconds):
        figures = [f"{line.name} {line.values[number]:.4g} {unit}" for line in lines if line.values[number] is not None]
        width = borders[number + 1] - borders[number]
        parts.append(
            f'<rect class="hover" x="{borders[number]:.1f}" y="{_TOP}" width="{width:.1f}"'
            f' height="{HEIGHT - _TOP - _BOTTOM}"><title>{clock(second)}  {escape("  ".join(figures))}</title></rect>'
        )
    return "".join(parts)
