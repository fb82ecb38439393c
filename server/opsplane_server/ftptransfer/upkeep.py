"""What has to be done from time to time, by whichever process."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Final

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Aborted, Unavailable
from opsplane_server.ftptransfer.ports import Sweeps
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_SWEEP_SECONDS: Final = 1.0
_FORGET_SECONDS: Final = 60.0


class Upkeep(Background):
    """Sweeps each second while it is entered, and each minute forgets what ended longer than `keep` ago."""

    _task_name = "upkeep of transfers"

    def __init__(self, sweeps: Sweeps, *, work: Signal, changes: Signal, keep: timedelta) -> None:
        self._sweeps = sweeps
        self._work = work
        self._changes = changes
        self._keep = keep

    async def _run(self) -> None:
        forget_at = time.monotonic() + _FORGET_SECONDS
        while True:
            try:
                if await self._sweeps.sweep():
                    self._work.notify()
                    self._changes.notify()
                    continue
                if time.monotonic() >= forget_at:
                    forget_at = time.monotonic() + _FORGET_SECONDS
                    if count := await self._sweeps.forget(self._keep):
                        log.info("old transfers deleted", count=count)
            except (Unavailable, Aborted) as failure:
                log.warning("upkeep of transfers put off", detail=failure.message)
            except Exception:
                log.exception("upkeep of transfers failed")
            await asyncio.sleep(_SWEEP_SECONDS)
