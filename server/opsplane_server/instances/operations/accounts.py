"""Databases and users of an instance, and their passwords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.instances.v1 import databases_pb2 as pb

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.instances import names
from opsplane_server.instances.convert import database_message, privilege_of, user_message
from opsplane_server.instances.model import Access
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.ports import EngineAdmin
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.instances.sql import DatabaseInfo, NewDatabase, NewUser, UserInfo
from opsplane_server.platform.execution import Execution
from opsplane_server.rpc.masks import changed_fields

# Checked and about to be done: from here on what is found done was done by this operation.
_DOING: Final = "doing"

Info = TypeVar("Info", DatabaseInfo, UserInfo)

UPDATABLE: Final = ("privilege", "databases", "max_connections")


class Accounts:
    """The work of the kinds of databases and users."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def create_database(self, execution: Execution, instance: Instance) -> Message:
        """Creates a database."""
        request = execution.request(pb.CreateDatabaseRequest)
        admin, access = await self._reach(instance)
        name = request.database_id
        wanted = NewDatabase(
            name=name,
            owner=request.database.owner or instance.spec.username,
            charset=request.database.charset,
            collation=request.database.collation,
        )
        resource = names.database(instance.name, name)
        again = execution.step == _DOING
        if not again:
            if _find(await admin.list_databases(access), name) is not None:
                raise AlreadyExists.resource(resource)
            await execution.checkpoint(_DOING, stage="creating the database")
        try:
            await admin.create_database(access, wanted)
        except AlreadyExists:
            if not again:
                raise
        made = _find(await admin.list_databases(access), name)
        if made is None:
            raise NotFound.resource(resource)
        return await self._frame.end(
            execution,
            instance.name,
            status=None,
            event=(EventKind.DATABASE_CREATED, f"database {name} created"),
            resource=resource,
            response=lambda record: database_message(record.name, made),
        )

    async def delete_database(self, execution: Execution, instance: Instance) -> Message:
        """Deletes a database."""
        request = execution.request(pb.DeleteDatabaseRequest)
        admin, access = await self._reach(instance)
        name = names.last(request.name)
        again = execution.step == _DOING
        if not again:
            if _find(await admin.list_databases(access), name) is None:
                raise NotFound.resource(request.name)
            await execution.checkpoint(_DOING, stage="deleting the database")
        try:
            await admin.delete_database(access, name, force=request.force)
        except NotFound:
            if not again:
                raise
        return await self._frame.end(
            execution,
            instance.name,
            status=None,
            event=(EventKind.DATABASE_DELETED, f"database {name} deleted"),
            resource=request.name,
            response=_empty,
        )

    async def create_user(self, execution: Execution, instance: Instance) -> Message:
        """Creates a user with the password that was kept for it."""
        request = execution.request(pb.CreateUserRequest)
        admin, access = await self._reach(instance)
        name, password = request.user_id, await self._frame.pending.get(execution.operation.name)
        wanted = NewUser(
            name=name,
            password=password,
            privilege=privilege_of(request.user.privilege),
            databases=tuple(request.user.databases),
            max_connections=request.user.max_connections,
        )
        resource = names.user(instance.name, name)
        again = execution.step == _DOING
        if not again:
            if _find(await admin.list_users(access), name) is not None:
                raise AlreadyExists.resource(resource)
            await execution.checkpoint(_DOING, stage="creating the user")
        try:
            await admin.create_user(access, wanted)
        except AlreadyExists:
            if not again:
                raise
            # It may be half-made: an account, but not its rights.
            await admin.update_user(access, wanted)
        await self._frame.provider_of(instance).set_password(instance.name, name, password)
        return await self._end_user(
            execution, instance, wanted, (EventKind.USER_CREATED, f"user {name} created"), password=password
        )

    async def update_user(self, execution: Execution, instance: Instance) -> Message:
        """Changes what a user may do."""
        request = execution.request(pb.UpdateUserRequest)
        admin, access = await self._reach(instance)
        name = names.last(request.user.name)
        found = await self._user(admin, access, request.user.name)
        wanted = NewUser(name, "", found.privilege, found.databases, found.max_connections)
        for field in changed_fields(request.update_mask, request.user, UPDATABLE):
            if field == "privilege":
                wanted = replace(wanted, privilege=privilege_of(request.user.privilege))
            elif field == "databases":
                wanted = replace(wanted, databases=tuple(request.user.databases))
            else:
                wanted = replace(wanted, max_connections=request.user.max_connections)
        await admin.update_user(access, wanted)
        return await self._end_user(execution, instance, wanted, (EventKind.USER_UPDATED, f"user {name} changed"))

    async def delete_user(self, execution: Execution, instance: Instance) -> Message:
        """Deletes a user; what it owns goes to the first one."""
        request = execution.request(pb.DeleteUserRequest)
        frame, name = self._frame, names.last(request.name)
        admin, access = await self._reach(instance)
        again = execution.step == _DOING
        if not again:
            await self._user(admin, access, request.name)
            await execution.checkpoint(_DOING, stage="deleting the user")
        try:
            await admin.delete_user(access, name, instance.spec.username)
        except NotFound:
            if not again:
                raise
        await frame.provider_of(instance).set_password(instance.name, name, "")
        return await frame.end(
            execution,
            instance.name,
            status=None,
            event=(EventKind.USER_DELETED, f"user {name} deleted"),
            resource=request.name,
            response=_empty,
            also=lambda: frame.store.set_password(instance.name, name, ""),
        )

    async def rotate_password(self, execution: Execution, instance: Instance) -> Message:
        """Sets the password that was kept for it."""
        request = execution.request(pb.RotatePasswordRequest)
        name = names.last(request.name)
        admin, access = await self._reach(instance)
        password = await self._frame.pending.get(execution.operation.name)
        found = await self._user(admin, access, request.name)
        wanted = NewUser(name, password, found.privilege, found.databases, found.max_connections)
        await admin.update_user(access, wanted)
        await self._frame.provider_of(instance).set_password(instance.name, name, password)
        return await self._end_user(
            execution,
            instance,
            wanted,
            (EventKind.PASSWORD_ROTATED, f"password of {name} rotated"),
            password=password,
        )

    async def _reach(self, instance: Instance) -> tuple[EngineAdmin, Access]:
        frame = self._frame
        return frame.admin(instance.spec.engine), await frame.provider_of(instance).access(instance.name)

    async def _user(self, admin: EngineAdmin, access: Access, resource: str) -> UserInfo:
        found = _find(await admin.list_users(access), names.last(resource))
        if found is None:
            raise NotFound.resource(resource)
        return found

    async def _end_user(
        self,
        execution: Execution,
        instance: Instance,
        user: NewUser,
        event: tuple[EventKind, str],
        *,
        password: str = "",
    ) -> Message:
        frame = self._frame

        async def keep() -> None:
            if password:
                await frame.store.set_password(instance.name, user.name, password)

        info = UserInfo(user.name, user.privilege, user.databases, user.max_connections)
        times = await frame.store.password_times(instance.name)
        time = frame.now() if password else times.get(user.name)
        return await frame.end(
            execution,
            instance.name,
            status=None,
            event=event,
            resource=names.user(instance.name, user.name),
            response=lambda record: user_message(record.name, info, time),
            also=keep,
        )


def _find(found: Sequence[Info], name: str) -> Info | None:
    return next((one for one in found if one.name == name), None)


def _empty(instance: Instance) -> Message:
    return Empty()
