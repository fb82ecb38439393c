"""A timeout that is set thousands of times a second and hardly ever runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls back when nothing was heard for a while. Starting, feeding and stopping it costs next to nothing.

    Its timer is left to run when it is stopped, and set anew when it rings too early, so that there is one timer a
    timeout and not one a command.
    """

    __slots__ = ("_alarm", "_deadline", "_loop", "_rings", "_timeout", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._rings = 0.0
        self._timeout = 0.0
        self._deadline = 0.0
        self._alarm: Callable[[], None] | None = None

    def start(self, timeout: float, alarm: Callable[[], None]) -> None:
        """Calls `alarm` after `timeout` seconds, counted from now and from each `feed`; once."""
        self._timeout = timeout
        self._alarm = alarm
        self._deadline = self._loop.time() + timeout
        if self._timer is None or self._rings > self._deadline:
            self._set()

    def feed(self) -> None:
        """Counts from now."""
        self._deadline = self._loop.time() + self._timeout

    def stop(self) -> None:
        """Forgets the alarm."""
        self._alarm = None

    def close(self) -> None:
        """Forgets the alarm and the timer."""
        self._alarm = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._alarm is None:
            return
        if self._deadline > self._loop.time():
            self._set()
            return
        alarm, self._alarm = self._alarm, None
        alarm()
