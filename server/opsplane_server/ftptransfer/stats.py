"""Figures of this process, told to all others each second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import OpsplaneError
from opsplane_server.ftptransfer.figures import RateMeter, TransferFigures
from opsplane_server.ftptransfer.model import WorkerFigures
from opsplane_server.ftptransfer.ports import FigureStore, Sessions
from opsplane_server.version import server_version

log = structlog.get_logger(__name__)

_BEAT_SECONDS: Final = 1.0
_LEAVE_SECONDS: Final = 2.0


class Heartbeat(Background):
    """Keeps the figures of this process, `worker`, in the store while it is entered.

    `draining` says whether the process takes no more tasks.
    """

    _task_name = "tell figures of transfers"

    def __init__(
        self,
        store: FigureStore,
        figures: TransferFigures,
        sessions: Sessions,
        *,
        worker: str,
        draining: Callable[[], bool],
    ) -> None:
        self._store = store
        self._figures = figures
        self._sessions = sessions
        self._worker = worker
        self._draining = draining
        self._meter = RateMeter(figures)

    async def __aenter__(self) -> Self:
        await self._beat()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._store.leave(self._worker)
        except (OpsplaneError, TimeoutError) as failure:
            log.warning("end of the process not told", detail=str(failure))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            await self._beat()

    async def _beat(self) -> None:
        figures, rate = self._figures, self._meter.read(time.monotonic())
        try:
            await self._store.beat(
                WorkerFigures(
                    worker=self._worker,
                    version=server_version(),
                    start_time=figures.since,
                    draining=self._draining(),
                    tasks_in_progress=figures.tasks_in_progress,
                    bytes_per_second=rate.bytes,
                    files_per_second=rate.files,
                    pools=self._sessions.figures(),
                )
            )
        except OpsplaneError as failure:
            log.warning("figures not told", detail=failure.message)
