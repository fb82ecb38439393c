"""What the platform needs from outside: stores, transactions, signals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol

from opsplane_server.platform.model import (
    AuditEvent,
    Checkpoint,
    Lease,
    NewOperation,
    Operation,
    Outcome,
    RecordedRequest,
    RequestKey,
)
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest


class Transactions(Protocol):
    """Opens transactions; the stores' calls of the same task join the one that is open."""

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Joins this task's transaction, else begins one. Raises Unavailable, Aborted."""
        ...


class Signal(Protocol):
    """A hint between processes that something changed; it may get lost, so every waiter also polls."""

    @property
    def generation(self) -> int:
        """Read before the state, and given to `changed`, so that no hint between the two is missed."""
        ...

    def notify(self) -> None:
        """Tells all processes; never raises, never waits."""
        ...

    async def changed(self, seen: int, timeout: float) -> bool:
        """Waits up to `timeout` seconds for a generation other than `seen`; False when none came."""
        ...


class Topics(Protocol):
    """Gives signals by name."""

    def topic(self, name: str) -> Signal:
        """The signal of this name, the same in all processes."""
        ...


class Fingerprints(Protocol):
    """Makes marks of data by which they are known again, and which tell nothing of them to others."""

    def fingerprint(self, data: bytes) -> bytes:
        """The mark."""
        ...

    def is_of(self, fingerprint: bytes, data: bytes) -> bool:
        """Whether a mark was made of these data."""
        ...


class OperationStore(Protocol):
    """Keeps operations. All calls join the task's transaction, and raise Unavailable when the store is away."""

    async def insert(self, operation: NewOperation) -> Operation:
        """Stores it as PENDING."""
        ...

    async def get(self, name: str) -> Operation:
        """Raises NotFound."""
        ...

    async def list_operations(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Operation]:
        """Up to `page.size + 1` operations that are not hidden, newest first; the key of a page is the `id`."""
        ...

    async def request_cancel(self, name: str) -> Operation:
        """Marks an unfinished operation as to be cancelled; a finished one stays as it is. Raises NotFound."""
        ...

    async def delete(self, name: str) -> None:
        """Removes a finished operation. Raises NotFound, FailedPrecondition (OPERATION_NOT_DONE)."""
        ...

    async def acquire(
        self, kinds: Collection[str], *, owner: str, node: str, lease: timedelta, limit: int, busy: Collection[str]
    ) -> list[Operation]:
        """Takes the oldest operations that nobody works on: of these kinds, for any node or this one.

        Names in `busy` are left out: this process still works on them under an older generation.
        """
        ...

    async def renew(self, lease: Lease, duration: timedelta) -> Operation:
        """Lengthens the lease to `duration` from now by the store's clock. Raises LeaseLost."""
        ...

    async def lock(self, lease: Lease, idle: timedelta) -> None:
        """Holds the operation for the rest of the transaction, so that no take-over can come between.

        The store ends the transaction when its process is silent for longer than `idle`. Raises LeaseLost.
        """
        ...

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Operation:
        """Raises LeaseLost."""
        ...

    async def finish(self, lease: Lease, outcome: Outcome) -> Operation:
        """Ends the operation. Raises LeaseLost."""
        ...

    async def release(self, owner: str, name: str | None = None) -> None:
        """Gives back this owner's lease of one operation, or all that it holds; others can go on at once."""
        ...

    async def cancel_requests(self, owner: str) -> set[str]:
        """Names of the operations that this owner holds and somebody wants cancelled."""
        ...

    async def purge(self, older_than: timedelta, limit: int) -> int:
        """Removes up to `limit` operations that ended before that age; returns how many."""
        ...


class RequestStore(Protocol):
    """Keeps what was answered to request ids."""

    async def claim(self, key: RequestKey, body_hash: bytes) -> RecordedRequest | None:
        """Records the request in the task's transaction, or returns what is recorded under this key.

        Waits while another transaction that has recorded the key is still open.
        """
        ...

    async def find(self, key: RequestKey) -> RecordedRequest | None:
        """What is recorded under this key; never waits."""
        ...

    async def answer(self, key: RequestKey, response: bytes) -> None:
        """Adds the answer to the request that this transaction has claimed."""
        ...

    async def purge(self, older_than: timedelta, limit: int) -> int:
        """Forgets up to `limit` requests older than that; returns how many."""
        ...


class AuditStore(Protocol):
    """Keeps who changed what."""

    async def append(self, event: AuditEvent) -> None:
        """Writes the event in the task's transaction."""
        ...

    async def list_events(self, page: PageRequest, conditions: Sequence[Condition]) -> list[AuditEvent]:
        """Up to `page.size + 1` events, newest first; the key of a page is the `id`."""
        ...
