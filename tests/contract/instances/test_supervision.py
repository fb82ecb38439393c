"""What the process that looks after instances writes down: states, events, usage, backups."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc
from opsplane_server.errors import NotFound, Unavailable
from opsplane_server.instances.backup_figures import BackupCatalog
from opsplane_server.instances.model import (
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceState,
    Node,
    NodeRole,
    NodeState,
    Secrets,
    Status,
)
from opsplane_server.instances.records import BackupFigures, Granularity, Instance
from opsplane_server.rpc.identity import StaticToken, StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.rpc.peers import Peer

from tests.contract.instances.supervised import Room, open_room
from tests.instances_fakes import FakeAdmin, FakeProvider
from tests.rpc_harness import registration, serving
from tests.unit.instances.samples import GIB, instance
from tests.waiting import until

NAME = "instances/orders"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRETS = Secrets("admin-secret", "replication-secret", {"app": "app-secret"})
READY, LOST = NodeState.READY, NodeState.UNREACHABLE


class Seen(FakeProvider):
    """Sees what the test shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Status | None = None
        self.looking: Callable[[], Awaitable[object]] | None = None
        self.looks = 0

    async def status(self, name: str) -> Status:
        self.looks += 1
        if self.looking is not None:
            action, self.looking = self.looking, None
            await action()
        if self.shown is None:
            raise NotFound.resource(name)
        return self.shown

    def show(self, *states: NodeState, primary: int = 1, **fields: Any) -> None:
        """Nodes in these states; `primary` is the number of one, 0 for none."""
        nodes = tuple(
            Node(
                f"orders-{number}",
                NodeRole.PRIMARY if number == primary else NodeRole.REPLICA,
                state,
                "127.0.0.1",
                41000 + number,
            )
            for number, state in enumerate(states, 1)
        )
        self.shown = Status(nodes, f"orders-{primary}" if primary else "", **fields)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def room(dsn: str, tmp_path: Path, seen: Seen) -> AsyncIterator[Room]:
    async with open_room(dsn, tmp_path, seen, {Engine.POSTGRESQL: FakeAdmin(seen)}) as opened:
        yield opened


async def inserted(room: Room, nodes: int = 3, **fields: Any) -> Instance:
    return await room.store.insert(replace(instance(nodes=nodes), **fields), SECRETS)


async def refreshed(room: Room) -> Instance:
    found = await room.refresher.refresh(NAME)
    assert found is not None
    return found


async def test_nodes_that_go_and_come_are_told_once(room: Room, seen: Seen) -> None:
    await inserted(room)
    seen.show(READY, READY, LOST)
    lost = await refreshed(room)
    assert (lost.state, lost.state_message) == (InstanceState.DEGRADED, "orders-3 is UNREACHABLE")
    await refreshed(room)
    seen.show(READY, READY, NodeState.STARTING)
    await refreshed(room)
    seen.show(READY, READY, READY)
    assert (await refreshed(room)).state is InstanceState.READY
    await refreshed(room)
    events = await room.happened(NAME)
    assert [(event.kind.value, event.node) for event in events] == [
        ("NODE_LOST", "orders-3"),
        ("NODE_REJOINED", "orders-3"),
    ]
    assert all(event.instance_uid == "u1" and not event.principal for event in events)


async def test_a_new_node_does_not_rejoin(room: Room, seen: Seen) -> None:
    await inserted(room)
    seen.show(READY, READY, READY, NodeState.STARTING)
    await refreshed(room)
    seen.show(READY, READY, READY, READY)
    await refreshed(room)
    assert await room.kinds(NAME) == []


async def test_a_failover_is_recorded_once(room: Room, seen: Seen) -> None:
    await inserted(room)
    report = FailoverReport(
        FailoverKind.AUTOMATIC, "orders-1", "orders-2", "signal 9", NOON, NOON, NOON + timedelta(seconds=0.5), 0
    )
    seen.show(LOST, READY, READY, primary=2, last_failover=report)
    for _ in range(2):
        record = await refreshed(room)
    assert record.status.last_failover == report
    assert await room.kinds(NAME) == ["FAILED_OVER", "NODE_LOST"]
    assert "0.500 s: signal 9" in (await room.happened(NAME))[0].message


