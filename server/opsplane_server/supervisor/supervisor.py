"""One run of the server, from its first lock to its last."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import structlog

from opsplane_server.config import Settings
from opsplane_server.ftptransfer.http import PoolerPages
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.supervisor.database import EmbeddedDatabase, ExternalDatabase, prepare
from opsplane_server.supervisor.facts import WorkerFacts
from opsplane_server.supervisor.folder import DataFolder
from opsplane_server.supervisor.http import HttpServer
from opsplane_server.supervisor.ports import HeldPort, address_of, listen
from opsplane_server.supervisor.status import Status
from opsplane_server.supervisor.workers import Worker, start_all, stop_all
from opsplane_server.version import server_version

log = structlog.get_logger(__name__)

# What the workers of a killed parent may need beyond their grace, until the next server may use the data folder.
_ORPHAN_SECONDS = 15.0


class Supervisor:
    """Starts everything, keeps it running, and ends it in reverse when it is asked to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._status = Status()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; a second one shortens the end.

        Raises OpsplaneError when the server can not start, with nothing left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        serving = asyncio.create_task(self._serve())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            log.info("server stopped")

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._hurry.set()
        else:
            log.info("server stops", signal=number.name)
        self._stop.set()

    async def _serve(self) -> None:
        """Opens in order, and is cancelled in the end."""
        settings = self._settings
        grace = settings.server.shutdown_grace_seconds
        async with AsyncExitStack() as stack:
            folder = DataFolder(settings.data_dir, patience=grace + _ORPHAN_SECONDS)
            await stack.enter_async_context(folder)
            port = stack.enter_context(HeldPort(settings.server.host, settings.server.port))
            local = port if not settings.tls.enabled else stack.enter_context(HeldPort("127.0.0.1", 0))
            http = stack.enter_context(listen(settings.telemetry.metrics_host, settings.telemetry.metrics_port))
            await stack.enter_async_context(HttpServer(http, self._status.pages))
            await self._serve_pooler_pages(stack)
            SecretBox.from_key_file(settings.key_file, create=True)
            database = _database(settings)
            await stack.enter_async_context(database)
            await prepare(database, settings.server.services)
            facts = WorkerFacts(
                index=0,
                settings=settings,
                address=port.address,
                local_address=_reachable(local.address),
                dsn=database.dsn,
                run_folder=folder.run_folder,
                node=folder.node,
                lock_fd=folder.workers_lock,
            )
            workers = [Worker(facts.model_copy(update={"index": index})) for index in range(settings.server.workers)]
            stack.push_async_callback(self._stop_workers, workers)
            self._status.attach(workers, database)
            await start_all(workers)
            self._announce(facts, address_of(http), workers, database.pids)
            await self._keep(workers, database)

    async def _serve_pooler_pages(self, stack: AsyncExitStack) -> None:
        ftp = self._settings.ftptransfer
        if ftp.api_port is None or "ftptransfer" not in self._settings.server.services:
            return
        pages = PoolerPages(
            self._status.metrics,
            lambda: self._status.ready,
            max_sessions_per_pod=ftp.max_sessions_per_pod,
            max_sessions_per_connection=ftp.max_sessions_per_connection,
        )
        listening = stack.enter_context(listen(ftp.api_host, ftp.api_port))
        await stack.enter_async_context(HttpServer(listening, pages.pages))

    async def _keep(self, workers: Sequence[Worker], database: EmbeddedDatabase | ExternalDatabase) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(database.keep(), name="keep database")
            for worker in workers:
                group.create_task(worker.keep(lambda worker=worker: self._status.retire(worker)))  # type: ignore[misc]

    async def _stop_workers(self, workers: Sequence[Worker]) -> None:
        self._status.stopping = True
        await stop_all(workers, grace=self._settings.server.shutdown_grace_seconds, hurry=self._hurry)

    def _announce(self, facts: WorkerFacts, metrics: str, workers: Sequence[Worker], database_pids: list[int]) -> None:
        services = self._settings.server.services
        log.info(
            "server ready",
            version=server_version(),
            address=facts.address,
            local_address=facts.local_address,
            metrics_address=metrics,
            services=list(services),
            workers=[worker.pid for worker in workers],
            postgres=database_pids,
            data_dir=str(self._settings.data_dir),
        )
        count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
        sys.stdout.write(
            f"Opsplane {server_version()} is serving {', '.join(services)} on {facts.address} "
            f"({count}, metrics on {metrics}, data in {self._settings.data_dir})\n"
        )
        sys.stdout.flush()


def _database(settings: Settings) -> EmbeddedDatabase | ExternalDatabase:
    if settings.database.embedded:
        return EmbeddedDatabase(settings, settings.data_dir / "postgres")
    return ExternalDatabase(settings)


def _reachable(address: str) -> str:
    """An address to connect to: for a server on all addresses, loopback."""
    parts = urlsplit(f"//{address}")
    if parts.hostname in ("0.0.0.0", "::"):  # noqa: S104
        return f"127.0.0.1:{parts.port}"
    return address
