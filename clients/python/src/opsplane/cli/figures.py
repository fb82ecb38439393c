"""How figures are written, and where a run under way stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from opsplane.cli.durations import format_duration
from opsplane.cli.user_classes import in_words
from opsplane.loadtesting.v1 import metrics_pb2, runs_pb2

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 600  # windows that sparklines are drawn from


def state_name(run: runs_pb2.Run) -> str:
    """PENDING, RUNNING, ..."""
    return runs_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")


def verdict_name(run: runs_pb2.Run) -> str:
    """PASSED, FAILED, INVALID; empty before the end."""
    return runs_pb2.Verdict.Name(run.verdict).removeprefix("VERDICT_") if run.verdict else ""


def milliseconds(value: float) -> str:
    """`0.42 ms`, `12.3 ms`, `1.25 s`: three digits that count."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def percent(ratio: float) -> str:
    """`0%`, `0.02%`, `12.5%`; never 0% for what is not zero."""
    if ratio <= 0:
        return "0%"
    return "<0.01%" if ratio < 0.0001 else f"{ratio * 100:.2f}%" if ratio < 0.1 else f"{ratio * 100:.1f}%"


def rate(value: float) -> str:
    """Calls a second: `7.31`, `842.0`, `12,403`."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, from zero to their peak; peaks survive the squeeze."""
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    squeezed = [max(values[start : start + step]) for start in range(0, len(values), step)]
    peak = max(squeezed)
    if peak <= 0:
        return _BARS[0] * len(squeezed)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / peak * len(_BARS)))] for value in squeezed)


@dataclass(slots=True)
class Totals:
    """Calls of an endpoint since the run was first seen, and its last window."""

    requests: int = 0
    failed: int = 0
    last: metrics_pb2.CallStats = field(default_factory=metrics_pb2.CallStats)


@dataclass(slots=True)
class Progress:
    """Where a run stands, from what WatchRun has sent so far."""

    run: runs_pb2.Run = field(default_factory=runs_pb2.Run)
    window: metrics_pb2.Window | None = None
    endpoints: dict[str, Totals] = field(default_factory=dict)
    tps: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    p95: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def add(self, response: runs_pb2.WatchRunResponse) -> None:
        """Takes in what is new."""
        if response.HasField("run"):
            self.run = response.run
        elif response.HasField("window"):
            self._add_window(response.window)

    def _add_window(self, window: metrics_pb2.Window) -> None:
        self.window = window
        self.tps.append(window.total.tps)
        self.p95.append(window.total.response_time.p95_ms)
        for totals in self.endpoints.values():
            totals.last = metrics_pb2.CallStats()
        for series in window.endpoints:
            totals = self.endpoints.setdefault(series.name, Totals())
            totals.requests += series.stats.requests
            totals.failed += series.stats.failed_requests
            totals.last = series.stats

    @property
    def elapsed(self) -> timedelta:
        """How long the load has lasted, by the server's clock."""
        if self.window is None or not self.run.HasField("start_time"):
            return timedelta()
        return max(timedelta(), _time(self.window.end_time) - _time(self.run.start_time))

    @property
    def done_ratio(self) -> float | None:
        """How much of the planned time is over, 0 to 1; None when no end is planned."""
        planned = self.run.planned_duration.ToTimedelta() if self.run.HasField("planned_duration") else timedelta()
        return min(1.0, self.elapsed / planned) if planned else None

    def line(self) -> str:
        """The last window as one line of text."""
        assert self.window is not None
        done = self.done_ratio
        total = self.window.total
        classes = in_words(self.run, self.window.vus)
        parts = [
            f"{format_duration(self.elapsed):>6}",
            f"{done * 100:3.0f}%" if done is not None else "",
            f"vus {self.window.vus}{f' ({classes})' if classes else ''}",
            f"tps {rate(total.tps)}",
            *_percentiles(total),
            f"errors {percent(total.error_ratio)}",
            f"total {self.window.total_requests:,}",
            f"dropped {self.window.dropped_iterations:,}" if self.window.dropped_iterations else "",
        ]
        return "  ".join(part for part in parts if part)


def _percentiles(stats: metrics_pb2.CallStats) -> Iterable[str]:
    times = stats.response_time
    if not stats.requests:
        return ()
    return (
        f"p50 {milliseconds(times.p50_ms)}",
        f"p95 {milliseconds(times.p95_ms)}",
        f"p99 {milliseconds(times.p99_ms)}",
    )


def _time(moment: Timestamp) -> datetime:
    return moment.ToDatetime(tzinfo=UTC)
