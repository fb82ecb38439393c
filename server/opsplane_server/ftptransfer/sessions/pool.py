"""The sessions of all connections of a process, within the limits that the processes of a pod share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Connection, FtpServer, PoolFigures, Probe
from opsplane_server.ftptransfer.ports import RemoteSession
from opsplane_server.ftptransfer.sessions.connection_pool import ConnectionPool
from opsplane_server.ftptransfer.sessions.exchange import Knowledge
from opsplane_server.ftptransfer.sessions.flow import DataPlane
from opsplane_server.ftptransfer.sessions.login import Login, shown_certificate
from opsplane_server.ftptransfer.sessions.places import PodPlaces
from opsplane_server.ftptransfer.sessions.tls import TlsClient

log = structlog.get_logger(__name__)

_TEND: Final = 0.25
"""Seconds between looks at what is idle."""
_FORGET: Final = 900.0
"""Seconds after which a connection without sessions is not shown any more."""


class SessionPool(AbstractAsyncContextManager["SessionPool"]):
    """See `ports.Sessions`. To be entered before it is used."""

    def __init__(
        self,
        folder: Path,
        figures: TransferFigures,
        *,
        max_sessions: int = 100,
        max_sessions_per_connection: int = 10,
        idle_timeout: float = 300.0,
        active_ports: tuple[int, int] = (0, 0),
    ) -> None:
        """`folder` is shared by the processes of the pod, on a disk of its own machine.

        active_ports: first and last port to listen on in active mode, where a connection does not say; 0 for any.
        """
        self._folder = folder
        self._figures = figures
        self._max_sessions = max_sessions
        self._max_per_connection = max_sessions_per_connection
        self._idle_timeout = idle_timeout
        self._active_ports = active_ports
        self._pools: dict[str, ConnectionPool] = {}
        self._retired: set[ConnectionPool] = set()
        self._pod = PodPlaces(folder / "pod", max_sessions, self._make_room)
        self._threads: ThreadPoolExecutor | None = None
        self._plane: DataPlane | None = None
        self._tending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # Each session may have a thread, so that none waits for another's.
        self._threads = ThreadPoolExecutor(self._max_sessions, thread_name_prefix="ftp")
        self._plane = DataPlane(self._threads)
        self._tending = asyncio.create_task(self._tend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tending is not None
        assert self._threads is not None
        self._tending.cancel()
        with suppress(asyncio.CancelledError):
            await self._tending
        for pool in (*self._pools.values(), *self._retired):
            pool.close()
        self._pod.close()
        self._threads.shutdown(wait=False)

    @asynccontextmanager
    async def session(self, connection: Connection) -> AsyncIterator[RemoteSession]:
        """See `ports.Sessions.session`."""
        pool = self._pool(connection)
        member = await pool.acquire()
        try:
            yield member.session
        finally:
            pool.release(member)

    def figures(self) -> Mapping[str, PoolFigures]:
        """See `ports.Sessions.figures`."""
        return {name: pool.figures() for name, pool in self._pools.items()}

    def held_back(self) -> Collection[str]:
        """See `ports.Sessions.held_back`."""
        return [name for name, pool in self._pools.items() if pool.held_back]

    async def probe(self, server: FtpServer, path: str) -> Probe:
        """See `ports.Sessions.probe`."""
        assert self._plane is not None
        server = self._completed(server)
        began = time.monotonic()
        step, certificate, count = "resolve", "", 0
        login: Login | None = None
        failure: TransferFailure | None = None
        try:
            tls = None
            if server.tls is not None:
                loop = asyncio.get_running_loop()
                tls = await loop.run_in_executor(self._threads, TlsClient, server, server.tls)
            login = Login(server, Knowledge(pipelining=False), self._plane, tls)
            session = await login.open()
            try:
                step = "list"
                count = len(await session.list(path))
            finally:
                session.quit()
        except TransferFailure as error:
            failure = error
        if login is not None:
            step = step if step == "list" else login.step
            certificate = login.certificate_sha256
        if failure is not None and failure.reason is ErrorReason.TLS and not certificate:
            certificate = await shown_certificate(server)
        return Probe(
            failure=failure.failure if failure else None,
            last_step=step,
            duration=time.monotonic() - began,
            greeting=login.greeting if login else "",
            features=login.features if login else (),
            tls_cipher=login.tls_cipher if login else "",
            certificate_sha256=certificate,
            entry_count=count,
        )

    def _pool(self, connection: Connection) -> ConnectionPool:
        pool = self._pools.get(connection.id)
        order = (connection.key, connection.revision)
        # A task that was taken before a change still has the old settings; the new ones are right for it too.
        if pool is not None and order <= pool.order:
            return pool
        if pool is not None:
            pool.retire()
            self._retired.add(pool)
        assert isinstance(connection.kind, FtpServer)
        assert self._plane is not None, "to be entered first"
        self._pools[connection.id] = pool = ConnectionPool(
            connection.id,
            order,
            self._completed(connection.kind),
            self._folder / "connections" / connection.id,
            self._pod,
            self._plane,
            self._figures,
        )
        return pool

    def _completed(self, server: FtpServer) -> FtpServer:
        """The settings with those of the process where they say nothing."""
        active = server.active
        if active is not None and not active.first_port:
            active = replace(active, first_port=self._active_ports[0], last_port=self._active_ports[1])
        return replace(
            server,
            active=active,
            max_sessions=min(server.max_sessions or self._max_per_connection, self._max_sessions),
            idle_timeout=server.idle_timeout or self._idle_timeout,
        )

    def _make_room(self) -> bool:
        oldest = min(self._pools.values(), key=lambda pool: pool.idle_since, default=None)
        return oldest is not None and oldest.make_room()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(_TEND)
            try:
                self._look_after()
            except OSError as error:
                log.warning("ftp sessions cannot be looked after", error=str(error))

    def _look_after(self) -> None:
        now = time.monotonic()
        for pool in list(self._pools.values()):
            pool.tend()
            if pool.quiet and now - pool.used > _FORGET:
                del self._pools[pool.connection]
                pool.close()
        for pool in [pool for pool in self._retired if pool.quiet]:
            self._retired.remove(pool)
            pool.close()
        # The pod's places are few when any connection that could use one gets none.
        self._pod.queue.wait(any(pool.wants_pod for pool in (*self._pools.values(), *self._retired)))
