"""Stores of the room. All join the transaction of their caller where there is one, and raise Unavailable.

Instances are spoken of by name; a missing one raises NotFound. Whoever changes a record reads it by `lock` and writes
it by `save` in one transaction, so that handlers, calls and the supervision loop never overwrite one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from opsplane_server.instances.model import Secrets
from opsplane_server.instances.records import (
    BackupFigures,
    Event,
    Granularity,
    Instance,
    InstanceSample,
    UsageAmounts,
    UsageSpan,
    Webhook,
    WebhookPost,
)
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.followers import Position


class InstanceStore(Protocol):
    """The records of instances, and their passwords."""

    async def insert(self, instance: Instance, secrets: Secrets) -> Instance:
        """Keeps a new record with the passwords. Raises AlreadyExists."""
        ...

    async def get(self, name: str) -> Instance:
        """The record, a hidden one too."""
        ...

    async def find(self, name: str) -> Instance | None:
        """The same; None when it is not there."""
        ...

    async def lock(self, name: str) -> Instance:
        """The record, which nobody else changes before the end of the transaction."""
        ...

    async def list_instances(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Instance]:
        """Up to `page.size + 1` that are not hidden, newest first; the key of a page is the `key`."""
        ...

    async def of_machine(self, machine: str) -> list[Instance]:
        """All that run there, hidden ones too, oldest first; "" for those that are bound to no machine."""
        ...

    async def save(self, instance: Instance) -> Instance:
        """Writes a record that this transaction has locked, and tells those who watch once it is committed.

        Whoever changes what the owner set raises `revision`. update_time moves when revision, state or message do.
        """
        ...

    async def delete(self, name: str) -> None:
        """Forgets the record and the passwords. Events and usage stay. Harmless when there is none."""
        ...

    async def set_backups(self, uid: str, figures: BackupFigures) -> None:
        """Keeps what is known of the backups, without a lock. Harmless when there is no such instance."""
        ...

    async def secrets(self, name: str) -> Secrets:
        """All passwords."""
        ...

    async def set_secrets(self, name: str, secrets: Secrets) -> None:
        """Replaces all passwords, those of all users too."""
        ...

    async def set_password(self, name: str, user: str, password: str) -> None:
        """Keeps a user's new password; "" forgets the user."""
        ...

    async def password_times(self, name: str) -> Mapping[str, datetime]:
        """When each user's password was last set."""
        ...


class PendingPasswords(Protocol):
    """Passwords of operations that are yet to set them: an operation's own request must carry no secret."""

    async def keep(self, operation: str, password: str) -> None:
        """Keeps the password until the operation forgets it; to be called in the transaction that submits it."""
        ...

    async def get(self, operation: str) -> str:
        """The password; "" for none."""
        ...

    async def forget(self, operation: str) -> None:
        """To be called in the transaction that ends the operation, however it ends."""
        ...


class EventStore(Protocol):
    """What happened, for ever."""

    async def append(self, event: Event, *, deduplication_key: str = "") -> Event | None:
        """The event with id and time; None when one of this key was recorded before."""
        ...

    async def list_events(self, instance: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Event]:
        """Up to `page.size + 1` of an instance, "instances/-" for all, newest first; the key of a page is the `id`.

        Raises NotFound when there neither is nor was such an instance.
        """
        ...

    async def end(self) -> Position:
        """After all events that are there now: where a follower of new ones begins."""
        ...

    async def after(self, uid: str, position: Position, limit: int) -> Sequence[tuple[Position, Event]]:
        """Settled events of an instance after a position, in order; see `storage.followers`."""
        ...


class WebhookOutbox(Protocol):
    """Events on their way to other systems."""

    async def add(self, event: Event, webhooks: Sequence[Webhook]) -> None:
        """To be called in the transaction that appends the event."""
        ...

    async def take(self, limit: int, lease: timedelta) -> Sequence[WebhookPost]:
        """Posts that are due, oldest first, for this process alone until the lease has run out."""
        ...

    async def done(self, post_id: int) -> None:
        """It was delivered, or is given up."""
        ...

    async def later(self, post_id: int, delay: timedelta, error: str) -> None:
        """It failed and is due again after `delay`."""
        ...

    async def next_due(self) -> datetime | None:
        """When the first of those that wait is due; None for none."""
        ...


class SampleStore(Protocol):
    """Samples of the last minutes."""

    async def add(self, uid: str, sample: InstanceSample) -> None:
        """Keeps a sample, and tells those who watch once it is committed."""
        ...

    async def latest(self, uid: str, limit: int = 1) -> list[InstanceSample]:
        """The newest ones, newest first."""
        ...

    async def prune(self, age: timedelta) -> None:
        """Forgets samples older than that."""
        ...


class UsageStore(Protocol):
    """Usage by hour, also of deleted instances."""

    async def metered_until(self, uid: str) -> datetime | None:
        """Up to when usage is counted; None before the first time. Held for the rest of the transaction, so that no
        time is counted twice.
        """
        ...

    async def add(
        self, instance: str, uid: str, until: datetime, hours: Sequence[tuple[datetime, UsageAmounts]]
    ) -> None:
        """Adds to hours, each by its first moment, and counts as far as `until` from here on."""
        ...

    async def list_usage(
        self, instance: str, start: datetime, end: datetime, granularity: Granularity, page: PageRequest
    ) -> list[UsageSpan]:
        """Up to `page.size + 1` spans of an instance, "instances/-" for all, by time, then uid.

        The key of a page is (start_time in seconds since 1970, uid).
        """
        ...

    async def total(self, instance: str, start: datetime, end: datetime) -> UsageAmounts:
        """The sum over the whole time. Raises NotFound when there neither is nor was such an instance."""
        ...
