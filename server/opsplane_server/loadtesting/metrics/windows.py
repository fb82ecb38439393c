"""Windows of a run: what a watcher is sent, about one a second.

A watcher that lost its stream gives the cursor of the last window that it received, and goes on with the next one:
the cursor holds up to where rows are in windows already, the last window, and the sums until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.metrics.figures import SECOND, CallStats, Tally, joined
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.slots import AlignedSlots, SingleSlots, Slot

# Instruments are read one after the other and timers are late by some milliseconds; a lost export is a second.
_GAP = SECOND // 4


@dataclass(frozen=True, slots=True)
class SeriesStats:
    """Figures of one scenario or endpoint."""

    name: str
    stats: CallStats


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured in about a second, over all load generators. Times are nanoseconds since 1970.

    `vus` is at its end, 0 until k6 has said. `gap_seconds` is the time before it of which no figures came.
    """

    index: int
    start_unix_nano: int
    end_unix_nano: int
    generators: int
    total: CallStats
    scenarios: tuple[SeriesStats, ...]
    endpoints: tuple[SeriesStats, ...]
    vus: int
    iterations: int
    dropped_iterations: int
    received_bytes_per_second: float
    sent_bytes_per_second: float
    total_requests: int
    total_failed_requests: int
    gap_seconds: float
    cursor: str


@dataclass(frozen=True, slots=True)
class WindowCursor:
    """Where a watcher stands. `position` is where reading goes on, empty for the first row of the run."""

    position: str = ""
    index: int = -1
    end: int = 0
    requests: int = 0
    failed: int = 0

    def encode(self) -> str:
        """For cursors that callers keep; they must not look inside."""
        numbers = "~".join(f"{n:x}" for n in (self.index, self.end, self.requests, self.failed))
        return f"{self.position}~{numbers}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """The opposite of `encode`, empty for the start; InvalidArgument on `cursor` for any other text."""
        if not text:
            return cls()
        position, *numbers = text.split("~")
        try:
            index, end, requests, failed = (int(n, 16) for n in numbers)
        except ValueError:
            raise InvalidArgument.of("cursor", "is not one that this server gave") from None
        cursor = cls(position, index, end, requests, failed)
        # Only what encode gives: int() also takes signs, underscores and blanks.
        if cursor.encode() != text or min(index, end, requests, failed) < 0:
            raise InvalidArgument.of("cursor", "is not one that this server gave")
        return cursor


class WindowAssembler:
    """Makes windows from the rows of a run, fed in the order in which they were committed.

    `origin` is the start of the run in nanoseconds since 1970 and `generators` how many load generators it has; both
    must be the same for every assembler of a run. The first row to feed is the one after `cursor.position`.
    """

    def __init__(self, origin: int, generators: int = 1, cursor: WindowCursor | None = None) -> None:
        cursor = cursor or WindowCursor()
        self._slots: SingleSlots | AlignedSlots
        if generators == 1:
            self._slots = SingleSlots(cursor.index, cursor.end)
        else:
            self._slots = AlignedSlots(origin, generators, cursor.index)
        self._position = cursor.position
        self._end = cursor.end
        self._requests = cursor.requests
        self._failed = cursor.failed

    def feed(self, rows: Iterable[tuple[str, ExportRow]], now: int) -> Iterator[Window]:
        """The windows that these rows complete. Each comes with its position; `now` is in nanoseconds since 1970."""
        for position, row in rows:
            for slot in self._slots.feed(position, row, now):
                yield self._window(slot)

    def advance(self, now: int) -> Iterator[Window]:
        """The windows that have waited long enough for load generators which do not report; call it each second."""
        for slot in self._slots.advance(now):
            yield self._window(slot)

    def finish(self) -> Iterator[Window]:
        """The last windows, when no more rows will come."""
        for slot in self._slots.finish():
            yield self._window(slot)

    def _window(self, slot: Slot) -> Window:
        gap = slot.start - self._end if self._end else 0
        total = joined(slot.series.values())
        self._position = slot.position or self._position
        self._end = slot.end
        self._requests += total.requests
        self._failed += total.failed
        cursor = WindowCursor(self._position, slot.number, self._end, self._requests, self._failed)
        return Window(
            index=slot.number,
            start_unix_nano=slot.start,
            end_unix_nano=slot.end,
            generators=slot.generators,
            total=total.stats(),
            scenarios=_grouped(slot, 0),
            endpoints=_grouped(slot, 1),
            vus=slot.vus or 0,
            iterations=slot.iterations,
            dropped_iterations=slot.dropped_iterations,
            received_bytes_per_second=slot.received_rate,
            sent_bytes_per_second=slot.sent_rate,
            total_requests=self._requests,
            total_failed_requests=self._failed,
            gap_seconds=gap / SECOND if gap > _GAP else 0.0,
            cursor=cursor.encode(),
        )


def _grouped(slot: Slot, part: int) -> tuple[SeriesStats, ...]:
    """Figures by scenario (`part` 0) or by name (1), in order; what has none of it is in the total alone."""
    groups: dict[str, list[Tally]] = {}
    for key, tally in slot.series.items():
        if key[part]:
            groups.setdefault(key[part], []).append(tally)
    return tuple(SeriesStats(name, joined(tallies).stats()) for name, tallies in sorted(groups.items()))
