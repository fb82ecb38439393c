"""What the write path needs of the storage."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from opsplane_server.logingest.encoding import Encoded
from opsplane_server.logingest.model import Durability


@dataclass(frozen=True, slots=True, order=True)
class BatchKey:
    """Tells a batch from all others that were ever sent."""

    sender: str
    batch_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a batch: how many records it had, and the serialized BatchResult."""

    record_count: int
    result: bytes


class RecordsRefused(Exception):
    """PostgreSQL refused the records, although they keep the rules; nothing was stored."""


class RecordWriter(Protocol):
    """One connection that stores groups. Any method raises Unavailable when it is lost."""

    async def reserve(self) -> int:
        """Returns the identity of a group, and of its first record."""
        ...

    async def store(
        self, group_id: int, encoded: Encoded | None, answers: Mapping[BatchKey, Answer], durability: Durability
    ) -> Mapping[BatchKey, Answer]:
        """Stores a group's records and the answers to its batches, all or nothing, and returns after the commit.

        Where some of the batches are known already, stores nothing and returns what was answered to them. A group that
        was stored before, by a call whose outcome its caller never learned, is not stored again, which counts as
        success. Raises RecordsRefused.
        """
        ...

    async def accepts(self, encoded: Encoded) -> bool:
        """Whether PostgreSQL takes these records; stores nothing."""
        ...


class RecordWriters(Protocol):
    """Connections to store groups by."""

    def writer(self) -> AbstractAsyncContextManager[RecordWriter]:
        """A connection for as long as the block lasts. Raises Unavailable."""
        ...
