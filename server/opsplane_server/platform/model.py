"""Domain types of the platform: operations, leases, outcomes, audit events. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from google.protobuf import any_pb2
from google.rpc import status_pb2


class OperationState(StrEnum):
    """Where an operation is in its life; the last three are final."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (OperationState.PENDING, OperationState.RUNNING)


class OperationCancelled(Exception):
    """A handler raises it to end its operation as CANCELLED, after it has undone or kept what it must."""


@dataclass(frozen=True, slots=True)
class NewOperation:
    """An operation as it is submitted; `node` is the only machine that may work on it, None for any."""

    name: str
    kind: str
    verb: str
    target: str
    principal: str
    request: any_pb2.Any | None = None
    request_id: str = ""
    node: str | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as it is stored.

    `step` and `data` are the last checkpoint of its handler; `stage` and `progress_percent` (0 to 100) are for
    people. `generation` and `attempt` count the take-overs, `crashes` those from a process that had not given the
    lease back. `revision` grows with each change that a watcher should see.
    """

    id: int
    name: str
    kind: str
    verb: str
    target: str
    principal: str
    request: any_pb2.Any | None
    request_id: str
    node: str | None
    hidden: bool
    state: OperationState
    step: str
    data: dict[str, Any]
    stage: str
    progress_percent: int
    cancel_requested: bool
    generation: int
    attempt: int
    crashes: int
    response: any_pb2.Any | None
    error: status_pb2.Status | None
    revision: int
    create_time: datetime
    update_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one process to work on one operation, until another process takes it over."""

    name: str
    owner: str
    generation: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ends: SUCCEEDED with a response, FAILED or CANCELLED with an error."""

    state: OperationState
    response: any_pb2.Any | None = None
    error: status_pb2.Status | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a handler came. What is None or empty keeps its last value; `data` replaces the whole object."""

    step: str
    data: dict[str, Any] | None = None
    stage: str = ""
    progress_percent: int | None = None


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request_id is unique within: the same id of another caller or method is another request."""

    principal: str
    method: str
    request_id: str


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that was answered before: the hash of its body and the serialized answer."""

    body_hash: bytes
    response: bytes


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One change that somebody asked for; `id` and `event_time` are given by the store."""

    principal: str
    method: str
    resource: str
    request_id: str
    peer: str
    trace_id: str
    id: int = 0
    event_time: datetime | None = None
