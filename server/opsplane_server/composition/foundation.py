"""What services are built on, and what a service adds to the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

from opsplane_server.config import Settings
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.execution import FailureHook, Handler
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.operations import Operations
from opsplane_server.platform.stores.postgres import PostgresOperationStore
from opsplane_server.rpc.identity import Authenticator
from opsplane_server.rpc.peers import Peers
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signals


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


Builder: TypeAlias = Callable[[Foundation, AsyncExitStack], Awaitable[Service]]
"""Builds a service; what must be closed again goes on the stack."""


async def run_executor(
    foundation: Foundation,
    stack: AsyncExitStack,
    name: str,
    handlers: Mapping[str, Handler],
    failure_hooks: Mapping[str, FailureHook],
    *,
    concurrency: int,
) -> None:
    """Opens an executor of these kinds of operations alone, beside the one that all others share.

    For kinds that wait for other operations, or that others wait for: in one executor those that wait could take all
    its places. `concurrency` is how many this process does at once.
    """
    await stack.enter_async_context(
        OperationExecutor(
            PostgresOperationStore(foundation.database),
            foundation.database,
            handlers,
            owner=f"{foundation.owner}/{name}",
            node=foundation.node,
            signals=foundation.signals,
            failure_hooks=failure_hooks,
            concurrency=concurrency,
        )
    )
