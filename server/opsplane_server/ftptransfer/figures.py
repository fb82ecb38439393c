"""What a process counts of its transfers: plain numbers, which cost the transfers next to nothing.

`metrics.py` shows them to Prometheus, and stats rows carry them to GetStats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorCode

DURATION_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
)  # fmt: skip
"""Upper bounds of the histogram of durations, in seconds; above the last one there is one more bucket."""

_RATE_SECONDS = 10.0


class TransferFigures:
    """Counts since the process began. Used on the event loop alone, so nothing here locks."""

    def __init__(self) -> None:
        self.since = datetime.now(UTC)
        self.tasks_received = 0
        self.malformed = 0
        self.results_published = 0
        self.queue_connected = False
        self.tasks_in_progress = 0
        self.tasks_succeeded = 0
        self.bytes_transferred = 0
        self.failures: Counter[ErrorCode] = Counter()
        self.sessions: Counter[str] = Counter()
        self.duration_seconds = 0.0
        self.durations = [0] * (len(DURATION_BOUNDS) + 1)

    def received(self, count: int = 1) -> None:
        """Tasks were put into the queue here, by RPC or from Kafka; those known already are not counted."""
        self.tasks_received += count

    def not_a_task(self, count: int = 1) -> None:
        """Messages of the queue were no tasks."""
        self.malformed += count

    def published(self, count: int) -> None:
        """Results were written to Kafka."""
        self.results_published += count

    def begun(self) -> None:
        """An attempt began. `paused`, `succeeded` or `failed` tells its end."""
        self.tasks_in_progress += 1

    def paused(self) -> None:
        """An attempt ended and the task did not: it is tried again, was handed back, or was cancelled."""
        self.tasks_in_progress -= 1

    def succeeded(self, seconds: float) -> None:
        """A task is done; `seconds` is how long its last attempt took."""
        self.tasks_in_progress -= 1
        self.tasks_succeeded += 1
        self._took(seconds)

    def failed(self, code: ErrorCode, seconds: float) -> None:
        """A task is given up; `seconds` is how long its last attempt took."""
        self.tasks_in_progress -= 1
        self.failures[code] += 1
        self._took(seconds)

    def transferred(self, count: int) -> None:
        """Bytes went over a data connection, whatever becomes of the attempt."""
        self.bytes_transferred += count

    def session_opened(self, connection: str) -> None:
        """There is one more session of this connection (its id)."""
        self.sessions[connection] += 1

    def session_closed(self, connection: str) -> None:
        """The opposite of `session_opened`."""
        self.sessions[connection] -= 1

    @property
    def tasks_failed(self) -> int:
        """Tasks that were given up."""
        return self.failures.total()

    @property
    def tasks_total(self) -> int:
        """Tasks that ended."""
        return self.tasks_succeeded + self.tasks_failed

    def _took(self, seconds: float) -> None:
        self.duration_seconds += seconds
        self.durations[bisect_left(DURATION_BOUNDS, seconds)] += 1


@dataclass(frozen=True, slots=True)
class Rate:
    """Over the last ten seconds, each a second."""

    bytes: float
    files: float


class RateMeter:
    """Tells how fast figures grow, if it is asked about once a second."""

    def __init__(self, figures: TransferFigures) -> None:
        self._figures = figures
        self._samples: deque[tuple[float, int, int]] = deque()

    def read(self, now: float) -> Rate:
        """`now` is in seconds of a clock that is never set back."""
        samples = self._samples
        samples.append((now, self._figures.bytes_transferred, self._figures.tasks_succeeded))
        while len(samples) > 2 and samples[1][0] <= now - _RATE_SECONDS:
            samples.popleft()
        began, first_bytes, first_files = samples[0]
        if now <= began:
            return Rate(0.0, 0.0)
        _, last_bytes, last_files = samples[-1]
        return Rate((last_bytes - first_bytes) / (now - began), (last_files - first_files) / (now - began))
