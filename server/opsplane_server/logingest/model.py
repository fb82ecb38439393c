"""The words of log ingestion: what an acknowledgement promises, who sends, what became of a batch."""

from __future__ import annotations

from enum import Enum
from typing import Final

from opsplane.logingest.v1 import records_pb2

from opsplane_server.errors import InvalidArgument

MAX_RECORDS: Final = 1000
"""Most records of a batch."""


class Durability(Enum):
    """What an acknowledgement promises; the values are what PostgreSQL calls `synchronous_commit`."""

    DURABLE = "on"
    FAST = "off"

    @classmethod
    def of(cls, value: int) -> Durability:
        """The durability of an API number; InvalidArgument for one that does not exist."""
        if value in (records_pb2.DURABILITY_UNSPECIFIED, records_pb2.DURABILITY_DURABLE):
            return cls.DURABLE
        if value == records_pb2.DURABILITY_FAST:
            return cls.FAST
        raise InvalidArgument.of("settings.durability", "is none of those known")


def sender_of(principal: str, client_id: str) -> str:
    """Who sends: batch ids are told apart by it. A client id has no `|`, so two senders never share a name."""
    return f"{client_id}|{principal}"
