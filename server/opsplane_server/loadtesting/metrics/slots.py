"""Rows of all load generators of a run are put into slots of time, about a second each.

One load generator: each row is a slot, at once, with the row's own start and end.

Several: slots are the seconds since the start of the run. Load generators export at moments of their own, so a row
covers parts of two seconds. Its counts and response times go, whole, to the second in which its middle lies; its
rates go to each second that it covers, by the share that it covers, so that a rate neither dips nor jumps where the
middle of a row falls beside the border of a second. A slot closes when every load generator has passed its end, or
when the others are two seconds ahead, or when two seconds have gone by since. What comes later still is left out of
the slots; final results have it, since they are summed up from the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from opsplane_server.loadtesting.metrics.figures import SECOND, Tally
from opsplane_server.loadtesting.metrics.rows import ExportRow

WATERMARK = 2 * SECOND

Key = tuple[str, str]
"""Scenario and name of a series."""


@dataclass(slots=True)
class Slot:
    """What was counted in a time. Rates are per second; `number` grows and skips where nothing was measured.

    After it, reading may go on behind `position`: all rows up to there are in this slot or in earlier ones.
    """

    number: int
    start: int
    end: int
    position: str = ""
    generators: int = 0
    series: dict[Key, Tally] = field(default_factory=dict)
    vus: int | None = None
    iterations: int = 0
    dropped_iterations: int = 0
    received_rate: float = 0.0
    sent_rate: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end - self.start) / SECOND

    def add(self, row: ExportRow, *, whole: bool, per_second: float) -> None:
        """Adds a row: its counts if `whole`, and its counts times `per_second` to the rates."""
        for one in row.series:
            tally = self.series.setdefault((one.scenario, one.name), Tally())
            tally.rate += one.requests * per_second
            if whole:
                tally.requests += one.requests
                tally.failed += one.failed
                tally.histograms.append(one.response_time)
        self.received_rate += row.received_bytes * per_second
        self.sent_rate += row.sent_bytes * per_second
        if whole:
            self.iterations += row.iterations
            self.dropped_iterations += row.dropped_iterations


def start_of(row: ExportRow, last_end: int) -> int:
    """Where a row starts whose load generator's row before ended at `last_end` (0 for none).

    k6 exports every second, calls or not, but a row without counts does not say where it starts, and one with the
    first calls says when they began. So a row that comes in time goes on where the last one ended.
    """
    start, end = row.start_unix_nano, row.time_unix_nano
    if 0 < end - last_end < 1.5 * SECOND:
        return last_end
    return start if start < end else end - SECOND


class SingleSlots:
    """Slots of a run with one load generator. `number` and `end` are those of the last slot that was seen."""

    def __init__(self, number: int = -1, end: int = 0) -> None:
        self._number = number
        self._end = end

    def feed(self, position: str, row: ExportRow, now: int) -> Iterator[Slot]:
        """The slot of this row. `now` does not matter."""
        start, end = start_of(row, self._end), row.time_unix_nano
        self._number, self._end = self._number + 1, end
        slot = Slot(self._number, start, end, position, generators=1, vus=row.vus)
        slot.add(row, whole=True, per_second=SECOND / (end - start))
        yield slot

    def advance(self, now: int) -> Iterator[Slot]:
        """Nothing ever waits."""
        return iter(())

    def finish(self) -> Iterator[Slot]:
        """Nothing ever waits."""
        return iter(())


class AlignedSlots:
    """Slots of a run with several load generators. `number` is that of the last slot that was seen.

    `origin` is the start of the run, in nanoseconds since 1970.
    """

    def __init__(self, origin: int, generators: int, number: int = -1) -> None:
        self._origin = origin
        self._generators = generators
        self._number = number
        self._position = ""
        self._pending: list[tuple[str, ExportRow]] = []
        self._passed: dict[str, int] = {}  # instance -> end of its last row
        self._deadlines: dict[int, int] = {}  # slot number -> when it closes whoever is missing

    def feed(self, position: str, row: ExportRow, now: int) -> Iterator[Slot]:
        """The slots that this row completes. `now` is the time, in nanoseconds since 1970."""
        self._passed[row.instance] = max(row.time_unix_nano, self._passed.get(row.instance, 0))
        self._pending.append((position, row))
        for number in self._covered(row):
            self._deadlines.setdefault(number, max(self._end(number), now) + WATERMARK)
        self._settle()
        yield from self.advance(now)

    def advance(self, now: int) -> Iterator[Slot]:
        """The slots that have waited long enough."""
        while self._deadlines:
            number = min(self._deadlines)
            end = self._end(number)
            everyone = len(self._passed) >= self._generators and min(self._passed.values()) >= end
            # A clock that runs ahead of ours must not close slots for the others.
            ahead = min(max(self._passed.values()), now) >= end + WATERMARK
            if not (everyone or ahead or now >= self._deadlines[number]):
                return
            yield self._close(number)

    def finish(self) -> Iterator[Slot]:
        """The slots that still wait, when no more rows will come."""
        while self._deadlines:
            yield self._close(min(self._deadlines))

    def _close(self, number: int) -> Slot:
        slot = Slot(number, self._end(number - 1), self._end(number))
        instances: dict[str, ExportRow] = {}
        for _, row in self._pending:
            if number not in self._covered(row):
                continue
            instances[row.instance] = row
            length = row.time_unix_nano - row.start_unix_nano
            overlap = min(row.time_unix_nano, slot.end) - max(row.start_unix_nano, slot.start)
            share = max(overlap, 0) / length if length else 0.0
            slot.add(row, whole=number == self._middle(row), per_second=share)
        slot.generators = len(instances)
        known = [row.vus for row in instances.values() if row.vus is not None]
        slot.vus = sum(known) if known else None
        self._number = number
        del self._deadlines[number]
        self._settle()
        slot.position = self._position
        return slot

    def _settle(self) -> None:
        """Lets go of the rows that no later slot needs, as far as all before them are done too."""
        done = 0
        for position, row in self._pending:
            if self._covered(row):
                break
            self._position = position
            done += 1
        del self._pending[:done]

    def _covered(self, row: ExportRow) -> range:
        """Numbers of the slots that a row still has a part in."""
        first, last = self._at(row.start_unix_nano), self._at(row.time_unix_nano - 1)
        return range(max(min(first, last), self._number + 1), last + 1)

    def _middle(self, row: ExportRow) -> int:
        return self._at((row.start_unix_nano + row.time_unix_nano - 1) // 2)

    def _at(self, time: int) -> int:
        return max((time - self._origin) // SECOND, 0)

    def _end(self, number: int) -> int:
        return self._origin + (number + 1) * SECOND
