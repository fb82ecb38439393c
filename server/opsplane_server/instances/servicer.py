"""Instances, RPC in and RPC out. Requests are validated and callers known before they come here."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.longrunning import operations_pb2
from opsplane.instances.v1 import (
    connections_pb2,
    databases_pb2,
    events_pb2,
    instance_pb2,
    instances_pb2,
    instances_pb2_grpc,
    lifecycle_pb2,
    monitoring_pb2,
    usage_pb2,
)

from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.convert_events import event_message
from opsplane_server.instances.databases import Databases
from opsplane_server.instances.filtering import Fields, enum_names, page_by_name, without_prefixes
from opsplane_server.instances.instances import Instances
from opsplane_server.instances.model import Engine, InstanceState, ProviderKind
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.reading import Reading
from opsplane_server.instances.records import EventKind, Severity
from opsplane_server.instances.stores.ports import EventStore, InstanceStore
from opsplane_server.instances.submission import shown
from opsplane_server.instances.watch import InstanceWatcher
from opsplane_server.platform.changes import Changes
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.filters import FieldType, parse
from opsplane_server.rpc.identity import Role
from opsplane_server.rpc.paging import next_page_token, page_request

Context = grpc.aio.ServicerContext[Any, Any]

# The full name; taking it from the descriptor also loads the roles of the RPCs, which no message refers to.
SERVICE: Final = instances_pb2.DESCRIPTOR.services_by_name["Instances"].full_name
_ROLES: Final = "instances"
_LABEL: Final = re.compile(r"labels\.[a-z]([a-z0-9_.-]{0,61}[a-z0-9])?")


class _InstanceFields(dict[str, Any]):
    """The fields of ListInstances' filter; every label is one."""

    def get(self, key: str, default: Any = None) -> Any:
        return FieldType.STRING if _LABEL.fullmatch(key) else super().get(key, default)


_INSTANCE_PREFIXES: Final = {"engine": "ENGINE_", "provider": "PROVIDER_", "state": "STATE_"}
_INSTANCE_FIELDS: Final[Fields] = _InstanceFields(
    {
        "engine": enum_names("ENGINE_", (engine.value for engine in Engine)),
        "provider": enum_names("PROVIDER_", (kind.value for kind in ProviderKind)),
        "state": enum_names("STATE_", (state.value for state in InstanceState)),
        "highly_available": FieldType.BOOLEAN,
        "placement.namespace": FieldType.STRING,
        "create_time": FieldType.TIME,
    }
)
_EVENT_PREFIXES: Final = {"kind": "KIND_", "severity": "SEVERITY_"}
_EVENT_FIELDS: Final[Fields] = {
    "kind": enum_names("KIND_", (kind.value for kind in EventKind)),
    "severity": enum_names("SEVERITY_", (severity.value for severity in Severity)),
    "instance_uid": FieldType.STRING,
    "node": FieldType.STRING,
    "resource": FieldType.STRING,
    "operation": FieldType.STRING,
    "event_time": FieldType.TIME,
}


