"""Hands outcomes to the queue, many at a time: a statement for each file would cost more than the file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import structlog

from opsplane_server.errors import Aborted, Unavailable
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.model import Failed, Outcome, Task
from opsplane_server.ftptransfer.ports import TransferQueue

log = structlog.get_logger(__name__)

Settled: TypeAlias = Callable[[Sequence[tuple[Task, Outcome]]], None]

_GATHER_SECONDS: Final = 0.03
_BATCH: Final = 100
_MOST: Final = 1000
_LONGEST_WAIT: Final = 5.0
_UNKEPT: Final = Failed(
    Failure(ErrorCode.UNKNOWN_ERROR, ErrorReason.UNSPECIFIED, "what came of it could not be kept; see the log")
)


class Settler:
    """Keeps outcomes until the queue has them; `run` is to run all the while. `settled` is told which it has.

    While the database is away it goes on trying; the worker's lease says how long that makes sense, see `drop`.
    """

    def __init__(self, queue: TransferQueue, worker: str, settled: Settled) -> None:
        self._queue = queue
        self._worker = worker
        self._settled = settled
        self._outcomes: list[tuple[Task, Outcome]] = []
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, task: Task, outcome: Outcome) -> None:
        """Takes an outcome; the queue has it a few milliseconds later."""
        self._outcomes.append((task, outcome))
        if len(self._outcomes) >= _BATCH:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._due.set)

    def drop(self) -> None:
        """Forgets what the queue does not have: the tasks are lost."""
        dropped, self._outcomes = self._outcomes, []
        self._settled(dropped)

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await self._due.wait()
            await self.flush()

    async def flush(self) -> None:
        """Returns when the queue has everything."""
        wait = 0.1
        while True:
            self._due.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._outcomes:
                return
            batch, self._outcomes = self._outcomes[:_MOST], self._outcomes[_MOST:]
            try:
                await self._settle(batch)
            except BaseException as error:
                self._outcomes = batch + self._outcomes
                if not isinstance(error, Unavailable | Aborted):
                    raise
                log.warning("outcomes not kept yet", count=len(self._outcomes), detail=error.message)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._settled(batch)

    async def _settle(self, batch: Sequence[tuple[Task, Outcome]]) -> None:
        try:
            await self._queue.settle(self._worker, batch)
        except (Unavailable, Aborted):
            raise
        except Exception:
            # One that can not be kept must not hold up the others.
            log.exception("outcomes not kept", count=len(batch))
            if len(batch) > 1:
                for outcome in batch:
                    await self._settle([outcome])
            elif batch[0][1] != _UNKEPT:
                await self._settle([(batch[0][0], _UNKEPT)])
