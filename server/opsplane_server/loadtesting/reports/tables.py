"""Reports as CSV, with the columns of Locust 2, so that what reads its files reads these.

They differ in this: times are not rounded to whole milliseconds, a line of the history is a window and not the last
ten seconds, and content sizes are known of the whole run alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram, merge
from opsplane_server.loadtesting.metrics.slots import Slot
from opsplane_server.loadtesting.reports.content import Content, Series

_PERCENTILES = {
    "50%": 0.5,
    "66%": 0.66,
    "75%": 0.75,
    "80%": 0.8,
    "90%": 0.9,
    "95%": 0.95,
    "98%": 0.98,
    "99%": 0.99,
    "99.9%": 0.999,
    "99.99%": 0.9999,
    "100%": 1.0,
}
STATS = (
    "Type",
    "Name",
    "Request Count",
    "Failure Count",
    "Median Response Time",
    "Average Response Time",
    "Min Response Time",
    "Max Response Time",
    "Average Content Size",
    "Requests/s",
    "Failures/s",
    *_PERCENTILES,
)
HISTORY = (
    "Timestamp",
    "User Count",
    "Type",
    "Name",
    "Requests/s",
    "Failures/s",
    *_PERCENTILES,
    "Total Request Count",
    "Total Failure Count",
    "Total Median Response Time",
    "Total Average Response Time",
    "Total Min Response Time",
    "Total Max Response Time",
    "Total Average Content Size",
)
FAILURES = ("Method", "Name", "Error", "Occurrences", "First Seen", "Last Seen")

_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"))
_UNKNOWN = "N/A"
_AGGREGATED = "Aggregated"
# What begins like this is a formula to programs that show tables.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def stats(content: Content) -> str:
    """A line for each endpoint in the order of their calls, and one for all."""
    seconds = content.results.duration.total_seconds()
    lines = [_stats(*_name(one.name), one, seconds, _UNKNOWN) for one in content.endpoints()]
    total = content.total()
    size = _number(content.results.received_bytes / total.requests) if total.requests else _UNKNOWN
    return _csv([STATS, *lines, _stats("", _AGGREGATED, total, seconds, size)])


def failures(content: Content) -> str:
    """A line for each endpoint with failures. Load generators count what failed, not how."""
    lines = []
    for one in content.endpoints():
        seen = [point for point, calls in zip(content.points, one.calls, strict=True) if calls.failed]
        if seen:
            error = "no answer, or a status that was not expected"
            lines.append((*_name(one.name), error, str(one.failed), _moment(seen[0].start), _moment(seen[-1].end)))
    return _csv([FAILURES, *lines])


class History:
    """Lines of the history: one for each window, with sums since the start."""

    def __init__(self) -> None:
        self._requests = 0
        self._failed = 0
        self._histogram: Histogram = EMPTY
        self._received = 0.0

    @staticmethod
    def head() -> str:
        """The line of column names."""
        return _csv([HISTORY])

    def lines(self, slots: Iterable[Slot]) -> str:
        """The lines of these windows."""
        return _csv(self._line(slot) for slot in slots)

    def _line(self, slot: Slot) -> Sequence[str]:
        requests = sum(tally.requests for tally in slot.series.values())
        failed = sum(tally.failed for tally in slot.series.values())
        rate = sum(tally.rate for tally in slot.series.values())
        histogram = merge(part for tally in slot.series.values() for part in tally.histograms)
        self._requests += requests
        self._failed += failed
        self._received += slot.received_rate * slot.seconds
        self._histogram = merge((self._histogram, histogram))
        return (
            str(slot.end // SECOND),
            str(slot.vus or 0),
            "",
            _AGGREGATED,
            f"{rate:.6f}",
            f"{rate * min(failed / requests, 1.0) if requests else 0.0:.6f}",
            *_percentiles(histogram),
            str(self._requests),
            str(self._failed),
            *_times(self._histogram),
            _number(self._received / self._requests) if self._requests else _UNKNOWN,
        )


def _stats(kind: str, name: str, series: Series, seconds: float, size: str) -> Sequence[str]:
    histogram = series.response_time
    per_second = 1 / seconds if seconds else 0.0
    return (
        kind,
        name,
        str(series.requests),
        str(series.failed),
        *_times(histogram),
        size,
        _number(series.requests * per_second),
        _number(series.failed * per_second),
        *_percentiles(histogram),
    )


def _times(histogram: Histogram) -> Sequence[str]:
    """Median, mean, least and most; 0 without calls, as with Locust."""
    if not histogram.count:
        return ("0", "0", "0", "0")
    return tuple(_number(v) for v in (histogram.quantiles(0.5)[0], histogram.mean, histogram.min, histogram.max))


def _percentiles(histogram: Histogram) -> Iterator[str]:
    if not histogram.count:
        yield from [_UNKNOWN] * len(_PERCENTILES)
    else:
        yield from map(_number, histogram.quantiles(*_PERCENTILES.values()))


def _name(name: str) -> tuple[str, str]:
    """Method and path of `GET /pets`; a name that a script gave has no method."""
    method, _, path = name.partition(" ")
    if path and method in _METHODS:
        return method, path
    return "", f"'{name}" if name.startswith(_FORMULAS) else name


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def _moment(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
