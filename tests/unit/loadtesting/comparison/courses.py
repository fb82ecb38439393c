"""Courses of made-up runs for tests: seconds of calls whose response times are drawn."""

from __future__ import annotations

import math

import numpy as np
from opsplane_server.loadtesting.metrics.course import CourseFold, Point
from opsplane_server.loadtesting.metrics.histograms import Histogram
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
SCALE = 5


def histogram(values: np.ndarray, scale: int = SCALE) -> Histogram:
    """The histogram of positive values."""
    indices = np.ceil(np.log2(values) * 2**scale).astype(int) - 1
    low = int(indices.min())
    return Histogram.of(
        scale,
        low,
        np.bincount(indices - low).tolist(),
        zero_count=0,
        total=float(values.sum()),
        min=float(values.min()),
        max=float(values.max()),
    )


def rows(
    seed: int,
    *,
    seconds: int = 20,
    endpoints: int = 12,
    calls: int = 40,
    slower: dict[str, float] | None = None,
    failing: dict[str, float] | None = None,
    wobble: float = 0.08,
    ramp: bool = False,
) -> list[ExportRow]:
    """Rows of endpoints `GET /0`, `GET /1`, ...; each call takes some 20 ms and more, with a long tail.

    Whole seconds are slower or faster by `wobble`, and so are those after them, as on real servers. `slower` and
    `failing` give endpoints another speed, and a share of failures. With `ramp` the load grows, and response times
    with it.
    """
    random = np.random.default_rng(seed)
    found, mood = [], 0.0
    for second in range(seconds):
        mood = 0.5 * mood + float(random.normal(0, wobble))
        load = (second + 1) / seconds if ramp else 1.0
        series = []
        for number in range(endpoints):
            name = f"GET /{number}"
            count = int(random.poisson(calls * load))
            if not count:
                continue
            base = (20 + 5 * number) * math.exp(mood) * (slower or {}).get(name, 1.0) * (1 + 2 * load * ramp)
            times = base * np.exp(random.normal(0, 0.3, count)) + random.exponential(2, count)
            failed = int(random.binomial(count, (failing or {}).get(name, 0.0)))
            series.append(Series("Heavy" if number % 2 else "Light", name, count, failed, histogram(times)))
        start = START + second * SECOND
        found.append(ExportRow("a", start, start + SECOND, tuple(series), iterations=1, vus=10))
    return found


def course(*arguments: int, **settings: object) -> list[Point]:
    """The points of `rows`."""
    fold = CourseFold(START)
    fold.add(rows(*arguments, **settings))  # type: ignore[arg-type]
    return fold.points()
