"""WatchInstance and the supervision behind it, with real servers of the local provider."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Literal

import asyncpg
import grpc
import psutil
import pytest
from opsplane.instances.v1 import events_pb2, instance_pb2
from opsplane.instances.v1.monitoring_pb2 import InstanceMetrics, NodeMetrics, WatchInstanceResponse
from opsplane_server.instances.engines.postgres import PostgresAdmin
from opsplane_server.instances.events import about
from opsplane_server.instances.model import Engine, HighAvailability, InstanceState
from opsplane_server.instances.providers.local.provider import LocalProvider
from opsplane_server.instances.records import EventKind, Instance

from tests.contract.instances.supervised import Room, open_room
from tests.instances_harness import MIB, machine, machine_folder, passwords, provider, silent, spec
from tests.waiting import until

NAME = "instances/watched"


@pytest.fixture
async def room(dsn: str) -> AsyncIterator[Room]:
    with machine_folder() as folder:
        async with open_room(dsn, folder, provider(machine(folder)), {Engine.POSTGRESQL: PostgresAdmin()}) as opened:
            yield opened


@pytest.fixture
async def elsewhere(dsn: str, room: Room) -> AsyncIterator[Room]:
    """Another process of the same server, as far as a test can have one: it shares nothing but the database."""
    async with open_room(dsn, room.folder, room.provider, room.admins) as opened:
        yield opened


async def made(room: Room, *, nodes: int = 1) -> Instance:
    """PostgreSQL servers that run, and their record."""
    local = room.provider
    assert isinstance(local, LocalProvider)
    version = local.versions(Engine.POSTGRESQL)[0]
    replicas = HighAvailability(nodes) if nodes > 1 else None
    wanted, secrets = spec("watched", version=version, high_availability=replicas), passwords()
    return await room.insert(wanted, secrets, await local.create(wanted, secrets, None, silent))


async def user(room: Room) -> asyncpg.Connection[asyncpg.Record]:
    """A connection of the first user."""
    record = await room.store.get(NAME)
    assert record.status.endpoints is not None
    rw = record.status.endpoints.rw
    password = (await room.store.secrets(NAME)).users["app"]
    return await asyncpg.connect(host=rw.host, port=rw.port, user="app", password=password, database="app")


async def next_of(stream: AsyncIterator[WatchInstanceResponse], kind: str) -> WatchInstanceResponse:
    async with asyncio.timeout(60):
        async for update in stream:
            if update.WhichOneof("update") == kind:
                return update
    raise AssertionError(f"the stream ended without {kind}")


async def metrics_when(
    stream: AsyncIterator[WatchInstanceResponse], field: Literal["cpu_millis", "transactions_per_second"]
) -> tuple[InstanceMetrics, NodeMetrics]:
    """The next set whose only node has this field."""
    while True:
        metrics = (await next_of(stream, "metrics")).metrics
        if metrics.nodes and metrics.nodes[0].HasField(field):
            return metrics, metrics.nodes[0]


async def test_a_watcher_sees_state_metrics_and_events_at_any_process(room: Room, elsewhere: Room) -> None:
    record = await made(room)
    async with room.supervised(interval=60):
        stream = elsewhere.watch(NAME, seconds=1)
        first = await next_of(stream, "instance")
        assert first.instance.name == NAME
        assert first.instance.state == instance_pb2.Instance.STATE_READY
        app = await user(room)
        try:
            await app.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a")
            earlier, _ = await metrics_when(stream, "cpu_millis")
            for _ in range(20):
                await app.fetch("SELECT sum(a) FROM t")
            while True:
                metrics, node = await metrics_when(stream, "transactions_per_second")
                if node.transactions_per_second > 1:
                    break
        finally:
            await app.close()
        # It asked for samples: without a watcher there would be one a minute.
        apart = metrics.sample_time.ToDatetime() - earlier.sample_time.ToDatetime()
        assert apart >= timedelta(seconds=0.9)
        assert (node.node, node.connections) == ("watched-1", 1)
        assert node.cpu_millis >= 0
        assert node.memory_bytes > MIB
        assert 10 * MIB < node.storage_used_bytes < node.storage_limit_bytes == 1024 * MIB
        assert 0 < node.cache_hit_ratio <= 1
        assert node.max_connections > 0
        assert (node.lag_bytes, node.deadlocks) == (0, 0)
        assert metrics.database_size_bytes > MIB
        assert not metrics.HasField("backup_age")
        await room.events.record(about(record.spec, EventKind.UPDATED, "labels were changed", principal="somebody"))
        event = (await next_of(stream, "event")).event
        assert (event.kind, event.message) == (events_pb2.Event.KIND_UPDATED, "labels were changed")
        assert event.principal == "somebody"  # the caller has every role
        async with room.database.transaction():
            await room.store.save(replace(await room.store.lock(NAME), labels={"team": "shop"}))
        assert (await next_of(stream, "instance")).instance.labels == {"team": "shop"}
        async with room.database.transaction():
            await room.store.delete(NAME)
            await room.events.record(about(record.spec, EventKind.DELETED, "it was deleted"))
        assert (await next_of(stream, "event")).event.kind == events_pb2.Event.KIND_DELETED
        async with asyncio.timeout(30):
            assert [update async for update in stream] == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await next_of(room.watch(NAME), "instance")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_is_sent_elsewhere_when_the_server_ends(room: Room) -> None:
    await made(room)
    stream = room.watch(NAME)
    await next_of(stream, "instance")
    room.watcher.drain()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await next_of(stream, "event")
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_dies_is_started_again_and_full_storage_is_told(room: Room) -> None:
    record = await made(room)
    async with room.supervised():
        await _kill_primary(room, record)
        await until(lambda: _has(room, "NODE_REJOINED"))
        happened = await room.kinds(NAME)
        assert happened.index("NODE_LOST") < happened.index("NODE_REJOINED")
        await until(lambda: _is(room, InstanceState.READY))

        used = (await room.store.get(NAME)).status.storage_used_bytes
        assert used > MIB
        for storage_bytes, kind in ((int(used / 0.95), "STORAGE_LOW"), (used, "STORAGE_FULL")):
            async with room.database.transaction():
                locked = await room.store.lock(NAME)
                resources = replace(locked.spec.resources, storage_bytes=storage_bytes)
                await room.store.save(replace(locked, spec=replace(locked.spec, resources=resources)))
            await until(lambda kind=kind: _has(room, kind))  # type: ignore[misc]
        full = await room.store.get(NAME)
        assert (full.state, full.state_message) == (InstanceState.DEGRADED, "storage is full")
        assert (await room.kinds(NAME)).count("STORAGE_FULL") == 1


async def test_a_failover_is_an_event_and_replicas_have_a_lag(room: Room) -> None:
    record = await made(room, nodes=2)
    async with room.supervised():
        stream = room.watch(NAME, seconds=1)
        while len(nodes := (await next_of(stream, "metrics")).metrics.nodes) < 2:
            pass
        assert [node.HasField("lag_bytes") for node in nodes] == [True, True]
        await _kill_primary(room, record)
        await until(lambda: _has(room, "FAILED_OVER"))
        (failover,) = [event for event in await room.happened(NAME) if event.kind is EventKind.FAILED_OVER]
        assert failover.node == "watched-2"
        assert "signal 9" in failover.message
        await until(lambda: _is(room, InstanceState.READY))
        after = await room.store.get(NAME)
        assert after.status.primary == "watched-2"
        assert sorted(await room.kinds(NAME)) == ["FAILED_OVER", "NODE_LOST", "NODE_REJOINED"]


async def test_figures_of_prometheus(room: Room) -> None:
    await made(room)
    async with room.supervised(interval=0.2):
        labels = {"instance": "watched", "engine": "postgresql"}
        node = labels | {"node": "watched-1"}

        def shown() -> bool:
            values = [
                room.registry.get_sample_value(f"opsplane_instance_{name}", node)
                for name in ("cpu_millis", "memory_bytes", "storage_used_bytes", "connections", "transactions_total")
            ]
            return None not in values and room.registry.get_sample_value("opsplane_instance_up", labels) == 1

        await until(shown)
        await room.provider.stop(NAME, silent)
        await until(lambda: _is(room, InstanceState.STOPPED))
        await until(lambda: room.registry.get_sample_value("opsplane_instance_up", labels) == 0)
    assert room.registry.get_sample_value("opsplane_instance_up", labels) is None


async def _kill_primary(room: Room, record: Instance) -> None:
    primary = next(node for node in record.status.nodes if node.id == record.status.primary)
    assert primary.start_time is not None
    started = primary.start_time.timestamp()
    (victim,) = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if f"/nodes/{primary.id}/data" in " ".join(process.info["cmdline"] or ())
        and abs(process.info["create_time"] - started) < 0.05
    ]
    victim.send_signal(signal.SIGKILL)


async def _has(room: Room, kind: str) -> bool:
    return kind in await room.kinds(NAME)


async def _is(room: Room, state: InstanceState) -> bool:
    return (await room.store.get(NAME)).state is state
