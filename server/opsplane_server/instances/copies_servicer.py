"""InstanceCopies: what Opsplane's own services ask of instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any, Final

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from opsplane.instances.v1 import copies_pb2, copies_pb2_grpc, instance_pb2

from opsplane_server.errors import InvalidArgument
from opsplane_server.instances import names, settings, versions
from opsplane_server.instances.convert_events import kind_of, severity_of
from opsplane_server.instances.events import Events
from opsplane_server.instances.events import severity_of as usual_severity
from opsplane_server.instances.instances import Instances, Providers, new_secrets
from opsplane_server.instances.model import ProviderKind
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.records import Event, EventKind, Instance
from opsplane_server.instances.stores.ports import InstanceStore
from opsplane_server.instances.submission import Plan, Submission, check_serving
from opsplane_server.instances.webhooks import check_host
from opsplane_server.platform.changes import Changes
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.ids import new_id

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE: Final = copies_pb2.DESCRIPTOR.services_by_name["InstanceCopies"].full_name


class InstanceCopiesServicer(copies_pb2_grpc.InstanceCopiesServicer):
    """`opsplane.instances.v1.InstanceCopies`."""

    def __init__(
        self,
        changes: Changes,
        submission: Submission,
        instances: Instances,
        providers: Providers,
        events: Events,
        *,
        store: InstanceStore,
        webhook_hosts: Sequence[str],
    ) -> None:
        self._changes = changes
        self._submission = submission
        self._instances = instances
        self._providers = providers
        self._events = events
        self._store = store
        self._webhook_hosts = webhook_hosts

    async def CopyInstance(self, request: copies_pb2.CopyInstanceRequest, context: Context) -> operations_pb2.Operation:
        """See the proto, as for all methods below. Copies are made beside changes of the instance."""

        async def plan() -> Plan:
            instance = await self._store.get(request.name)
            check_serving(instance)
            return Plan(kinds.COPY, instance.name, instance.spec.machine, Empty(), _nothing)

        return await self._submission.submit(request, plan)

    async def RestoreCopy(self, request: copies_pb2.RestoreCopyRequest, context: Context) -> operations_pb2.Operation:
        """Makes the record and the passwords, as CreateInstance does."""

        async def plan() -> Plan:
            instance = await self._restored(request)
            secrets = new_secrets(instance, request.instance.password)
            return await self._instances.plan_new(kinds.RESTORE_COPY, instance, secrets)

        return await self._submission.submit(request, plan)

    async def CheckCopy(self, request: copies_pb2.CheckCopyRequest, context: Context) -> operations_pb2.Operation:
        """Submits; the engine must be installed."""

        async def plan() -> Plan:
            await self._version(request.copy, self._kind(request.copy))
            return self._beside(kinds.CHECK_COPY, request.copy.location)

        return await self._submission.submit(request, plan)

    async def ArchiveCopy(self, request: copies_pb2.ArchiveCopyRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""

        async def plan() -> Plan:
            return self._beside(kinds.ARCHIVE_COPY, request.location)

        return await self._submission.submit(request, plan)

    async def DeleteCopy(self, request: copies_pb2.DeleteCopyRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""

        async def plan() -> Plan:
            return self._beside(kinds.DELETE_COPY, request.location)

        return await self._submission.submit(request, plan)

    async def RecordEvent(self, request: copies_pb2.RecordEventRequest, context: Context) -> Empty:
        """Records, and keeps in mind which backup is the newest."""
        message, webhooks = request.event, settings.webhooks(request.webhooks)
        for webhook in webhooks:
            check_host(webhook.url, self._webhook_hosts)
        try:
            kind = kind_of(message.kind)
        except ValueError:
            raise InvalidArgument.of("event.kind", "is required") from None
        event = Event(
            kind=kind,
            severity=severity_of(message.severity) or usual_severity(kind),
            instance=message.instance,
            instance_uid=message.instance_uid,
            message=message.message,
            resource=message.resource,
            operation=message.operation,
            trace_id=current_call().trace_id,
        )

        async def record() -> Empty:
            instance = await self._store.find(event.instance)
            if instance is not None and instance.uid != event.instance_uid:
                instance = None
            everywhere = (*webhooks, *(instance.webhooks if instance is not None else ()))
            kept = await self._events.record(event, webhooks=everywhere, deduplication_key=request.deduplication_key)
            if kept is not None and instance is not None and kind is EventKind.BACKUP_COMPLETED:
                # The sampling finds out the rest; until then the name alone is right.
                await self._store.set_backups(instance.uid, replace(instance.backups, name=event.resource))
            return Empty()

        return await self._changes.apply(request, Empty, record)

    async def _restored(self, request: copies_pb2.RestoreCopyRequest) -> Instance:
        kind = self._kind(request.copy)
        if request.instance.provider:
            kind = settings.provider_of(request.instance.provider, kind)
        version = await self._version(request.copy, kind)
        source = instance_pb2.Instance()
        source.CopyFrom(request.copy.settings)
        source.engine = request.copy.engine
        instance = settings.restored_instance(
            source,
            request.instance,
            name=names.instance(request.instance_id),
            uid=new_id(),
            version=version,
            provider=kind,
            machine=self._providers.machine_of(kind),
        )
        moment = request.stop_time if request.HasField("stop_time") else request.copy.cut_time
        return replace(instance, source_backup=request.backup, source_time=moment.ToDatetime(tzinfo=UTC))

    def _kind(self, copy: copies_pb2.InstanceCopy) -> ProviderKind:
        return settings.provider_of(copy.provider, self._providers.default)

    async def _version(self, copy: copies_pb2.InstanceCopy, kind: ProviderKind) -> str:
        """The newest of the same major version: data files fit those alone."""
        engine = settings.engine_of(instance_pb2.Instance(engine=copy.engine))
        return await self._instances.exact_version(kind, engine, versions.major(engine, copy.engine_version))

    def _beside(self, kind: str, location: str) -> Plan:
        machine = self._providers.machine_of(self._providers.default)
        return Plan(kind, location, machine, Empty(), _nothing)


async def _nothing(operation: str) -> None:
    """There is no record to write."""
