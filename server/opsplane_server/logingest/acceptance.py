"""Which times of records are accepted now."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

from opsplane_server.logingest.rules import Window

_DAY_SECONDS: Final = 86_400


class Acceptance:
    """Records of the days that are kept, and not further in the future than clocks may differ."""

    def __init__(self, *, retention: timedelta, future: timedelta) -> None:
        self._retention_days = retention.days
        self._future = int(future.total_seconds())

    def window(self) -> Window:
        """The times that are accepted at this moment; the day that is dropped next no more."""
        now = int(time.time())
        today = now // _DAY_SECONDS
        return Window((today - self._retention_days) * _DAY_SECONDS, now + self._future)
