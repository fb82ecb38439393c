"""What the Kafka queue needs of the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from opsplane_server.ftptransfer.queues.kafka.messages import Rejected, Result, TaskMessage
from opsplane_server.storage.followers import Position


@dataclass(frozen=True, slots=True)
class Admitted:
    """How many messages became transfers, were known before, and were refused."""

    new: int
    known: int
    rejected: int


class Inbox(Protocol):
    """Where messages become transfers."""

    async def admit(self, tasks: Sequence[TaskMessage], rejected: Sequence[Rejected]) -> Admitted:
        """Keeps all of them in one transaction: tasks as transfers, the rest as failures to publish.

        Messages that came before change nothing. A task that is wrong becomes a transfer that failed; one whose task_id
        is that of a task between other places is rejected.
        """
        ...

    async def backlog(self) -> int:
        """About how many transfers have not ended."""
        ...


class Outbox(Protocol):
    """What is to be published, and whose turn it is to do it."""

    async def lease(self, owner: str, seconds: float) -> str | None:
        """Makes `owner` the publisher for so long, or longer; the outbox's name, None while another one is."""
        ...

    async def leave(self, owner: str) -> None:
        """Ends the lease at once."""
        ...

    async def unpublished(self, after: Position, limit: int) -> Sequence[tuple[Position, Result]]:
        """The next results behind a position, none of which an earlier one can still precede."""
        ...

    async def published(self, through: Position) -> None:
        """Forgets the results up to a position, and keeps the position."""
        ...

    async def confirm(self, position: Position) -> bool:
        """Like `published` for what another process published; False if this database never came to that position.

        Then it was taken back to an older state, and nothing is changed.
        """
        ...

    async def rename(self, owner: str) -> None:
        """Gives the outbox another name, so that no position under its old one counts any more."""
        ...
