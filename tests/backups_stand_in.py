"""A stand-in for the service Instances that keeps copies in memory.

Its operations are real ones of the platform, so that progress, cancelling and crashes are those of the real service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.instances.v1 import copies_pb2, copies_pb2_grpc, instance_pb2, instances_pb2, instances_pb2_grpc
from opsplane_server.errors import FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.convert import operation_to_proto
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import OperationCancelled
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.server import Registration

from tests.platform_harness import Platform
from tests.rpc_harness import registration

Context = grpc.aio.ServicerContext[Any, Any]
MIB = 1 << 20


@dataclass
class StandIn:
    """What the stand-in has, and how it is to behave. held: kinds of work that wait until the test lets them go on."""

    platform: Platform
    instances: dict[str, instance_pb2.Instance] = field(default_factory=dict)
    copies: dict[str, copies_pb2.InstanceCopy] = field(default_factory=dict)
    archives: dict[str, copies_pb2.ArchiveCopyRequest] = field(default_factory=dict)
    restored: list[copies_pb2.RestoreCopyRequest] = field(default_factory=list)
    pruned: list[tuple[str, str]] = field(default_factory=list)
    events: list[copies_pb2.RecordEventRequest] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    errors: dict[str, Exception] = field(default_factory=dict)
    refused_hosts: set[str] = field(default_factory=set)
    failed_checks: set[str] = field(default_factory=set)
    running: dict[str, int] = field(default_factory=dict)
    most_running: dict[str, int] = field(default_factory=dict)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    export_folder: str = "/exports"

    def add(self, instance_id: str, *, logged: bool = False, days: int = 7) -> instance_pb2.Instance:
        """An instance that serves."""
        instance = instance_pb2.Instance(
            name=f"instances/{instance_id}",
            uid=new_id(),
            engine=instance_pb2.ENGINE_POSTGRESQL,
            version="18.4",
            running_version="18.4",
            provider=instance_pb2.PROVIDER_LOCAL,
            database="app",
            username="app",
            state=instance_pb2.Instance.STATE_READY,
        )
        instance.resources.storage_bytes = 1024 * MIB
        if logged:
            instance.point_in_time_recovery.enabled = True
            instance.point_in_time_recovery.window_days = days
        self.instances[instance.name] = instance
        return instance

    def event_kinds(self, resource: str) -> list[str]:
        """The kinds of the events about a resource, in order."""
        return [
            type(request.event).Kind.Name(request.event.kind).removeprefix("KIND_")
            for request in self.events
            if request.event.resource == resource
        ]

    async def hold(self, kind: str) -> None:
        """From here on such work waits."""
        async with self.moved:
            self.held.add(kind)

    async def let_go(self, kind: str) -> None:
        """Lets waiting work go on."""
        async with self.moved:
            self.held.discard(kind)
            self.moved.notify_all()

    async def working(self, kind: str, execution: Execution) -> None:
        """The work of an operation: waits while it is held, and ends as the test wants it to."""
        self.running[kind] = self.running.get(kind, 0) + 1
        self.most_running[kind] = max(self.most_running.get(kind, 0), self.running[kind])
        try:
            await execution.checkpoint("working", stage=f"{kind} under way", progress_percent=50)
            cancelled = asyncio.create_task(execution.cancelled())
            try:
                async with self.moved:
                    cancelled.add_done_callback(lambda _: asyncio.create_task(self._wake()))
                    await self.moved.wait_for(lambda: kind not in self.held or cancelled.done())
            finally:
                cancelled.cancel()
            if execution.cancel_requested and kind in self.held:
                raise OperationCancelled
            if kind in self.errors:
                raise self.errors[kind]
        finally:
            self.running[kind] -= 1

    async def _wake(self) -> None:
        async with self.moved:
            self.moved.notify_all()


class _Instances(instances_pb2_grpc.InstancesServicer):
    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    async def GetInstance(  # noqa: N802
        self, request: instances_pb2.GetInstanceRequest, context: Context
    ) -> instance_pb2.Instance:
        if request.name not in self._stand_in.instances:
            raise NotFound.resource(request.name)
        return self._stand_in.instances[request.name]

    async def ListInstances(  # noqa: N802
        self, request: instances_pb2.ListInstancesRequest, context: Context
    ) -> instances_pb2.ListInstancesResponse:
        return instances_pb2.ListInstancesResponse(instances=self._stand_in.instances.values())


class _Copies(copies_pb2_grpc.InstanceCopiesServicer):
    def __init__(self, stand_in: StandIn, changes: Changes) -> None:
        self._stand_in = stand_in
        self._changes = changes

    async def CopyInstance(  # noqa: N802
        self, request: copies_pb2.CopyInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        if "refuse" in self._stand_in.errors:
            raise FailedPrecondition("it does not serve", reason="INSTANCE_NOT_SERVING")
        return await self._submit("copy", request.name, request)

    async def RestoreCopy(  # noqa: N802
        self, request: copies_pb2.RestoreCopyRequest, context: Context
    ) -> operations_pb2.Operation:
        self._stand_in.restored.append(request)
        plain = copies_pb2.RestoreCopyRequest()
        plain.CopyFrom(request)
        plain.instance.ClearField("password")
        return await self._submit("restore", f"instances/{request.instance_id}", request, plain)

    async def CheckCopy(  # noqa: N802
        self, request: copies_pb2.CheckCopyRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self._submit("check", request.copy.location, request)

    async def ArchiveCopy(  # noqa: N802
        self, request: copies_pb2.ArchiveCopyRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self._submit("archive", request.location, request)

    async def DeleteCopy(  # noqa: N802
        self, request: copies_pb2.DeleteCopyRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self._submit("delete", request.location, request)

    async def RecordEvent(  # noqa: N802
        self, request: copies_pb2.RecordEventRequest, context: Context
    ) -> Empty:
        if "event" in self._stand_in.errors:
            raise self._stand_in.errors["event"]
        if any(host in webhook.url for webhook in request.webhooks for host in self._stand_in.refused_hosts):
            raise InvalidArgument.of("webhooks", "the host is not allowed")
        if request.deduplication_key not in {one.deduplication_key for one in self._stand_in.events}:
            self._stand_in.events.append(request)
        return Empty()

    async def _submit(
        self, kind: str, target: str, request: Any, stored: Message | None = None
    ) -> operations_pb2.Operation:
        async def submit() -> operations_pb2.Operation:
            operation = await self._stand_in.platform.operations.submit(
                kind=f"standin.{kind}", verb=kind, target=target, request=stored or request, hidden=True
            )
            return operation_to_proto(operation)

        return await self._changes.apply(request, operations_pb2.Operation, submit)


class _Handlers:
    """What the operations of the stand-in do."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def all(self) -> dict[str, Callable[[Execution], Awaitable[Message | None]]]:
        return {
            "standin.copy": self._copy,
            "standin.restore": self._restore,
            "standin.check": self._check,
            "standin.archive": self._archive,
            "standin.delete": self._delete,
        }

    async def _copy(self, execution: Execution) -> Message:
        request = execution.request(copies_pb2.CopyInstanceRequest)
        start = now()
        await self._stand_in.working("copy", execution)
        instance = self._stand_in.instances[request.name]
        end = now()
        copy = copies_pb2.InstanceCopy(
            location=f"copies/{request.copy_id}",
            engine=instance.engine,
            engine_version=instance.running_version,
            provider=instance.provider,
            method="PHYSICAL",
            consistency="TRANSACTION",
            node=f"{request.name.removeprefix('instances/')}-1",
            databases=["app"],
            users=["app"],
            tables={"app.public.orders": 3},
            size_bytes=20 * MIB,
            restore_size_bytes=300 * MIB,
            start_time=start,
            cut_time=end,
            complete_time=end,
            base=request.base,
            settings=instance,
        )
        self._stand_in.copies[copy.location] = copy
        return copy

    async def _restore(self, execution: Execution) -> Message:
        request = execution.request(copies_pb2.RestoreCopyRequest)
        await self._stand_in.working("restore", execution)
        instance = self._stand_in.add(request.instance_id)
        instance.source_backup = request.backup
        return instance

    async def _check(self, execution: Execution) -> Message:
        request = execution.request(copies_pb2.CheckCopyRequest)
        await self._stand_in.working("check", execution)
        report = copies_pb2.CopyReport(table_count=1, row_count=3)
        report.restore_duration.FromTimedelta(timedelta(seconds=1))
        bad = request.copy.location in self._stand_in.failed_checks
        for kind in ("FILES", "START", "CATALOG", "ROWS", "CHECKSUMS"):
            result = "FAILED" if bad and kind == "ROWS" else "PASSED"
            report.checks.add(kind=kind, result=result, message=f"{kind} of {request.copy.location}")
        return report

    async def _archive(self, execution: Execution) -> Message:
        request = execution.request(copies_pb2.ArchiveCopyRequest)
        await self._stand_in.working("archive", execution)
        self._stand_in.archives[request.path] = request
        return copies_pb2.CopyArchive(
            path=request.path,
            size_bytes=7 * MIB,
            sha256="0" * 64,
            file=f"{self._stand_in.export_folder}/{request.path}",
        )

    async def _delete(self, execution: Execution) -> None:
        request = execution.request(copies_pb2.DeleteCopyRequest)
        await self._stand_in.working("delete", execution)
        if request.location:
            self._stand_in.copies.pop(request.location, None)
        if request.archive:
            self._stand_in.pruned.append((request.archive, request.keep_from))


def registrations(stand_in: StandIn, changes: Changes) -> list[Registration]:
    """Its services."""
    instances = _Instances(stand_in)  # type: ignore[abstract]  # what backups do not call answers UNIMPLEMENTED
    return [
        registration(instances_pb2_grpc.add_InstancesServicer_to_server, instances),
        registration(copies_pb2_grpc.add_InstanceCopiesServicer_to_server, _Copies(stand_in, changes)),
    ]


def handlers(stand_in: StandIn) -> dict[str, Callable[[Execution], Awaitable[Message | None]]]:
    """What its operations do."""
    return _Handlers(stand_in).all()


def now() -> Timestamp:
    """The moment, as a Timestamp."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC))
    return moment