async def test_while_another_node_becomes_the_primary_the_instance_is_failing_over(room: Room, seen: Seen) -> None:
    await inserted(room)
    seen.show(LOST, READY, READY, primary=0)
    assert (await refreshed(room)).state is InstanceState.FAILING_OVER
    room.clock.time += timedelta(seconds=29)
    assert (await refreshed(room)).state is InstanceState.FAILING_OVER
    assert await room.kinds(NAME) == ["NODE_LOST"]
    room.clock.time += timedelta(seconds=2)
    for _ in range(2):
        assert (await refreshed(room)).state is InstanceState.UNAVAILABLE
    assert await room.kinds(NAME) == ["NODE_LOST", "FAILOVER_FAILED", "FAILED"]
    seen.show(LOST, READY, READY, primary=2)
    assert (await refreshed(room)).state is InstanceState.DEGRADED
    seen.show(LOST, LOST, READY, primary=0)
    assert (await refreshed(room)).state is InstanceState.FAILING_OVER


async def test_what_an_operation_does_is_its_own_to_tell(room: Room, seen: Seen) -> None:
    await inserted(room, state=InstanceState.RESTARTING, operation="operations/o1")
    seen.show(READY, LOST, READY)
    record = await refreshed(room)
    assert record.state is InstanceState.RESTARTING
    assert record.status.nodes[1].state is LOST
    assert await room.kinds(NAME) == []
    report = FailoverReport(FailoverKind.SWITCHOVER, "orders-1", "orders-2", "restart", NOON, NOON, NOON)
    seen.show(READY, READY, READY, primary=2, last_failover=report)
    await refreshed(room)
    assert [event.operation for event in await room.happened(NAME)] == ["operations/o1"]


async def test_a_switchover_that_somebody_asked_for_is_told_by_its_operation(room: Room, seen: Seen) -> None:
    await inserted(room, state=InstanceState.FAILING_OVER, operation="operations/o1")
    report = FailoverReport(FailoverKind.SWITCHOVER, "orders-1", "orders-2", "asked", NOON, NOON, NOON)
    seen.show(READY, READY, READY, primary=2, last_failover=report)
    await refreshed(room)
    assert await room.kinds(NAME) == []


async def test_an_instance_that_is_being_made_is_not_looked_at(room: Room, seen: Seen) -> None:
    await inserted(room, state=InstanceState.CREATING, operation="operations/o1")
    assert (await refreshed(room)).state is InstanceState.CREATING
    assert seen.looks == 0


@pytest.mark.parametrize("present", [True, False])
async def test_a_broken_instance_is_an_event(room: Room, seen: Seen, present: bool) -> None:
    await inserted(room, nodes=1)
    if present:
        seen.show(LOST, primary=0)
    for _ in range(2):
        record = await refreshed(room)
    assert record.state is (InstanceState.UNAVAILABLE if present else InstanceState.FAILED)
    assert (await room.kinds(NAME)).count("FAILED") == 1


async def test_why_an_instance_failed_is_kept(room: Room, seen: Seen) -> None:
    await inserted(room, state=InstanceState.FAILED, state_message="no room for its files")
    assert (await refreshed(room)).state_message == "no room for its files"
    seen.show(READY, READY, READY)
    assert (await refreshed(room)).state_message == ""


async def test_a_scratch_instance_has_no_events_and_costs_nothing(room: Room, seen: Seen) -> None:
    record = await inserted(room, nodes=1, hidden=True)
    seen.show(LOST, primary=0)
    await refreshed(room)
    await room.meter.settle(record)
    with pytest.raises(NotFound):
        await room.happened(NAME)
    assert await room.usage.metered_until("u1") is None


