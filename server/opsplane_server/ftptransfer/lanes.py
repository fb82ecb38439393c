"""How many tasks of each connection a worker takes at a time.

Enough that no session ever waits for the queue, and no more: what one worker has in hand no other can do, and a task
of high priority comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

_AHEAD_SECONDS: Final = 0.12
"""How long the tasks in hand shall last: a few round trips to the queue."""

_MEASURE_SECONDS: Final = 0.1
_FORGET: Final = 10.0


class _Lane:
    __slots__ = ("ended", "in_hand", "passed_over", "rate", "since")

    def __init__(self, now: float) -> None:
        self.in_hand = 0
        self.ended = 0
        self.since = now
        self.rate = 0.0
        self.passed_over = False


class Lanes:
    """Counts the tasks in hand by connection. `sessions` tells how many sessions a connection may have."""

    def __init__(self, sessions: Callable[[str], int]) -> None:
        self._sessions = sessions
        self._lanes: dict[str, _Lane] = {}

    def add(self, connection: str, now: float) -> None:
        """A task of the connection was taken; `now` in seconds."""
        lane = self._lanes.get(connection)
        if lane is None:
            lane = self._lanes[connection] = _Lane(now)
        lane.in_hand += 1

    def end(self, connection: str, now: float) -> bool:
        """A task ended. True when it is time to take more of them: there may be some that were passed over."""
        lane = self._lanes[connection]
        lane.in_hand -= 1
        lane.ended += 1
        seconds = now - lane.since
        if seconds >= _MEASURE_SECONDS:
            lane.rate, lane.ended, lane.since = lane.ended / seconds, 0, now
        if not lane.passed_over or lane.in_hand > self._most(connection, lane) // 2:
            return False
        lane.passed_over = False
        return True

    def full(self, now: float) -> Collection[str]:
        """The connections of which enough are in hand: they are to be passed over."""
        full = []
        for name in [name for name, lane in self._lanes.items() if not lane.in_hand and now > lane.since + _FORGET]:
            del self._lanes[name]
        for name, lane in self._lanes.items():
            lane.passed_over = lane.in_hand > self._most(name, lane) // 2
            if lane.passed_over:
                full.append(name)
        return full

    def room(self, others: int) -> int:
        """How many to take at once: as many as any connection has room for, one without tasks in hand for `others`."""
        return max([others, *(self._most(name, lane) - lane.in_hand for name, lane in self._lanes.items())])

    def _most(self, name: str, lane: _Lane) -> int:
        sessions = self._sessions(name)
        return sessions + max(sessions, int(lane.rate * _AHEAD_SECONDS))


@dataclass(frozen=True, slots=True)
class Exhausted:
    """That the queue had no more tasks but of the connections `without`, as of a generation of its signal.

    It counts until a time, because retries become due without a signal.
    """

    without: Collection[str] = ()
    generation: int = -1
    until: float = 0.0

    def covers(self, without: Collection[str], generation: int, now: float) -> bool:
        """Whether there is no use in asking for tasks of all connections but those `without`."""
        return generation == self.generation and now < self.until and all(name in without for name in self.without)
