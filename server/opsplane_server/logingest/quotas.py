"""How much a sender may send, by the name of its token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from opsplane_server.errors import ResourceExhausted

_BURST_SECONDS: Final = 2.0


class Quotas:
    """Bytes a second of each sender, with bursts of two seconds' worth; counted by each process for itself.

    `default` holds for senders that `named` does not name; 0 is without limit.
    """

    def __init__(self, default: int = 0, named: Mapping[str, int] | None = None) -> None:
        self._default = default
        self._named = dict(named or {})
        # When what a sender has sent so far is paid off, of time.monotonic().
        self._paid: dict[str, float] = {}

    def take(self, name: str, size: int) -> None:
        """Takes `size` bytes, or raises ResourceExhausted with the time to come back."""
        delay = self._delay(name)
        if delay > 0:
            raise ResourceExhausted(
                "the quota of logs is used up",
                reason="QUOTA_EXCEEDED",
                metadata={"sender": name},
                retry_after=timedelta(seconds=delay),
            )
        self._pay(name, size)

    async def wait(self, name: str, size: int) -> None:
        """Takes `size` bytes as soon as the sender may send; meanwhile its stream is not read."""
        # Paid at once: several streams of a sender wait for each other's share too.
        delay = self._delay(name)
        self._pay(name, size)
        if delay > 0:
            await asyncio.sleep(delay)

    def _delay(self, name: str) -> float:
        """Seconds until the sender may send: what it owes may be as much as a burst."""
        return self._paid.get(name, 0.0) - _BURST_SECONDS - time.monotonic()

    def _pay(self, name: str, size: int) -> None:
        rate = self._named.get(name, self._default)
        if rate:
            self._paid[name] = max(self._paid.get(name, 0.0), time.monotonic()) + size / rate
