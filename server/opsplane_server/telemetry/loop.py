"""How long the event loop of a process does not come to its turn.

A timer of a few milliseconds measures the time between two of its turns: a callback that runs for long, a garbage
collection, or another thread that holds the interpreter's lock makes it longer. So does another process that has the
core; what the thread waited for that is known to Linux, and is left out of the second figure.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import accumulate
from types import TracebackType
from typing import Final, Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_INTERVAL: Final = 0.005
_WAITED: Final = "/proc/thread-self/schedstat"
# Above the last one there is one more bucket. Fine where it matters whether callers notice.
_BOUNDS: Final = (0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class LoopTurns(Collector, AbstractContextManager["LoopTurns"]):
    """Watches the running event loop while it is entered, and shows it in a registry.

    A histogram rather than the longest time: that of several workers can be added up, and be read by several readers.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._turns = _Histogram()
        self._blocked = _Histogram()

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._waited = -1
        with suppress(OSError):  # not every Linux has it, and nothing else
            self._waited = os.open(_WAITED, os.O_RDONLY | os.O_CLOEXEC)
        self._at, self._waited_at = time.perf_counter(), self._seconds_waited()
        self._timer = self._loop.call_later(_INTERVAL, self._turn)
        self._registry.register(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.unregister(self)
        self._timer.cancel()
        if self._waited >= 0:
            os.close(self._waited)

    def collect(self) -> Iterator[Metric]:
        """What `/metrics` is made of."""
        yield self._turns.family(
            "opsplane_event_loop_turn_seconds", "Time between two turns of a timer of 5 ms on a worker's event loop."
        )
        yield self._blocked.family(
            "opsplane_event_loop_blocked_seconds",
            "The same without the time that the event loop's thread waited for a core.",
        )

    def _turn(self) -> None:
        now, waited = time.perf_counter(), self._seconds_waited()
        turn = now - self._at
        self._turns.add(turn)
        self._blocked.add(max(0.0, turn - (waited - self._waited_at)))
        self._at, self._waited_at = now, waited
        self._timer = self._loop.call_later(_INTERVAL, self._turn)

    def _seconds_waited(self) -> float:
        """For a core, since the thread began."""
        if self._waited < 0:
            return 0.0
        return int(os.pread(self._waited, 100, 0).split()[1]) / 1e9


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        names: Sequence[str] = [*map(floatToGoString, _BOUNDS), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum)