async def test_what_an_operation_wrote_meanwhile_is_not_overwritten(room: Room, seen: Seen) -> None:
    await inserted(room, state=InstanceState.STOPPING, operation="operations/o1")
    seen.show(READY, READY, READY)

    async def end_operation() -> None:
        async with room.database.transaction():
            record = await room.store.lock(NAME)
            stopped = tuple(replace(node, state=NodeState.STOPPED) for node in record.status.nodes)
            status = replace(record.status, nodes=stopped)
            await room.store.save(replace(record, operation="", state=InstanceState.STOPPED, status=status))
        # What was seen before the end is older than what the operation wrote.
        seen.show(NodeState.STOPPED, NodeState.STOPPED, NodeState.STOPPED, primary=0)

    before = seen.shown

    async def late() -> None:
        await end_operation()
        after, seen.shown = seen.shown, before
        seen.looking = lambda: _show(seen, after)

    seen.looking = late
    record = await refreshed(room)
    assert seen.looks == 2
    assert record.state is InstanceState.STOPPED
    assert await room.kinds(NAME) == []


async def _show(seen: Seen, status: Status | None) -> None:
    seen.shown = status


async def test_one_leads_and_another_follows_when_it_ends(room: Room, seen: Seen) -> None:
    await inserted(room)
    seen.show(READY, READY, READY)
    led: list[str] = []

    def work(name: str) -> Callable[[], Awaitable[object]]:
        async def lead() -> None:
            led.append(name)
            await asyncio.Event().wait()

        return lead

    async with room.supervised(others=[work("first")]) as first:
        await until(lambda: led == ["first"])
        async with room.supervised(others=[work("second")]):
            await until(lambda: _sampled(room))
            assert led == ["first"]
            await first.__aexit__(None, None, None)
            await until(lambda: led == ["first", "second"])


async def test_a_process_that_is_killed_leads_no_more(room: Room, seen: Seen) -> None:
    holding = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(600)"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holding, str(room.folder / "leader.lock"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        await other.stdout.readline()
        led = asyncio.Event()

        async def lead() -> None:
            led.set()
            await asyncio.Event().wait()

        async with room.supervised(others=[lead]):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(led.wait(), 0.5)
            other.kill()
            await asyncio.wait_for(led.wait(), 30)
    finally:
        if other.returncode is None:
            other.kill()
        await other.wait()


async def test_what_fails_is_tried_again_and_stops_nothing_else(room: Room, seen: Seen) -> None:
    await inserted(room)
    failures: list[int] = []

    async def fail() -> None:
        failures.append(1)
        raise Unavailable("not now") if len(failures) % 2 else RuntimeError("a mistake")

    async def refuse() -> None:
        raise RuntimeError("a mistake in looking")

    seen.show(READY, READY, LOST)
    seen.looking = refuse
    async with room.supervised(others=[fail]):
        await until(lambda: len(failures) >= 3)
        await until(lambda: _is(room, InstanceState.DEGRADED))
        await until(lambda: _sampled(room))


async def test_usage_by_the_hour_with_its_cost(room: Room) -> None:
    made = await inserted(room, nodes=2)
    record = replace(made, create_time=room.clock.time)  # half past twelve
    await room.meter.settle(record)
    room.clock.time += timedelta(hours=1)
    await asyncio.gather(*(room.meter.settle(record) for _ in range(4)))  # no time counts twice
    stopped = replace(record, state=InstanceState.STOPPED)
    room.clock.time += timedelta(minutes=45)
    await room.meter.settle(stopped)
    spans = await room.usage.list_usage(NAME, NOON, NOON + timedelta(days=1), Granularity.HOUR, PageRequest(10, None))
    assert [(span.start_time.hour, span.instance_uid) for span in spans] == [(12, "u1"), (13, "u1"), (14, "u1")]
    assert [span.amounts.cpu_core_hours for span in spans] == pytest.approx([0.5, 0.5, 0.0])
    assert [span.amounts.memory_gib_hours for span in spans] == pytest.approx([2.0, 2.0, 0.0])
    assert [span.amounts.storage_gib_hours for span in spans] == pytest.approx([1.0, 2.0, 0.5])
    total = await room.usage.total(NAME, NOON, NOON + timedelta(days=1))
    assert total.cost_micros == pytest.approx(1.0 * 1_000_000 + 4.0 * 100_000 + 3.5 * 10_000)


