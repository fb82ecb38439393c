"""Joined rows give the figures that the rows gave."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.metrics.compaction import COMPACT_SECONDS, compact, joined_seconds
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import Histogram, merge
from opsplane_server.loadtesting.metrics.results import RunFold
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series

from tests.unit.loadtesting.metrics.samples import histogram_of

START = 1_700_000_000 * SECOND
times = st.lists(st.floats(0.1, 5000, allow_nan=False), min_size=1, max_size=20)


def row(second: int, values: Sequence[float], instance: str = "a", lost: int = 0) -> ExportRow:
    start = START + (second + lost) * SECOND
    calls = Series("browse", "GET /pets", len(values), len(values) // 3, histogram_of(list(values), 5))
    return ExportRow(instance, start, start + SECOND, (calls,), iterations=len(values), checks=len(values), vus=3)


@given(st.lists(times, min_size=1, max_size=60), st.integers(1, 3))
def test_figures_stay_the_same(seconds: list[list[float]], generators: int) -> None:
    rows = [row(n // generators, values, instance=str(n % generators)) for n, values in enumerate(seconds)]
    joined = compact(rows)
    assert len(joined) <= generators * math.ceil(len(rows) / generators / COMPACT_SECONDS)
    before, after = _whole(rows), _whole(joined)
    assert (after.count, after.min, after.max) == (before.count, before.min, before.max)
    assert math.isclose(after.total, before.total)
    for old, new in zip(before.quantiles(0.5, 0.95, 0.99), after.quantiles(0.5, 0.95, 0.99), strict=True):
        assert abs(new - old) <= old * after.relative_error + 1e-9
    assert _sums(joined) == _sums(rows)


def _whole(rows: Sequence[ExportRow]) -> Histogram:
    return merge(series.response_time for one in rows for series in one.series)


def _sums(rows: Sequence[ExportRow]) -> tuple[int, ...]:
    calls = [series for one in rows for series in one.series]
    return (
        sum(s.requests for s in calls),
        sum(s.failed for s in calls),
        sum(one.iterations for one in rows),
        sum(one.checks for one in rows),
    )


def test_rows_of_a_steady_minute_become_six() -> None:
    joined = compact([row(second, [5.0, 7.0]) for second in range(60)])
    assert [(one.time_unix_nano - one.start_unix_nano) // SECOND for one in joined] == [10] * 6
    assert compact(joined) == joined


def test_time_without_figures_stays_a_gap() -> None:
    rows = [row(second, [5.0], lost=0 if second < 3 else 4) for second in range(6)]
    assert [one.iterations for one in compact(rows)] == [3, 3]
    fold = RunFold(START)
    for one in compact(rows):
        fold.add(one)
    assert "4.0 s" in fold.results().incomplete_reason


@pytest.mark.parametrize(("seconds", "length"), [(20, 0), (60, 2), (200, 5), (400, 10), (2000, 10)])
def test_short_runs_are_joined_less(seconds: int, length: int) -> None:
    rows = [row(second, [5.0]) for second in range(seconds)]
    assert joined_seconds(rows) == length
    joined = compact(rows, length)
    assert len(joined) >= min(seconds, 30)
    assert sum(one.iterations for one in joined) == sum(one.iterations for one in rows)
    assert joined_seconds([]) == COMPACT_SECONDS
