"""Hints between processes that something new is stored, so that followers need not poll often.

A hint carries nothing but its topic's name, and may be lost or doubled: what counts is what is stored.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog

log = structlog.get_logger(__name__)

# One channel for all topics, whose name is the payload: PostgreSQL wakes every listener of the database whatever
# the channel, and so topics may come and go without a LISTEN and UNLISTEN each.
_CHANNEL = "opsplane"
_NOTIFY = "SELECT pg_notify($1, topic) FROM unnest($2::text[]) AS topic"
_COALESCE_SECONDS = 0.02
_KEEPALIVE_SECONDS = 15.0
_ANSWER_SECONDS = 5.0
_RECONNECT_SECONDS = (0.1, 5.0)  # first, longest


class Signal:
    """One topic. Made by `Signals.topic`."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._changed = asyncio.Event()
        self.generation = 0
        """Counts the hints that arrived; read it before reading what is stored, and give it to `changed`."""

    def notify(self) -> None:
        """Tells all processes, this one included, within about 20 ms; more calls meanwhile are one hint.

        Call it after the commit: what a hint leads to must be visible. It never raises and never waits.
        """
        self._notify()

    async def wait(self, timeout: float) -> bool:
        """Waits for the next hint; False after `timeout` seconds without one."""
        return await self.changed(self.generation, timeout)

    async def changed(self, seen: int, timeout: float) -> bool:
        """Waits until `generation` is not `seen`: at once if a hint came since. False after `timeout` seconds."""
        if self.generation == seen:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                return self.generation != seen
        return True

    def _hint(self) -> None:
        self.generation += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Signals:
    """All topics of this process over one connection to `dsn`, which is made anew whenever it is lost.

    Without a connection, hints reach this process alone, and followers elsewhere fall back to polling. When it is
    back, every topic gets a hint, because what came meanwhile is unknown.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._topics: weakref.WeakValueDictionary[str, Signal] = weakref.WeakValueDictionary()
        self._due: set[str] = set()
        self._unsent: set[str] = set()
        self._attention = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="signals")
        await self._attempted.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def topic(self, name: str) -> Signal:
        """The signal of this name: one object as long as anybody holds it."""
        signal = self._topics.get(name)
        if signal is None:
            signal = self._topics[name] = Signal(lambda: self._notify(name))
        return signal

    def _notify(self, name: str) -> None:
        if self._task is None:  # closed, or not open yet
            return
        if not self._due:
            asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self._flush)
        self._due.add(name)

    def _flush(self) -> None:
        due, self._due = self._due, set()
        for name in due:
            self._hint(name)
        self._unsent |= due
        self._attention.set()

    def _hint(self, name: str) -> None:
        signal = self._topics.get(name)
        if signal is not None:
            signal._hint()

    async def _run(self) -> None:
        delay, longest = _RECONNECT_SECONDS
        while True:
            try:
                connection = await asyncpg.connect(
                    self._dsn,
                    timeout=_ANSWER_SECONDS,
                    command_timeout=_ANSWER_SECONDS,
                    server_settings={"application_name": "opsplane signals"},
                )
                try:
                    connection.add_termination_listener(lambda _: self._attention.set())
                    await connection.add_listener(_CHANNEL, self._received)
                    delay = _RECONNECT_SECONDS[0]
                    for name in list(self._topics):
                        self._hint(name)
                    self._attempted.set()
                    await self._serve(connection)
                finally:
                    connection.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                self._attempted.set()
                log.warning("signals lost", error=str(error) or type(error).__name__, retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)

    async def _serve(self, connection: asyncpg.Connection) -> None:
        """Sends what is due, and asks for a sign of life when nothing is: a dead link may stay silent for ever."""
        while not connection.is_closed():
            try:
                async with asyncio.timeout(_KEEPALIVE_SECONDS):
                    await self._attention.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
                continue
            self._attention.clear()
            if self._unsent:
                topics = list(self._unsent)
                await connection.execute(_NOTIFY, _CHANNEL, topics)
                self._unsent.difference_update(topics)
        raise ConnectionError("the server closed the connection")

    def _received(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if pid != connection.get_server_pid():  # this process gave itself the hint already
            self._hint(str(payload))
