"""Histograms and rows to test with."""

import math
from collections.abc import Sequence

from hypothesis import strategies as st
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series

ORIGIN = 1_700_000_000 * SECOND


def histogram_of(values: Sequence[float], scale: int) -> Histogram:
    """What an exporter makes of values at this scale."""
    buckets: dict[int, int] = {}
    for value in values:
        if value:
            index = math.ceil(math.ldexp(math.log2(value), scale)) - 1
            buckets[index] = buckets.get(index, 0) + 1
    low, high = min(buckets, default=0), max(buckets, default=-1)
    return Histogram.of(
        scale,
        low,
        [buckets.get(i, 0) for i in range(low, high + 1)],
        zero_count=sum(not value for value in values),
        total=sum(values),
        min=min(values, default=None),
        max=max(values, default=None),
    )


def row(
    start: float,
    end: float,
    *,
    requests: int = 0,
    failed: int = 0,
    instance: str = "a",
    scenario: str = "load",
    name: str = "GET /",
    vus: int | None = 10,
    response_time: Histogram = EMPTY,
    dropped_iterations: int = 0,
) -> ExportRow:
    """A row from `start` to `end`, in seconds since the start of the run, with one series where there are calls."""
    series = (Series(scenario, name, requests, failed, response_time),) if requests or failed else ()
    return ExportRow(
        instance=instance,
        start_unix_nano=ORIGIN + round(start * SECOND),
        time_unix_nano=ORIGIN + round(end * SECOND),
        series=series,
        iterations=requests,
        dropped_iterations=dropped_iterations,
        vus=vus,
    )


times = st.one_of(
    st.just(0.0),
    st.floats(min_value=1e-3, max_value=60_000),
    st.floats(min_value=5e-324, max_value=1.7e308),
)
samples = st.lists(times, max_size=60)
scales = st.integers(min_value=-10, max_value=8)


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    scale = draw(scales)
    # At fine scales values stay near each other, as those of a sender with 160 buckets do.
    values = draw(samples if scale <= 0 else st.lists(st.floats(min_value=1.0, max_value=1000.0), max_size=60))
    return histogram_of(values, scale)
