"""What a worker knows of a task that it has in hand."""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import Enum
from typing import Final

from opsplane_server.ftptransfer.attempt import Attempt, Version
from opsplane_server.ftptransfer.model import Outcome, Progress, Task

_SMOOTHING: Final = 0.5


class Why(Enum):
    """Why a task is broken off."""

    CANCELLED = "cancelled"
    RELEASED = "released"
    LOST = "lost"


class InHand:
    """A task that was taken and whose outcome is not kept yet. `attempt` is None for a glob or tree."""

    __slots__ = ("_counted", "_rate", "_seen", "attempt", "expanding", "job", "task", "unwanted", "why")

    def __init__(self, task: Task, attempt: Attempt | None, now: float) -> None:
        self.task = task
        self.attempt = attempt
        self.job: asyncio.Task[Outcome | None] | None = None
        self.why: Why | None = None
        self.unwanted = False
        """It was cancelled when its file was just about to get its name; so it is not tried again."""
        self.expanding = False
        self._seen = (now, 0)
        self._rate = 0.0
        self._counted = 0

    @property
    def started(self) -> bool:
        """Whether it is more than a place in the line."""
        return self.expanding if self.attempt is None else self.attempt.steps.started > 0

    @property
    def sent(self) -> int:
        """Bytes that went over the line in this attempt."""
        return 0 if self.attempt is None else self.attempt.steps.sent

    def break_off(self, why: Why) -> None:
        """Ends the work on it. One whose file is just about to get its name goes on: it is over in a moment."""
        if self.job is None or self.job.done() or self.why is not None:
            return
        if why is Why.CANCELLED and self.task.is_over:
            return  # to clean up is all that it does
        if self.attempt is not None and self.attempt.steps.finishing:
            self.unwanted = self.unwanted or why is Why.CANCELLED
            return
        self.why = why
        self.job.cancel()

    def abandon(self) -> None:
        """Ends even that, and what is done to clean up."""
        if self.job is not None:
            self.why = self.why or Why.RELEASED
            self.job.cancel()

    def count(self) -> int:
        """Bytes sent since the last call."""
        sent = self.sent
        counted, self._counted = self._counted, sent
        return sent - counted

    def progress(self, now: float) -> Progress:
        """How far it is, at `now` by `time.monotonic`; the rate is that since the calls before."""
        if self.attempt is None:
            return Progress(self.task)
        steps = self.attempt.steps
        then, before = self._seen
        self._seen = now, steps.sent
        if now > then:
            rate = (steps.sent - before) / (now - then)
            self._rate += _SMOOTHING * (rate - self._rate) if self._rate else rate
        size, modify_time = kept(steps.version)
        return Progress(self.task, steps.transferred, size, steps.sent, self._rate, modify_time)


def kept(version: Version | None) -> tuple[int | None, datetime | None]:
    """Size and time of a source as the queue keeps them: a time says that both are known."""
    if version is None:
        return None, None
    return version.size, version.modify_time if version.size is not None else None
