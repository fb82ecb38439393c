"""The composition root: what a worker process consists of, in the order in which it is opened.

Only here it is known which adapter stands behind which port.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, NoReturn, Self

import grpc
import structlog
from google.longrunning import operations_pb2_grpc
from opsplane.common.v1 import platform_pb2_grpc

from opsplane_server.composition import backups, ftptransfer, instances, loadtesting, logingest
from opsplane_server.composition.foundation import Builder, Foundation, Service
from opsplane_server.config import Settings, TlsSettings
from opsplane_server.errors import OpsplaneError
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.operations import Operations
from opsplane_server.platform.retention import Retention
from opsplane_server.platform.servicer import OperationsServicer, PlatformServicer
from opsplane_server.platform.stores.postgres import (
    PostgresAuditStore,
    PostgresOperationStore,
    PostgresRequestStore,
)
from opsplane_server.rpc.identity import Anonymous, Authenticator, Chain, Internal, StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.peers import Peer, Peers
from opsplane_server.rpc.server import Registration, RpcServer, ServerOptions, build_server
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signals
from opsplane_server.supervisor.facts import WorkerFacts
from opsplane_server.telemetry.instruments import Instruments
from opsplane_server.telemetry.loop import LoopTurns

log = structlog.get_logger(__name__)

_PROBE_SECONDS: Final = 2.0
_PROBE_TIMEOUT: Final = 10.0


BUILDERS: Final[Mapping[str, Builder]] = {
    "loadtesting": loadtesting.build,
    "logingest": logingest.build,
    "ftptransfer": ftptransfer.build,
    "instances": instances.build,
    "backups": backups.build,
}
"""Every service of `config.SERVICES`."""


class App:
    """A worker: entering it opens everything and serves, leaving it closes in reverse."""

    def __init__(self, facts: WorkerFacts, instruments: Instruments) -> None:
        self._facts = facts
        self._instruments = instruments
        self._stack = AsyncExitStack()
        self._server: RpcServer | None = None
        self._database: Database | None = None
        self._services: Sequence[Service] = ()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def watch(self, serving: Callable[[bool], None]) -> NoReturn:
        """Keeps health true: NOT_SERVING while the database does not answer. Tells `serving` each change."""
        assert self._server is not None
        assert self._database is not None
        healthy = True
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            answers = await _answers(self._database)
            if answers == healthy:
                continue
            healthy = answers
            if healthy:
                log.info("serving again")
                await self._server.set_serving()
            else:
                log.error("not serving while the database is away")
                await self._server.set_not_serving()
            serving(healthy)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Takes no new calls and returns when open ones have ended, or their grace, or when `hurry` is set."""
        assert self._server is not None
        await self._server.drain()
        for service in self._services:
            service.drain()
        stopping = asyncio.create_task(self._server.stop(self._facts.settings.server.shutdown_grace_seconds))
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((stopping, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            await self._server.stop(None)
        await stopping

    async def _open(self, stack: AsyncExitStack) -> None:
        facts, settings = self._facts, self._facts.settings
        await stack.enter_async_context(self._instruments)
        stack.enter_context(LoopTurns())
        box = SecretBox.from_key_file(settings.key_file, create=False)
        pool = settings.database
        database = Database(facts.dsn, min_size=pool.pool_min_size, max_size=pool.pool_max_size)
        self._database = await stack.enter_async_context(database)
        signals = await stack.enter_async_context(Signals(facts.dsn))
        store, requests = PostgresOperationStore(database), PostgresRequestStore(database)
        audit = PostgresAuditStore(database)
        operations = Operations(store, signals)
        changes = Changes(database, requests, audit, signals, box)
        internal = Internal()
        own = Peer(f"unix:{facts.peer_socket}", internal.token)
        foundation = Foundation(
            settings=settings,
            node=facts.node,
            owner=f"{facts.node}/{os.getpid()}-{secrets.token_hex(4)}",
            local_address=facts.local_address,
            dsn=facts.dsn,
            database=database,
            signals=signals,
            secrets=box,
            operations=operations,
            changes=changes,
            peers=await stack.enter_async_context(Peers(own, served=settings.server.services, remote={})),
        )
        services = [await BUILDERS[name](foundation, stack) for name in settings.server.services]
        self._services = services
        await stack.enter_async_context(Retention(store, requests))
        executor = OperationExecutor(
            store,
            database,
            {kind: handler for service in services for kind, handler in service.handlers.items()},
            owner=foundation.owner,
            node=foundation.node,
            signals=signals,
            failure_hooks={kind: hook for service in services for kind, hook in service.failure_hooks.items()},
        )
        registrations = [
            *_platform(OperationsServicer(operations, changes), PlatformServicer(operations, audit)),
            *(registration for service in services for registration in service.registrations),
        ]
        authenticators = [authenticator for service in services for authenticator in service.authenticators]
        interceptors = standard(
            _authenticator(settings, internal, authenticators),
            tracer_provider=self._instruments.tracer_provider,
        )
        server = build_server(registrations, interceptors, options=ServerOptions(so_reuseport=True))
        _listen(server, facts)
        await stack.enter_async_context(executor)
        stack.push_async_callback(server.stop, None)
        await server.start()
        await server.set_serving()
        self._server = server


def _platform(operations: OperationsServicer, platform: PlatformServicer) -> list[Registration]:
    return [
        Registration(
            "google.longrunning.Operations",
            lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(operations, server),
        ),
        Registration(
            "opsplane.common.v1.Platform",
            lambda server: platform_pb2_grpc.add_PlatformServicer_to_server(platform, server),
        ),
    ]


def _authenticator(settings: Settings, internal: Internal, services: Sequence[Authenticator]) -> Authenticator:
    """Without tokens every program on this machine may call; other callers can not connect at all then."""
    tokens = [token.to_static() for token in settings.auth.tokens]
    return Chain(internal, StaticTokens(tokens) if tokens else Anonymous(), *services)


def _listen(server: RpcServer, facts: WorkerFacts) -> None:
    tls = facts.settings.tls
    server.add_insecure_port(f"unix:{facts.peer_socket}")
    if not tls.enabled:
        server.add_insecure_port(facts.address)
    else:
        server.add_secure_port(facts.address, _credentials(tls))
        server.add_insecure_port(facts.local_address)


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    assert tls.cert is not None
    assert tls.key is not None
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=tls.client_ca.read_bytes() if tls.client_ca is not None else None,
        require_client_auth=tls.client_ca is not None,
    )


async def _answers(database: Database) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT), database.connection() as connection:
            await connection.execute("SELECT 1")
    except (OpsplaneError, TimeoutError):
        return False
    return True
