"""The platform over a real database, wired as the server wires it, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Token
from dataclasses import dataclass
from typing import Any

import pytest
from opsplane_server.errors import Unavailable
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.execution import FailureHook, Handler
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.model import Operation
from opsplane_server.platform.operations import Operations
from opsplane_server.platform.stores.postgres import (
    PostgresAuditStore,
    PostgresOperationStore,
    PostgresRequestStore,
)
from opsplane_server.rpc.calls import Call, reset_call, set_call
from opsplane_server.rpc.identity import Principal, Role
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signals

MIGRATIONS = Migrations("platform", "opsplane_server.platform")

# What handlers under test do: a row an effect, without a key, so that a second time shows.
EFFECTS = "CREATE TABLE public.effects (operation text NOT NULL, step text NOT NULL, owner text NOT NULL)"


@dataclass(frozen=True, slots=True)
class Platform:
    """One process of the platform: its connections and what is built on them."""

    dsn: str
    database: Database
    signals: Signals
    store: PostgresOperationStore
    requests: PostgresRequestStore
    audit: PostgresAuditStore
    operations: Operations
    changes: Changes

    def executor(
        self,
        handlers: Mapping[str, Handler],
        *,
        owner: str = "worker",
        node: str = "here",
        failure_hooks: Mapping[str, FailureHook] | None = None,
        lease_seconds: float = 30.0,
        concurrency: int = 50,
        max_crashes: int = 10,
    ) -> OperationExecutor:
        """An executor of this process that looks often, so that tests need not wait."""
        return OperationExecutor(
            self.store,
            self.database,
            handlers,
            owner=owner,
            node=node,
            signals=self.signals,
            failure_hooks=failure_hooks,
            lease_seconds=lease_seconds,
            poll_seconds=0.1,
            concurrency=concurrency,
            max_crashes=max_crashes,
        )

    async def submit(self, kind: str = "test.steps", **fields: Any) -> Operation:
        """An operation on a made-up target."""
        return await self.operations.submit(kind=kind, verb="DoIt", target="things/one", **fields)

    async def done(self, operation: Operation) -> Operation:
        """The operation when it is done."""
        while True:
            try:
                finished = await self.operations.wait(operation.name, 30)
            except Unavailable:  # some tests cut all connections
                continue
            assert finished.state.done, finished
            return finished

    async def value(self, query: str, *args: object) -> Any:
        """The first value of a query's first row."""
        async with self.database.connection() as connection:
            return await connection.fetchval(query, *args)

    async def run(self, statement: str, *args: object) -> None:
        """Runs a statement."""
        async with self.database.connection() as connection:
            await connection.execute(statement, *args)

    async def effect(self, operation: str, step: str, owner: str) -> None:
        """Writes one effect, in the transaction that is open."""
        await self.run("INSERT INTO public.effects VALUES ($1, $2, $3)", operation, step, owner)

    async def effects(self, operation: str) -> list[str]:
        """The steps that took effect, sorted."""
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT step FROM public.effects WHERE operation = $1", operation)
        return sorted(row["step"] for row in rows)


async def prepare(dsn: str) -> None:
    """Migrates an empty database and makes the table of effects."""
    await migrate(dsn, [MIGRATIONS])
    async with Database(dsn, min_size=1, max_size=1) as database, database.connection() as connection:
        await connection.execute(EFFECTS)


@asynccontextmanager
async def connect(dsn: str, *, max_size: int = 10) -> AsyncIterator[Platform]:
    """The platform over a prepared database."""
    async with Database(dsn, min_size=1, max_size=max_size) as database, Signals(dsn) as signals:
        store, requests = PostgresOperationStore(database), PostgresRequestStore(database)
        audit = PostgresAuditStore(database)
        yield Platform(
            dsn=dsn,
            database=database,
            signals=signals,
            store=store,
            requests=requests,
            audit=audit,
            operations=Operations(store, signals, poll_seconds=0.1),
            changes=Changes(database, requests, audit, signals, SecretBox([bytes(32)])),
        )


@pytest.fixture
async def platform(dsn: str) -> AsyncIterator[Platform]:
    """The platform over an empty database."""
    await prepare(dsn)
    async with connect(dsn) as connected:
        yield connected


def call_as(name: str, *, method: str = "/test.Service/Do", trace_id: str = "") -> Token[Call]:
    """Makes what this task does from here on part of a call by that caller."""
    return set_call(
        Call(method=method, principal=Principal(name, {"*": Role.ADMIN}), peer="ipv4:127.0.0.1", trace_id=trace_id)
    )


@contextmanager
def calling_as(name: str) -> Iterator[None]:
    """As `call_as`, for fixtures: what comes after it is part of no call again."""
    token = call_as(name)
    try:
        yield
    finally:
        reset_call(token)
