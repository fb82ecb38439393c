"""Whether load generators had CPU enough: one that has not measures itself and not the API under test."""

from __future__ import annotations

from opsplane_server.loadtesting.runners.port import Running, Status

# A load generator that uses this share of the CPU that it may use has none left to be in time with.
FULL = 0.9
# For so much of the run, and never judged by less than this.
_MOST_OF_THE_TIME = 0.5
SHORTEST_SECONDS = 3.0
# CPU times are counted in hundredths of a second.
STEP_SECONDS = 0.5


class Effort:
    """Adds up for how long load generators had no CPU left, from what a runner says of them now and then."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}
        self._seconds: dict[str, float] = {}
        self._full: dict[str, float] = {}

    def note(self, generator: str, status: Status, now: float) -> None:
        """Takes in how a load generator is; `now` is in seconds of any steady clock."""
        if not isinstance(status, Running) or status.cpu_seconds is None or not status.cpus:
            return
        before, cpu_before = self._last.setdefault(generator, (now, status.cpu_seconds))
        seconds = now - before
        if seconds < STEP_SECONDS:
            return
        self._last[generator] = (now, status.cpu_seconds)
        self._seconds[generator] = self._seconds.get(generator, 0.0) + seconds
        if status.cpu_seconds - cpu_before >= FULL * status.cpus * seconds:
            self._full[generator] = self._full.get(generator, 0.0) + seconds

    @property
    def exhausted(self) -> bool:
        """True when a load generator had no CPU left for most of the time that it was seen."""
        return any(
            self._seconds[generator] >= SHORTEST_SECONDS and full >= _MOST_OF_THE_TIME * self._seconds[generator]
            for generator, full in self._full.items()
        )