class InstancesServicer(instances_pb2_grpc.InstancesServicer):
    """`opsplane.instances.v1.Instances`."""

    def __init__(
        self,
        changes: Changes,
        instances: Instances,
        databases: Databases,
        reading: Reading,
        watcher: InstanceWatcher,
        *,
        store: InstanceStore,
        events: EventStore,
    ) -> None:
        self._changes = changes
        self._instances = instances
        self._databases = databases
        self._reading = reading
        self._watcher = watcher
        self._store = store
        self._events = events

    # --- instances

    async def CreateInstance(
        self, request: instances_pb2.CreateInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the proto, as for all methods below."""
        return await self._instances.create(request)

    async def GetInstance(self, request: instances_pb2.GetInstanceRequest, context: Context) -> instance_pb2.Instance:
        """Reads what is stored."""
        return instance_message(shown(await self._store.get(request.name)))

    async def ListInstances(
        self, request: instances_pb2.ListInstancesRequest, context: Context
    ) -> instances_pb2.ListInstancesResponse:
        """Reads a page."""
        binding = f"ListInstances {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        conditions = without_prefixes(parse(request.filter, _INSTANCE_FIELDS), _INSTANCE_PREFIXES)
        found = await self._store.list_instances(page, conditions)
        more = len(found) > page.size
        return instances_pb2.ListInstancesResponse(
            instances=[instance_message(instance) for instance in found[: page.size]],
            next_page_token=next_page_token(binding, [found[page.size - 1].key]) if more else "",
        )

    async def UpdateInstance(
        self, request: instances_pb2.UpdateInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.update(request)

    async def DeleteInstance(
        self, request: instances_pb2.DeleteInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.delete(request)

    async def GetConnectionInfo(
        self, request: connections_pb2.GetConnectionInfoRequest, context: Context
    ) -> connections_pb2.ConnectionInfo:
        """Reads secrets, which is audited as a change is."""
        return await self._changes.apply(
            request, connections_pb2.ConnectionInfo, lambda: self._databases.connection_info(request)
        )

    # --- its life

    async def RecoverInstance(
        self, request: lifecycle_pb2.RecoverInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.recover(request)

    async def StartInstance(
        self, request: lifecycle_pb2.StartInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.start(request)

    async def StopInstance(
        self, request: lifecycle_pb2.StopInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.stop(request)

    async def RestartInstance(
        self, request: lifecycle_pb2.RestartInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.restart(request)

    async def Failover(self, request: lifecycle_pb2.FailoverRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.change_primary(kinds.FAILOVER, request)

    async def Switchover(self, request: lifecycle_pb2.SwitchoverRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.change_primary(kinds.SWITCHOVER, request)

    async def UpgradeInstance(
        self, request: lifecycle_pb2.UpgradeInstanceRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.upgrade(request)

    async def RollbackUpgrade(
        self, request: lifecycle_pb2.RollbackUpgradeRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._instances.roll_back(request)

    # --- databases and users

    async def CreateDatabase(
        self, request: databases_pb2.CreateDatabaseRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.create_database(request)

    async def ListDatabases(
        self, request: databases_pb2.ListDatabasesRequest, context: Context
    ) -> databases_pb2.ListDatabasesResponse:
        """Asks the engine."""
        found, token = page_by_name(
            await self._databases.list_databases(request.parent),
            lambda database: database.name,
            page_size=request.page_size,
            page_token=request.page_token,
            binding=f"ListDatabases {request.parent}",
        )
        return databases_pb2.ListDatabasesResponse(databases=found, next_page_token=token)

    async def DeleteDatabase(
        self, request: databases_pb2.DeleteDatabaseRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.delete_database(request)

    async def CreateUser(self, request: databases_pb2.CreateUserRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.create_user(request)

    async def ListUsers(
        self, request: databases_pb2.ListUsersRequest, context: Context
    ) -> databases_pb2.ListUsersResponse:
        """Asks the engine."""
        found, token = page_by_name(
            await self._databases.list_users(request.parent),
            lambda user: user.name,
            page_size=request.page_size,
            page_token=request.page_token,
            binding=f"ListUsers {request.parent}",
        )
        return databases_pb2.ListUsersResponse(users=found, next_page_token=token)

    async def UpdateUser(self, request: databases_pb2.UpdateUserRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.update_user(request)

    async def DeleteUser(self, request: databases_pb2.DeleteUserRequest, context: Context) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.delete_user(request)

    async def RotatePassword(
        self, request: databases_pb2.RotatePasswordRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""
        return await self._databases.rotate_password(request)

    # --- what it does

    async def WatchInstance(
        self, request: monitoring_pb2.WatchInstanceRequest, context: Context
    ) -> AsyncIterator[monitoring_pb2.WatchInstanceResponse]:
        """Streams from the store, so that any process can serve it."""
        async for update in self._watcher.watch(request):
            yield update

    async def ListParameters(
        self, request: monitoring_pb2.ListParametersRequest, context: Context
    ) -> monitoring_pb2.ListParametersResponse:
        """Asks the engine."""
        return await self._reading.list_parameters(request)

    async def ListSlowQueries(
        self, request: monitoring_pb2.ListSlowQueriesRequest, context: Context
    ) -> monitoring_pb2.ListSlowQueriesResponse:
        """Asks the engine."""
        return await self._reading.list_slow_queries(request)

    async def ListEvents(
        self, request: events_pb2.ListEventsRequest, context: Context
    ) -> events_pb2.ListEventsResponse:
        """Reads a page."""
        binding = f"ListEvents {request.parent} {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        conditions = without_prefixes(parse(request.filter, _EVENT_FIELDS), _EVENT_PREFIXES)
        found = await self._events.list_events(request.parent, page, conditions)
        principal = current_call().principal.allows(_ROLES, Role.ADMIN)
        return events_pb2.ListEventsResponse(
            events=[event_message(event, principal=principal) for event in found[: page.size]],
            next_page_token=next_page_token(binding, [found[page.size - 1].id]) if len(found) > page.size else "",
        )

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Context) -> usage_pb2.GetUsageResponse:
        """Reads a page."""
        return await self._reading.get_usage(request)
