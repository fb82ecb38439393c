"""The composition root: what a worker process consists of, in the order in which it is opened.

Only here it is known which adapter stands behind which port.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc
import structlog
from google.longrunning import operations_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import add_MetricsServiceServicer_to_server
from opsplane.common.v1 import platform_pb2_grpc
from opsplane.loadtesting.v1.loadtesting_pb2_grpc import add_LoadTestingServicer_to_server

from opsplane_server.config import Settings, TlsSettings
from opsplane_server.errors import OpsplaneError
from opsplane_server.loadtesting.collector import METRICS_SERVICE, MetricsCollector
from opsplane_server.loadtesting.compaction import Compactor
from opsplane_server.loadtesting.openapi.analyzer import SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import FetchLimits, SpecFetcher
from opsplane_server.loadtesting.projects import Projects
from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runs import RUN_KIND, Runs
from opsplane_server.loadtesting.servicer import SERVICE, LoadTestingServicer
from opsplane_server.loadtesting.specs import Specs
from opsplane_server.loadtesting.stores.postgres import (
    PostgresProjectStore,
    PostgresRunStore,
    PostgresSpecStore,
    PostgresWindowCompaction,
)
from opsplane_server.loadtesting.supervise import RunSupervisor
from opsplane_server.loadtesting.tokens import RunTokens
from opsplane_server.loadtesting.watch import RunWatcher
from opsplane_server.logingest.acceptance import Acceptance
from opsplane_server.logingest.ingest import Ingest
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.logingest.stores.postgres.partitions import PostgresPartitions
from opsplane_server.logingest.stores.postgres.writing import PostgresRecordWriters
from opsplane_server.logingest.streams import LOG_SERVICE, LogStreams
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.execution import FailureHook, Handler
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

log = structlog.get_logger(__name__)

_PROBE_SECONDS: Final = 2.0
_PROBE_TIMEOUT: Final = 10.0

# Connections by which each worker stores logs: one decodes while the other waits for PostgreSQL.
_LOG_LANES: Final = 2

# The end of a process on this machine is not told, it is looked for.
_RUN_POLL_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Foundation:
    """What services are built on.

    node: names this installation, for work that is bound to it. owner: names this process and no other.
    local_address: where programs that this process starts reach its gRPC server, in plain text.
    """

    settings: Settings
    node: str
    owner: str
    local_address: str
    dsn: str = field(repr=False)
    database: Database
    signals: Signals
    secrets: SecretBox
    operations: Operations
    changes: Changes
    peers: Peers


@dataclass(frozen=True, slots=True)
class Service:
    """What a service adds to the process: RPCs, callers that it knows, handlers of its kinds of operations."""

    registrations: Sequence[Registration]
    authenticators: Sequence[Authenticator] = ()
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    failure_hooks: Mapping[str, FailureHook] = field(default_factory=dict)
    drain: Callable[[], None] = lambda: None
    """Ends what would go on for ever, when the process takes no new calls."""


async def _loadtesting(foundation: Foundation, stack: AsyncExitStack) -> Service:
    settings = foundation.settings.loadtesting
    projects = PostgresProjectStore(foundation.database)
    specs = PostgresSpecStore(foundation.database)
    runs = PostgresRunStore(foundation.database)
    signal = foundation.signals.topic("loadtesting_runs")
    runner = LocalRunner(settings.script_folder or foundation.settings.data_dir / "k6-scripts", k6=settings.k6_path)
    fetcher = await stack.enter_async_context(SpecFetcher(FetchLimits(allow_private=settings.allow_private_addresses)))
    analyzer = await stack.enter_async_context(SpecAnalyzer(fetcher))
    job_timeout = timedelta(hours=settings.job_timeout_hours)
    supervisor = RunSupervisor(
        runs,
        runner,
        foundation.secrets,
        signal,
        endpoint=foundation.local_address,
        poll=timedelta(seconds=min(settings.poll_interval_seconds, _RUN_POLL_SECONDS)),
        max_retry=settings.max_retry,
        job_timeout=job_timeout,
        job_warning=timedelta(hours=settings.job_warning_hours),
        clean_up=settings.auto_delete_completed_jobs,
        places=max(1, settings.max_concurrent_runs // foundation.settings.server.workers),
    )
    await stack.enter_async_context(
        Compactor(PostgresWindowCompaction(foundation.database), age=timedelta(hours=settings.compact_after_hours))
    )
    servicer = LoadTestingServicer(  # type: ignore[abstract]  # what is not built answers UNIMPLEMENTED
        foundation.changes,
        Projects(projects),
        Specs(projects, specs, fetcher, analyzer),
        Runs(
            runs,
            specs,
            foundation.operations,
            foundation.secrets,
            node=foundation.node,
            job_timeout=job_timeout,
            inspect=runner.inspect,
            allow_scripts=settings.allow_custom_scripts,
        ),
        RunWatcher(runs, signal),
        project_store=projects,
        spec_store=specs,
        run_store=runs,
        job_warning=timedelta(hours=settings.job_warning_hours),
    )
    collector = MetricsCollector(runs, signal)
    return Service(
        registrations=[
            Registration(SERVICE, lambda server: add_LoadTestingServicer_to_server(servicer, server)),
            Registration(METRICS_SERVICE, lambda server: add_MetricsServiceServicer_to_server(collector, server)),
        ],
        authenticators=[RunTokens(runs)],
        handlers={RUN_KIND: supervisor.handle},
        failure_hooks={RUN_KIND: supervisor.failed},
    )


async def _logingest(foundation: Foundation, stack: AsyncExitStack) -> Service:
    settings = foundation.settings.logingest
    partitions = PostgresPartitions(foundation.database)
    writers = await stack.enter_async_context(PostgresRecordWriters(foundation.dsn, partitions, connections=_LOG_LANES))
    acceptance = Acceptance(
        retention=timedelta(days=settings.retention_days), future=timedelta(seconds=settings.future_tolerance_seconds)
    )
    groups = foundation.signals.topic("logingest_groups")
    ingest = await stack.enter_async_context(
        Ingest(writers, acceptance, groups, lanes=_LOG_LANES, pending_bytes=settings.pending_bytes)
    )
    streams = LogStreams(ingest, Quotas(settings.quota_bytes_per_second, settings.quotas))
    handlers = {**streams.handlers()}
    return Service(
        registrations=[Registration(LOG_SERVICE, lambda server: _add_handlers(server, LOG_SERVICE, handlers))],
        drain=streams.drain,
    )


def _add_handlers(
    server: grpc.aio.Server, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
) -> None:
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, dict(handlers))])


Builder = Callable[[Foundation, AsyncExitStack], Awaitable[Service]]
"""Builds a service; what must be closed again goes on the stack."""

BUILDERS: Final[Mapping[str, Builder]] = {"loadtesting": _loadtesting, "logingest": _logingest}
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
        box = SecretBox.from_key_file(settings.key_file, create=False)
        pool = settings.database
        database = Database(facts.dsn, min_size=pool.pool_min_size, max_size=pool.pool_max_size)
        self._database = await stack.enter_async_context(database)
        signals = await stack.enter_async_context(Signals(facts.dsn))
        store, requests = PostgresOperationStore(database), PostgresRequestStore(database)
        audit = PostgresAuditStore(database)
        operations = Operations(store, signals)
        changes = Changes(database, requests, audit, signals)
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