async def test_backups_count_after_their_instance_too(room: Room) -> None:
    record = replace(await inserted(room), create_time=room.clock.time, backups=BackupFigures("b", NOON, 2 * GIB))
    await room.meter.settle(record)
    room.clock.time += timedelta(minutes=30)
    await room.meter.settle(record)
    await room.store.delete(NAME)
    room.clock.time += timedelta(hours=2)
    await room.meter.settle_backups(NAME, "u1", 2 * GIB)
    total = await room.usage.total(NAME, NOON, NOON + timedelta(days=1))
    assert total.backup_gib_hours == pytest.approx(5.0)
    # One that was never metered begins now.
    await room.meter.settle_backups("instances/old", "u0", GIB)
    room.clock.time += timedelta(hours=1)
    await room.meter.settle_backups("instances/old", "u0", GIB)
    assert (await room.usage.total("instances/old", NOON, NOON + timedelta(days=1))).backup_gib_hours == 1.0


class _Backups(backups_pb2_grpc.BackupsServicer):
    """Lists these, two a page."""

    def __init__(self) -> None:
        self.found: list[backup_pb2.Backup] = []

    async def ListBackups(  # noqa: N802
        self, request: backups_pb2.ListBackupsRequest, context: Any
    ) -> backups_pb2.ListBackupsResponse:
        first = int(request.page_token or 0)
        return backups_pb2.ListBackupsResponse(
            backups=self.found[first : first + 2],
            next_page_token=str(first + 2) if first + 2 < len(self.found) else "",
        )


def backup(name: str, uid: str, size: int, *, last_good: bool = False) -> backup_pb2.Backup:
    made = backup_pb2.Backup(
        name=f"backups/{name}", instance="instances/orders", instance_uid=uid, size_bytes=size, last_good=last_good
    )
    made.cut_time.FromDatetime(NOON)
    return made


async def test_what_is_known_of_backups_is_kept(dsn: str, tmp_path: Path, seen: Seen) -> None:
    backups = _Backups()  # type: ignore[abstract]
    backups.found = [
        backup("new", "u1", 5, last_good=True),
        backup("of-a-deleted-one", "u0", 7),
        backup("old", "u1", 6),
    ]
    token = StaticToken.configured("instances", {"*": "viewer"}, token="a-token-for-tests")
    add = backups_pb2_grpc.add_BackupsServicer_to_server
    async with serving([registration(add, backups)], standard(StaticTokens([token]))) as served:
        admins = {Engine.POSTGRESQL: FakeAdmin(seen)}
        async with open_room(dsn, tmp_path, seen, admins, backups=Peer(served.address, "a-token-for-tests")) as room:
            await inserted(room)
            seen.show(READY, READY, READY)
            async with room.supervised():
                await until(lambda: _backed_up(room, BackupFigures("backups/new", NOON, 11)))
            found = await BackupCatalog(room.peers).read()
            assert found is not None
            assert found["u0"].figures == BackupFigures("", None, 7)


async def test_without_a_service_of_backups_nothing_is_known(room: Room) -> None:
    assert await BackupCatalog(room.peers).read() is None


async def _backed_up(room: Room, figures: BackupFigures) -> bool:
    return (await room.store.get(NAME)).backups == figures


async def _sampled(room: Room) -> bool:
    return bool(await room.samples.latest("u1"))


async def _is(room: Room, state: InstanceState) -> bool:
    return (await room.store.get(NAME)).state is state
