"""What operations leave in the records, whatever happens to them, over a provider that obeys the tests."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2
from opsplane.instances.v1 import instance_pb2, instances_pb2, lifecycle_pb2
from opsplane_server.errors import FailedPrecondition, ResourceExhausted, Unavailable
from opsplane_server.instances.model import InstanceState, ProviderKind
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.operations.handlers import build_failure_hooks, build_handlers
from opsplane_server.platform.model import OperationState
from opsplane_server.rpc.paging import PageRequest

from tests.instances_operations import NODE, PASSWORD
from tests.instances_world import World, gone, message_of, reason_of, replayed, until_called
from tests.instances_world import room_dsn as room_dsn
from tests.instances_world import served as served
from tests.instances_world import world as world

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestCreate:
    async def test_the_record_says_ready(self, world: World) -> None:
        room = world.room
        async with room.executor():
            operation = await room.ended(await room.create("created"))
        record = await room.store.get("instances/created")
        assert (record.state, record.operation) == (InstanceState.READY, "")
        assert message_of(operation).state == instance_pb2.Instance.STATE_READY
        assert message_of(operation).current_primary == "created-1"
        assert operation.progress_percent == 100
        assert world.provider.servers[record.name].passwords == {"app": PASSWORD}
        assert await room.kinds_of_events(record.name) == ["CREATED"]
        event = (await room.event_store.list_events(record.name, PageRequest(1, None), []))[0]
        assert (event.operation, event.principal) == (operation.name, "somebody")

    async def test_nothing_is_left_of_one_that_failed(self, world: World) -> None:
        room, name = world.room, "instances/failing"
        error = ResourceExhausted("no room", reason="NO_ROOM")
        world.provider.refuse("create", ExceptionGroup("of a task group", [error]))
        async with room.executor():
            operation = await room.ended(await room.create("failing"), well=False)
            assert reason_of(operation) == "NO_ROOM"
            assert name not in world.provider.servers
            assert await gone(room, name)
            assert await room.kinds_of_events(name) == ["FAILED"]
            # Nobody who takes it up once more touches another instance that has the name by then.
            await room.created("failing")
            again = await replayed(room, operation)
            assert reason_of(again) == "NO_ROOM"
        assert name in world.provider.servers
        assert (await room.store.get(name)).state is InstanceState.READY

    async def test_what_could_not_be_removed_yet_is_removed_later(self, world: World) -> None:
        room = world.room
        world.provider.refuse("create", FailedPrecondition("no", reason="NO"))
        world.provider.refuse("delete", Unavailable("later"), Unavailable("later"))
        async with room.executor():
            operation = await room.ended(await room.create("sticky"), well=False)
        assert reason_of(operation) == "NO"
        assert world.provider.calls.count("create") == 1
        assert "instances/sticky" not in world.provider.servers

    async def test_cancelling_removes_it(self, world: World) -> None:
        room, name = world.room, "instances/cancelled"
        world.provider.hold("create")
        async with room.executor():
            operation = await room.create("cancelled")
            await until_called(world, "create")
            await room.platform.operations.cancel(operation.name)
            ended = await room.ended(operation, well=False)
        assert ended.state is OperationState.CANCELLED
        assert name not in world.provider.servers
        assert await gone(room, name)
        assert await room.kinds_of_events(name) == ["DELETED"]

    async def test_data_of_an_instance_whose_record_was_lost_stays(self, world: World) -> None:
        room, name = world.room, "instances/lost"
        async with room.executor():
            before = await room.created("lost")
            await room.store.delete(name)
            operation = await room.ended(await room.create("lost"), well=False)
            assert reason_of(operation) == "INSTANCE_DATA_EXISTS"
            assert world.provider.servers[name].spec.uid == before.uid
            recover = lifecycle_pb2.RecoverInstanceRequest(name=name)
            await room.ended(await room.instances.recover(recover))
        after = await room.store.get(name)
        assert (after.uid, after.state) == (before.uid, InstanceState.READY)
        assert (await room.store.secrets(name)).users == {"app": PASSWORD}
        assert (await room.kinds_of_events(name))[-1] == "RECOVERED"

    async def test_nor_does_cancelling_remove_them(self, world: World) -> None:
        room, name = world.room, "instances/foreign"
        async with room.executor():
            before = await room.created("foreign")
        await room.store.delete(name)
        operation = await room.create("foreign")
        await room.platform.operations.cancel(operation.name)
        async with room.executor():
            await room.ended(operation, well=False)
        assert world.provider.servers[name].spec.uid == before.uid
        assert await gone(room, name)

    async def test_recovering_sets_another_password(self, world: World) -> None:
        room, name = world.room, "instances/anew"
        async with room.executor():
            await room.created("anew")
            await room.ended(await room.instances.stop(lifecycle_pb2.StopInstanceRequest(name=name)))
            await room.store.delete(name)
            recover = lifecycle_pb2.RecoverInstanceRequest(name=name, password="quite another one")
            await room.ended(await room.instances.recover(recover))
        server = world.provider.servers[name]
        assert server.passwords["app"] == server.secrets.users["app"] == "quite another one"
        assert (await room.store.get(name)).state is InstanceState.STOPPED

    async def test_another_process_goes_on(self, world: World) -> None:
        room = world.room
        gate = world.provider.hold("create")
        async with room.executor(owner="first"):
            operation = await room.create("handed")
            await until_called(world, "create")
        gate.set()
        async with room.executor(owner="second"):
            await room.ended(operation)
        assert await room.kinds_of_events("instances/handed") == ["CREATED"]

    async def test_an_outcome_is_written_once(self, world: World) -> None:
        room = world.room
        async with room.executor():
            first = await room.ended(await room.create("once"))
            second = await replayed(room, first)
        assert second.response == first.response
        assert world.provider.calls.count("create") == 1
        assert await room.kinds_of_events("instances/once") == ["CREATED"]

    async def test_our_own_mistake_is_undone_too(self, world: World) -> None:
        room = world.room
        world.provider.refuse("create", ValueError(f"odd {PASSWORD}"))
        async with room.executor():
            operation = await room.ended(await room.create("odd"), well=False)
        assert operation.error is not None
        assert operation.error.code == code_pb2.INTERNAL
        assert await gone(room, "instances/odd")

    async def test_when_every_process_dies_over_it_the_record_says_so(self, world: World) -> None:
        room, name = world.room, "instances/deadly"
        operation = await room.create("deadly")
        await room.platform.run("UPDATE platform.operations SET crashes = 10 WHERE name = $1", operation.name)
        async with room.executor():
            await room.ended(operation, well=False)
            record = await room.store.get(name)
            assert (record.state, record.operation) == (InstanceState.FAILED, "")
            assert "ended while they worked" in record.state_message
            await room.ended(await room.instances.delete(instances_pb2.DeleteInstanceRequest(name=name)))
        assert await gone(room, name)


class TestChanges:
    async def test_settings_that_can_not_be_made_true_go_back(self, world: World) -> None:
        room = world.room
        async with room.executor():
            before = await room.created("update")
            world.provider.refuse("update", FailedPrecondition("not this one", reason="NO"))
            wanted = instance_pb2.Instance(name=before.name, parameters={"work_mem": "8MB"})
            mask = FieldMask(paths=["parameters"])
            request = instances_pb2.UpdateInstanceRequest(instance=wanted, update_mask=mask)
            operation = await room.instances.update(request)
            assert reason_of(await room.ended(operation, well=False)) == "NO"
            after = await room.store.get(before.name)
            assert after.spec == before.spec == world.provider.servers[before.name].spec
            assert (after.state, after.operation, after.previous) == (InstanceState.READY, "", None)
            assert after.revision > before.revision
            await room.ended(await room.instances.update(request))
        assert dict(world.provider.servers[before.name].spec.parameters) == {"work_mem": "8MB"}
        assert await room.kinds_of_events(before.name) == ["CREATED", "UPDATED"]

    async def test_stop_and_start(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("halt")).name
            for _ in range(2):
                await room.ended(await room.instances.stop(lifecycle_pb2.StopInstanceRequest(name=name)))
                assert (await room.store.get(name)).state is InstanceState.STOPPED
            await room.ended(await room.instances.start(lifecycle_pb2.StartInstanceRequest(name=name)))
            await room.ended(await room.instances.restart(lifecycle_pb2.RestartInstanceRequest(name=name)))
        assert (await room.store.get(name)).state is InstanceState.READY
        assert await room.kinds_of_events(name) == ["CREATED", "STOPPED", "STARTED", "RESTARTED"]

    async def test_what_stays_away_too_long_ends_the_operation(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("away")).name
        frame = Frame(
            room.store, room.pending, room.events, {ProviderKind.LOCAL: world.provider}, {}, patience=timedelta()
        )
        handlers = build_handlers(frame, room.backups, node=NODE, exports=room.exports)
        world.provider.refuse("restart", Unavailable("no primary", reason="NO_PRIMARY"))
        async with room.platform.executor(handlers, node=NODE, failure_hooks=build_failure_hooks(frame)):
            operation = await room.instances.restart(lifecycle_pb2.RestartInstanceRequest(name=name))
            assert reason_of(await room.ended(operation, well=False)) == "NO_PRIMARY"
        assert (await room.store.get(name)).operation == ""

    async def test_a_failed_operation_frees_the_record_once(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("freed")).name
            world.provider.refuse("stop", FailedPrecondition("no", reason="NO"))
            failed = await room.ended(
                await room.instances.stop(lifecycle_pb2.StopInstanceRequest(name=name)), well=False
            )
            gate = world.provider.hold("restart")
            other = await room.instances.restart(lifecycle_pb2.RestartInstanceRequest(name=name))
            await until_called(world, "restart")
            assert reason_of(await replayed(room, failed)) == "NO"
            assert (await room.store.get(name)).operation == other.name
            gate.set()
            await room.ended(other)


class TestFailovers:
    async def test_one_that_was_done_is_not_done_again(self, world: World) -> None:
        room = world.room
        async with room.executor(owner="first"):
            name = (await room.created("moving", high_availability=instance_pb2.HighAvailability(node_count=3))).name
            gate = world.provider.hold("failover done")
            request = lifecycle_pb2.FailoverRequest(name=name)
            operation = await room.instances.change_primary(kinds.FAILOVER, request)
            await until_called(world, "failover done")
        gate.set()
        async with room.executor(owner="second"):
            await room.ended(operation)
        record = await room.store.get(name)
        assert (record.status.primary, record.state) == ("moving-2", InstanceState.READY)
        assert await room.kinds_of_events(name) == ["CREATED", "FAILED_OVER"]

    async def test_one_that_was_not_done_is_done(self, world: World) -> None:
        room = world.room
        async with room.executor(owner="first"):
            name = (await room.created("staying", high_availability=instance_pb2.HighAvailability(node_count=3))).name
            gate = world.provider.hold("failover")
            request = lifecycle_pb2.SwitchoverRequest(name=name, target_node="staying-3")
            operation = await room.instances.change_primary(kinds.SWITCHOVER, request)
            await until_called(world, "failover")
        gate.set()
        async with room.executor(owner="second"):
            await room.ended(operation)
        assert (await room.store.get(name)).status.primary == "staying-3"
        assert await room.kinds_of_events(name) == ["CREATED", "SWITCHED_OVER"]

    async def test_one_that_does_not_succeed_is_told(self, world: World) -> None:
        room = world.room
        async with room.executor():
            name = (await room.created("stuck", high_availability=instance_pb2.HighAvailability(node_count=2))).name
            world.provider.refuse("failover", FailedPrecondition("none", reason="NO_CANDIDATE"))
            operation = await room.instances.change_primary(kinds.FAILOVER, lifecycle_pb2.FailoverRequest(name=name))
            assert reason_of(await room.ended(operation, well=False)) == "NO_CANDIDATE"
        assert await room.kinds_of_events(name) == ["CREATED", "FAILOVER_FAILED"]
        assert (await room.store.get(name)).state is InstanceState.READY
