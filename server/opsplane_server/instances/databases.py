"""Databases and users of an instance: what is checked before they are changed, and what the engine tells of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.instances.v1 import connections_pb2, databases_pb2

from opsplane_server.errors import AlreadyExists, FailedPrecondition, NotFound
from opsplane_server.instances import names, reserved, settings
from opsplane_server.instances.connections import Login, connection_info
from opsplane_server.instances.convert import database_message, privilege_of, user_message
from opsplane_server.instances.events import Events, about
from opsplane_server.instances.instances import Providers
from opsplane_server.instances.model import Access, Engine
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.ports import EngineAdmin
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.instances.sql import DatabaseInfo, UserInfo
from opsplane_server.instances.stores.ports import InstanceStore, PendingPasswords
from opsplane_server.instances.submission import Exclusive, Plan, Submission, check_serving, shown
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.masks import changed_fields

_USER_UPDATABLE = ("privilege", "databases", "max_connections")


class Engines:
    """Instances' servers as they are asked in SQL."""

    def __init__(self, providers: Providers, admins: Mapping[Engine, EngineAdmin]) -> None:
        self._providers = providers
        self._admins = admins

    async def reach(self, instance: Instance) -> tuple[EngineAdmin, Access]:
        """Raises FailedPrecondition (INSTANCE_NOT_SERVING, OTHER_MACHINE), Unavailable."""
        check_serving(instance)
        access = await self._providers.reaching(instance).access(instance.name)
        return self._admins[instance.spec.engine], access


