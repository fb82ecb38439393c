"""Operations that need more than a provider: deletions, upgrades, accounts, copies; and what is kept of secrets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.backups.v1 import backup_pb2
from opsplane.instances.v1 import copies_pb2, databases_pb2, instances_pb2, lifecycle_pb2
from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.expiry import Expiry
from opsplane_server.instances.model import InstanceState
from opsplane_server.instances.operations import kinds
from opsplane_server.platform.model import OperationState

from tests.instances_operations import NODE, PASSWORD, Room
from tests.instances_world import World, free, gone, reason_of, until_called
from tests.instances_world import room_dsn as room_dsn
from tests.instances_world import served as served
from tests.instances_world import world as world
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestDelete:
    async def test_after_a_final_backup(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("last")).name
            request = instances_pb2.DeleteInstanceRequest(
                name=name, final_backup=True, final_backup_id="last-words", final_backup_retention_days=3
            )
            await room.ended(await room.instances.delete(request))
        (asked,) = world.backups.asked
        assert (asked.instance, asked.backup_id, asked.retention_days) == (name, "last-words", 3)
        assert asked.type == backup_pb2.Backup.TYPE_FINAL
        assert await gone(room, name)
        assert name not in world.provider.servers
        assert "delete_archive" not in world.provider.calls
        assert await room.kinds_of_events(name) == ["CREATED", "DELETED"]

    async def test_nothing_is_deleted_when_the_final_backup_fails(self, world: World) -> None:
        room = world.room
        world.backups.error = "no room"
        async with room.executor():
            name = (await room.created("kept")).name
            request = instances_pb2.DeleteInstanceRequest(name=name, final_backup=True)
            operation = await room.ended(await room.instances.delete(request), well=False)
        assert reason_of(operation) == "BACKUP_FAILED"
        record = await room.store.get(name)
        assert (record.state, record.operation) == (InstanceState.READY, "")
        assert "delete" not in world.provider.calls

    async def test_the_final_backup_can_be_cancelled(self, world: World) -> None:
        room = world.room
        world.backups.held = True
        async with room.executor():
            name = (await room.created("spared")).name
            request = instances_pb2.DeleteInstanceRequest(name=name, final_backup=True)
            operation = await room.instances.delete(request)
            await until(lambda: bool(world.backups.asked))
            await room.platform.operations.cancel(operation.name)
            assert (await room.ended(operation, well=False)).state is OperationState.CANCELLED
        assert world.backups.cancelled
        assert (await room.store.get(name)).state is InstanceState.READY

    async def test_without_backups_the_archived_log_goes_too(self, world: World) -> None:
        room = world.room
        async with room.executor():
            record = await room.created("archived")
            world.provider.archives.add(record.uid)
            await room.ended(await room.instances.delete(instances_pb2.DeleteInstanceRequest(name=record.name)))
        assert not world.provider.archives

    async def test_when_its_time_has_come(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("fleeting")).name
            async with room.platform.database.transaction():
                record = await room.store.lock(name)
                await room.store.save(replace(record, expire_time=datetime.now(UTC)))
            expiry = Expiry(room.store, room.platform.database, room.platform.operations, machine=NODE)
            await asyncio.gather(expiry.expire(), expiry.expire())
            await until(lambda: gone(room, name))
        count = await room.platform.value("SELECT count(*) FROM platform.operations WHERE target = $1", name)
        assert count == 2


class TestUpgrades:
    async def test_a_major_one_has_a_way_back_for_a_while(self, world: World) -> None:
        room = world.room
        expiry = Expiry(
            room.store,
            room.platform.database,
            room.platform.operations,
            machine=NODE,
            now=lambda: datetime.now(UTC) + timedelta(days=4),
        )
        async with room.executor():
            name = (await room.created("old", version="16")).name
            request = lifecycle_pb2.UpgradeInstanceRequest(name=name, version="18", backup_id="before")
            await room.ended(await room.instances.upgrade(request))
            record = await room.store.get(name)
            assert (record.version, record.spec.version, record.state) == ("18", "18.1", InstanceState.READY)
            report = record.last_upgrade
            assert report is not None
            assert (report.from_version, report.to_version, report.backup) == ("16.9", "18.1", "backups/before")
            assert report.rollback_expire_time is not None
            assert timedelta(days=2) < report.rollback_expire_time - datetime.now(UTC) <= timedelta(days=3)
            back = lifecycle_pb2.RollbackUpgradeRequest(name=name, discard_writes=True)
            await room.ended(await room.instances.roll_back(back))
            record = await room.store.get(name)
            assert (record.version, record.spec.version) == ("16.9", "16.9")
            assert record.last_upgrade is not None
            assert record.last_upgrade.rolled_back
            await room.ended(await room.instances.upgrade(request))
            assert world.provider.servers[name].kept is not None
            await expiry.expire()
            await until(lambda: world.provider.servers[name].kept is None)
            await until(lambda: free(room, name))
            with pytest.raises(FailedPrecondition, match="gone"):
                await room.instances.roll_back(back)
        assert await room.kinds_of_events(name) == ["CREATED", "UPGRADED", "UPGRADE_ROLLED_BACK", "UPGRADED"]

    async def test_a_minor_one_has_none(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("minor", version="18.0")).name
            request = lifecycle_pb2.UpgradeInstanceRequest(name=name, version="18.1", skip_backup=True)
            await room.ended(await room.instances.upgrade(request))
        report = (await room.store.get(name)).last_upgrade
        assert report is not None
        assert report.rollback_expire_time is None
        assert not world.backups.asked

    async def test_one_that_fails_leaves_the_old_version(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("stubborn", version="16")).name
            world.provider.refuse("upgrade", FailedPrecondition("an extension", reason="UPGRADE_CHECK_FAILED"))
            request = lifecycle_pb2.UpgradeInstanceRequest(name=name, version="18", skip_backup=True)
            operation = await room.ended(await room.instances.upgrade(request), well=False)
        assert reason_of(operation) == "UPGRADE_CHECK_FAILED"
        record = await room.store.get(name)
        assert (record.version, record.spec.version, record.state) == ("16", "16.9", InstanceState.READY)
        assert await room.kinds_of_events(name) == ["CREATED", "UPGRADE_FAILED"]


class TestAccounts:
    async def test_a_database_that_was_made_by_a_process_that_died(self, world: World) -> None:
        room = world.room
        async with room.executor(owner="first"):
            name = (await room.created("bases")).name
            gate = world.admin.hold("create_database")
            request = databases_pb2.CreateDatabaseRequest(parent=name, database_id="shop")
            operation = await room.submit(kinds.CREATE_DATABASE, name, request, target=f"{name}/databases/shop")
            await until_called(world, "create_database")
        gate.set()
        async with room.executor(owner="second"):
            ended = await room.ended(operation)
            made = databases_pb2.Database()
            assert ended.response is not None
            assert ended.response.Unpack(made)
            assert (made.name, made.owner) == (f"{name}/databases/shop", "app")
            twice = await room.submit(kinds.CREATE_DATABASE, name, request, target=f"{name}/databases/shop")
            assert reason_of(await room.ended(twice, well=False)) == "ALREADY_EXISTS"
            gone = databases_pb2.DeleteDatabaseRequest(name=f"{name}/databases/shop")
            await room.ended(await room.submit(kinds.DELETE_DATABASE, name, gone, target=gone.name))
            missing = await room.submit(kinds.DELETE_DATABASE, name, gone, target=gone.name)
            assert reason_of(await room.ended(missing, well=False)) == "NOT_FOUND"
        assert await room.kinds_of_events(name) == ["CREATED", "DATABASE_CREATED", "DATABASE_DELETED"]

    async def test_users_and_their_passwords(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("people")).name
            target, server = f"{name}/users/ann", world.provider.servers[name]
            user = databases_pb2.User(privilege=databases_pb2.PRIVILEGE_READ_ONLY, databases=["app"])
            create = databases_pb2.CreateUserRequest(parent=name, user_id="ann", user=user)
            await room.ended(await room.submit(kinds.CREATE_USER, name, create, target=target, password="first one"))
            assert server.passwords["ann"] == "first one"
            assert (await room.store.secrets(name)).users["ann"] == server.secrets.users["ann"] == "first one"

            rotate = databases_pb2.RotatePasswordRequest(name=target)
            world.admin.refuse("update_user", FailedPrecondition("no", reason="NO"))
            failed = await room.submit(kinds.ROTATE_PASSWORD, name, rotate, target=target, password="not this")
            await room.ended(failed, well=False)
            assert (await room.store.secrets(name)).users["ann"] == "first one"
            await room.ended(await room.submit(kinds.ROTATE_PASSWORD, name, rotate, target=target, password="second"))
            assert (await room.store.secrets(name)).users["ann"] == server.passwords["ann"] == "second"

            update = databases_pb2.UpdateUserRequest(
                user=databases_pb2.User(name=target, max_connections=3),
                update_mask=FieldMask(paths=["max_connections"]),
            )
            await room.ended(await room.submit(kinds.UPDATE_USER, name, update, target=target))
            assert (server.users["ann"].max_connections, server.users["ann"].databases) == (3, ("app",))
            assert server.passwords["ann"] == "second"

            delete = databases_pb2.DeleteUserRequest(name=target)
            await room.ended(await room.submit(kinds.DELETE_USER, name, delete, target=target))
        assert "ann" not in server.users
        assert "ann" not in (await room.store.secrets(name)).users
        assert await room.platform.value("SELECT count(*) FROM instances.pending_passwords") == 0


class TestCopies:
    async def test_made_checked_archived_and_removed(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("copied")).name
            world.provider.servers[name].rows = {"app.public.orders": 5, "app.public.items": 7}
            copy = await self._copy(world, name, "copy-1")
            assert (copy.location, copy.settings.name, copy.settings.password) == ("copy-1", name, "")
            report = await self._check(world, copy)
            assert [(check.kind, check.result) for check in report.checks] == [
                ("FILES", "PASSED"),
                ("START", "PASSED"),
                ("CATALOG", "PASSED"),
                ("ROWS", "PASSED"),
                ("CHECKSUMS", "PASSED"),
            ]
            assert (report.table_count, report.row_count) == (2, 12)
            assert report.restore_duration == report.checks[1].duration
            request = copies_pb2.ArchiveCopyRequest(location="copy-1", path="a.tar", packing="TAR")
            operation = await room.ended(await room.submit(kinds.ARCHIVE_COPY, name, request, target="copy-1"))
            archive = copies_pb2.CopyArchive()
            assert operation.response is not None
            assert operation.response.Unpack(archive)
            assert archive.file == str(room.exports / "a.tar")
            await room.ended(
                await room.submit(
                    kinds.DELETE_COPY, name, copies_pb2.DeleteCopyRequest(location="copy-1"), target="copy-1"
                )
            )
        assert not world.provider.copies
        assert set(world.provider.servers) & {f"instances/check-{operation.name}"} == set()

    async def test_what_is_missing_fails_the_check(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("lossy")).name
            copy = await self._copy(world, name, "copy-2")
            copy.tables["app.public.lost"] = 3
            report = await self._check(world, copy)
            results = {check.kind: check.result for check in report.checks}
            assert (results["CATALOG"], results["ROWS"], results["CHECKSUMS"]) == ("PASSED", "FAILED", "SKIPPED")
        assert not [server for server in world.provider.servers if "check-" in server]
        assert await _no_scratch(room)

    async def test_cancelling_leaves_no_scratch_instance(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("halfway")).name
            copy = await self._copy(world, name, "copy-3")
            world.provider.hold("check_files")
            operation = await room.submit(
                kinds.CHECK_COPY, name, copies_pb2.CheckCopyRequest(copy=copy), target="copy-3"
            )
            await until_called(world, "check_files")
            await room.platform.operations.cancel(operation.name)
            assert (await room.ended(operation, well=False)).state is OperationState.CANCELLED
        assert not [server for server in world.provider.servers if "check-" in server]
        assert await _no_scratch(room)

    async def test_a_scratch_instance_that_nobody_could_remove_expires(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("deadlock")).name
            copy = await self._copy(world, name, "copy-5")
            gate = world.provider.hold("check_files")
            request = copies_pb2.CheckCopyRequest(copy=copy)
            operation = await room.submit(kinds.CHECK_COPY, name, request, target="copy-5")
            await until_called(world, "check_files")
        await room.platform.run("UPDATE platform.operations SET crashes = 10 WHERE name = $1", operation.name)
        gate.set()
        async with room.executor():
            await room.ended(operation, well=False)
            assert await room.platform.value("SELECT count(*) FROM instances.instances WHERE hidden") == 1
            await Expiry(room.store, room.platform.database, room.platform.operations, machine=NODE).expire()
            await until(lambda: _no_scratch(room))

    async def test_cancelling_a_copy_removes_it(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("partly")).name
            world.provider.hold("copy")
            request = copies_pb2.CopyInstanceRequest(name=name, copy_id="copy-4")
            operation = await room.submit(kinds.COPY, name, request)
            await until_called(world, "copy")
            await room.platform.operations.cancel(operation.name)
            assert (await room.ended(operation, well=False)).state is OperationState.CANCELLED
        assert "copy-4" not in world.provider.copies

    async def _copy(self, world: World, name: str, copy_id: str) -> copies_pb2.InstanceCopy:
        request = copies_pb2.CopyInstanceRequest(name=name, copy_id=copy_id)
        operation = await world.room.ended(await world.room.submit(kinds.COPY, name, request))
        copy = copies_pb2.InstanceCopy()
        assert operation.response is not None
        assert operation.response.Unpack(copy)
        return copy

    async def _check(self, world: World, copy: copies_pb2.InstanceCopy) -> copies_pb2.CopyReport:
        request = copies_pb2.CheckCopyRequest(copy=copy)
        operation = await world.room.submit(kinds.CHECK_COPY, copy.location, request, target=copy.location)
        report = copies_pb2.CopyReport()
        response = (await world.room.ended(operation)).response
        assert response is not None
        assert response.Unpack(report)
        return report


async def test_no_table_holds_a_password(world: World) -> None:
    room = world.room
    async with room.executor():
        await room.created("secretive")
    async with room.platform.database.connection() as connection:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
            "WHERE schemaname IN ('instances', 'platform')"
        )
        assert len(tables) > 5
        for table in tables:
            text = await connection.fetchval(f"SELECT string_agg(t::text, '') FROM {table['name']} t") or ""
            assert PASSWORD not in text, table["name"]
            assert PASSWORD.encode().hex() not in text, table["name"]


async def _no_scratch(room: Room) -> bool:
    return bool(await room.platform.value("SELECT count(*) = 0 FROM instances.instances WHERE hidden"))