class Databases:
    """Each changing method submits an operation; what it raises is what the RPC of the same name answers."""

    def __init__(
        self,
        store: InstanceStore,
        pending: PendingPasswords,
        events: Events,
        submission: Submission,
        engines: Engines,
    ) -> None:
        self._store = store
        self._pending = pending
        self._events = events
        self._submission = submission
        self._exclusive = Exclusive(store)
        self._engines = engines

    async def list_databases(self, name: str) -> list[databases_pb2.Database]:
        """By name."""
        instance = await self._get(name)
        return [database_message(name, found) for found in await self._databases(instance)]

    async def list_users(self, name: str) -> list[databases_pb2.User]:
        """By name."""
        instance = await self._get(name)
        times = await self._store.password_times(name)
        return [user_message(name, found, times.get(found.name)) for found in await self._users(instance)]

    async def create_database(self, request: databases_pb2.CreateDatabaseRequest) -> operations_pb2.Operation:
        """Its owner must be there."""
        name = names.database(request.parent, request.database_id)

        async def check() -> None:
            instance = await self._get(request.parent)
            reserved.check_database(instance.spec.engine, request.database_id, "database_id")
            if any(found.name == request.database_id for found in await self._databases(instance)):
                raise AlreadyExists.resource(name)
            if request.database.owner and request.database.owner != instance.spec.username:
                await self._find_user(instance, request.database.owner)

        def preview(instance: Instance) -> Message:
            wanted = request.database
            owner = wanted.owner or instance.spec.username
            return database_message(
                instance.name, DatabaseInfo(request.database_id, owner, wanted.charset, wanted.collation, 0)
            )

        return await self._change(kinds.CREATE_DATABASE, request, request.parent, name, preview, check)

    async def delete_database(self, request: databases_pb2.DeleteDatabaseRequest) -> operations_pb2.Operation:
        """Not of an instance that is protected."""

        async def check() -> None:
            instance = await self._get(names.parent(request.name))
            if instance.deletion_protection:
                raise FailedPrecondition(
                    f"{instance.name} is protected: set deletion_protection to false first",
                    reason="DELETION_PROTECTED",
                    metadata={"resource": instance.name},
                )
            await self._find_database(instance, names.last(request.name))

        return await self._change(
            kinds.DELETE_DATABASE, request, names.parent(request.name), request.name, _empty, check
        )

    async def create_user(self, request: databases_pb2.CreateUserRequest) -> operations_pb2.Operation:
        """Its databases must be there; its password is made where none is given."""
        name = names.user(request.parent, request.user_id)
        user = UserInfo(
            request.user_id,
            privilege_of(request.user.privilege),
            tuple(request.user.databases),
            request.user.max_connections,
        )

        async def check() -> None:
            instance = await self._get(request.parent)
            reserved.check_user(instance.spec.engine, request.user_id, "user_id")
            if any(found.name == user.name for found in await self._users(instance)):
                raise AlreadyExists.resource(name)
            await self._find_databases(instance, user.databases)

        return await self._change(
            kinds.CREATE_USER,
            request,
            request.parent,
            name,
            lambda instance: user_message(instance.name, user, None),
            check,
            password=request.user.password or settings.new_password(),
        )

    async def update_user(self, request: databases_pb2.UpdateUserRequest) -> operations_pb2.Operation:
        """Its databases must be there."""
        fields = changed_fields(request.update_mask, request.user, _USER_UPDATABLE)
        parent, wanted = names.parent(request.user.name), request.user
        found: list[UserInfo] = []

        async def check() -> None:
            instance = await self._get(parent)
            user = await self._find_user(instance, names.last(wanted.name))
            if "privilege" in fields:
                user = replace(user, privilege=privilege_of(wanted.privilege))
            if "databases" in fields:
                user = replace(user, databases=tuple(wanted.databases))
                await self._find_databases(instance, user.databases)
            if "max_connections" in fields:
                user = replace(user, max_connections=wanted.max_connections)
            found.append(user)

        return await self._change(
            kinds.UPDATE_USER,
            request,
            parent,
            wanted.name,
            lambda instance: user_message(instance.name, found[0], None),
            check,
        )

    async def delete_user(self, request: databases_pb2.DeleteUserRequest) -> operations_pb2.Operation:
        """Not the first one, who inherits."""

        async def check() -> None:
            instance = await self._get(names.parent(request.name))
            user = names.last(request.name)
            if user == instance.spec.username:
                raise FailedPrecondition(
                    f"{user} is the first user of {instance.name} and inherits what others leave",
                    reason="FIRST_USER",
                    metadata={"resource": request.name},
                )
            await self._find_user(instance, user)

        return await self._change(kinds.DELETE_USER, request, names.parent(request.name), request.name, _empty, check)

    async def rotate_password(self, request: databases_pb2.RotatePasswordRequest) -> operations_pb2.Operation:
        """A password is made where none is given."""
        found: list[UserInfo] = []

        async def check() -> None:
            instance = await self._get(names.parent(request.name))
            found.append(await self._find_user(instance, names.last(request.name)))

        return await self._change(
            kinds.ROTATE_PASSWORD,
            request,
            names.parent(request.name),
            request.name,
            lambda instance: user_message(instance.name, found[0], None),
            check,
            password=request.password or settings.new_password(),
        )

    async def connection_info(
        self, request: connections_pb2.GetConnectionInfoRequest
    ) -> connections_pb2.ConnectionInfo:
        """With the password; recorded as an event in the caller's transaction."""
        instance = await self._get(request.name)
        user = request.user or instance.spec.username
        database = request.database or instance.spec.database
        # The first database came with the instance: its servers need not run to tell where they are.
        if database != instance.spec.database:
            await self._find_database(instance, database)
        password = (await self._store.secrets(instance.name)).users.get(user)
        if password is None:
            await self._find_user(instance, user)
            raise FailedPrecondition(
                f"the password of {user} was not set here: RotatePassword sets one",
                reason="PASSWORD_UNKNOWN",
                metadata={"resource": names.user(instance.name, user)},
            )
        info = connection_info(instance, Login(user, password, database))
        call = current_call()
        await self._events.record(
            about(
                instance.spec,
                EventKind.CONNECTION_INFO_READ,
                f"connection information of {user} read",
                resource=names.user(instance.name, user),
                principal=call.principal.name,
                trace_id=call.trace_id,
            ),
            webhooks=instance.webhooks,
        )
        return info

    async def _change(
        self,
        kind: str,
        request: Message,
        parent: str,
        target: str,
        preview: Callable[[Instance], Message],
        check: Callable[[], Awaitable[None]],
        *,
        password: str = "",
    ) -> operations_pb2.Operation:
        async def plan() -> Plan:
            instance = await self._exclusive.lock(parent)
            check_serving(instance)
            planned = self._exclusive.plan(kind, instance, preview(instance), target=target)

            async def write(operation: str) -> None:
                await planned.write(operation)
                if password:
                    await self._pending.keep(operation, password)

            return replace(planned, write=write)

        return await self._submission.submit(request, plan, check=check)

    async def _get(self, name: str) -> Instance:
        return shown(await self._store.get(name))

    async def _databases(self, instance: Instance) -> Sequence[DatabaseInfo]:
        admin, access = await self._engines.reach(instance)
        return await admin.list_databases(access)

    async def _users(self, instance: Instance) -> Sequence[UserInfo]:
        admin, access = await self._engines.reach(instance)
        return await admin.list_users(access)

    async def _find_database(self, instance: Instance, database: str) -> None:
        if all(found.name != database for found in await self._databases(instance)):
            raise NotFound.resource(names.database(instance.name, database))

    async def _find_databases(self, instance: Instance, databases: Sequence[str]) -> None:
        if databases:
            there = {found.name for found in await self._databases(instance)}
            for database in databases:
                if database not in there:
                    raise NotFound.resource(names.database(instance.name, database))

    async def _find_user(self, instance: Instance, user: str) -> UserInfo:
        for found in await self._users(instance):
            if found.name == user:
                return found
        raise NotFound.resource(names.user(instance.name, user))


def _empty(instance: Instance) -> Message:
    return Empty()
