"""What happens when servers of a highly available instance die: real ones, killed, under clients that write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import asyncpg
import psutil
import pytest
import pytest_asyncio
from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.instances.model import FailoverKind, HighAvailability, NodeRole, NodeState
from opsplane_server.instances.providers.local.manifest import Desired
from opsplane_server.instances.providers.local.postgres import building, fencing, sessions
from opsplane_server.instances.providers.local.proxy import routes
from opsplane_server.instances.providers.local.proxy.process import ROUTES_FILE

from tests.instances_harness import silent
from tests.integration.instances import ha
from tests.integration.instances.ha import HighlyAvailable
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def instance() -> AsyncIterator[HighlyAvailable]:
    """Three nodes; a commit waits for one replica."""
    async with ha.highly_available(HighAvailability(3, synchronous_replicas=1)) as made:
        yield made


async def _replaced(instance: HighlyAvailable, old: str) -> None:
    """Waits until another node is the primary, and every node serves."""
    await until(lambda: instance.manifest.primary != old)
    await instance.whole()


async def test_clients_write_on_after_the_primary_is_killed_and_nothing_acknowledged_is_lost(
    instance: HighlyAvailable,
) -> None:
    await instance.whole()
    all_writers = await ha.writers(instance)
    async with ha.writing(all_writers):
        for _ in range(2):
            old = instance.manifest.primary
            instance.kill(old)
            await _replaced(instance, old)
            await ha.on(all_writers)
    assert await ha.missing(instance, all_writers) == {}
    report = (await instance.status()).last_failover
    assert report is not None
    assert report.kind is FailoverKind.AUTOMATIC
    assert report.reason == "the process was ended by signal 9"
    assert (report.old_primary, report.new_primary) == (old, instance.manifest.primary)
    assert report.start_time <= report.detect_time <= report.complete_time
    assert report.lost_bytes is not None
    assert instance.spec.name in instance.told


async def test_no_session_of_a_killed_primary_lives_on(instance: HighlyAvailable) -> None:
    await instance.whole()
    old = instance.manifest.primary
    node = instance.node(old)
    async with instance.session(node.port) as session:
        pid = await session.fetchval("SELECT pg_backend_pid()")
        # It is at work and does not look up when its main process is gone.
        busy = asyncio.create_task(session.execute("SELECT count(*) FROM generate_series(1, 1000000000)"))
        await asyncio.sleep(0)
        instance.kill(old)
        await until(lambda: instance.manifest.primary != old)
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await busy
    await instance.whole()


async def test_a_primary_that_hangs_is_ended_and_replaced(
    instance: HighlyAvailable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsplane_server.instances.providers.local.monitor._HANG_SECONDS", 1.0)
    monkeypatch.setattr("opsplane_server.instances.providers.local.postgres.replicas._REACT_SECONDS", 1.0)
    await instance.whole()
    old = instance.manifest.primary
    process = instance.process(old)
    assert process is not None
    instance.kill(old, signal.SIGSTOP)
    await until(lambda: instance.manifest.primary != old)
    assert not process.is_running()
    await instance.whole()
    report = instance.manifest.last_failover
    assert report is not None
    assert report.reason.startswith("no answer for")


async def test_a_killed_replica_comes_back_without_a_change_of_primary(instance: HighlyAvailable) -> None:
    await instance.whole()
    primary = instance.manifest.primary
    replica = instance.replicas()[0].id
    before = instance.process(replica)
    assert before is not None
    instance.kill(replica)
    await until(lambda: not before.is_running() or before.status() == "zombie")
    await instance.whole()
    assert instance.manifest.primary == primary


async def test_a_replica_whose_data_are_gone_gets_new_ones(instance: HighlyAvailable) -> None:
    await instance.whole()
    replica = instance.replicas()[0]
    control = replica.folder.data / "global" / "pg_control"
    inode = control.stat().st_ino
    control.unlink()
    instance.kill(replica.id)
    await until(lambda: control.exists() and control.stat().st_ino != inode)
    status = await instance.whole()
    assert status.nodes[0].role is NodeRole.PRIMARY


async def test_a_replica_that_was_made_a_primary_by_somebody_is_wound_back(instance: HighlyAvailable) -> None:
    await instance.whole()
    replica = instance.replicas()[0]
    async with sessions.session(replica, timeout=60) as session:
        await session.execute("SELECT pg_promote()")
        await session.execute("CREATE TABLE public.astray AS SELECT 1 AS n")
    await until(lambda: building.is_replica(replica))
    await instance.whole()
    async with instance.session(replica.port) as session:
        assert await session.fetchval("SELECT to_regclass('public.astray')") is None
    # The next primary gives its log the number that the one astray had.
    old = instance.manifest.primary
    instance.kill(old)
    await _replaced(instance, old)


async def test_reads_go_to_replicas_that_follow_and_not_to_dead_ones(instance: HighlyAvailable) -> None:
    status = await instance.whole()
    assert status.endpoints is not None
    assert status.endpoints.ro is not None
    port = status.endpoints.ro.port
    replicas = {node.port for node in instance.replicas()}

    async def served_by() -> int:
        async with instance.session(port) as session:
            return int(await session.fetchval("SHOW port"))

    await until(lambda: _all_listed(instance, replicas))
    assert {await served_by() for _ in range(6)} == replicas
    dead = instance.replicas()[0]
    instance.kill(dead.id, signal.SIGSTOP)  # it neither dies nor answers
    try:
        await until(lambda: not _listed(instance, dead.port))
        assert {await served_by() for _ in range(4)} == replicas - {dead.port}
    finally:
        instance.kill(dead.id, signal.SIGCONT)
    await instance.whole()
    await until(lambda: _listed(instance, dead.port))


async def test_a_forced_failover_replaces_a_healthy_primary(instance: HighlyAvailable) -> None:
    await instance.whole()
    old, target = instance.manifest.primary, instance.replicas()[-1].id
    report = await instance.provider.failover(instance.spec.name, target, FailoverKind.FORCED, "a test", silent)
    assert (report.kind, report.old_primary, report.new_primary) == (FailoverKind.FORCED, old, target)
    assert report.reason == "a test"
    assert instance.manifest.primary == target
    again = await instance.provider.failover(instance.spec.name, target, FailoverKind.FORCED, "a test", silent)
    assert again == instance.manifest.last_failover
    await instance.whole()


async def test_what_can_not_be_done_changes_nothing(instance: HighlyAvailable) -> None:
    await instance.whole()
    primary = instance.manifest.primary
    process = instance.process(primary)
    with pytest.raises(NotFound):
        await instance.provider.failover(instance.spec.name, "orders-99", FailoverKind.FORCED, "", silent)
    with pytest.raises(FailedPrecondition, match="already") as refused:
        await instance.provider.failover(instance.spec.name, primary, FailoverKind.AUTOMATIC, "", silent)
    assert refused.value.reason == "NO_CANDIDATE"
    assert instance.manifest.primary == primary
    assert instance.process(primary) == process


async def test_an_old_primary_can_not_be_started_beside_the_new_one(instance: HighlyAvailable) -> None:
    await instance.whole()
    replica = instance.replicas()[0]
    async with instance.machine.locked(instance.spec.name):  # nobody mends it meanwhile
        await instance.provider._engines[instance.spec.engine].stop(replica)
        (replica.folder.data / "standby.signal").unlink()
        with pytest.raises(FailedPrecondition) as refused:
            instance.provider._engines[instance.spec.engine].launch(replica)
    assert refused.value.reason == "NODE_NEEDS_REJOIN"
    await instance.whole()
    assert building.is_replica(replica)


async def test_when_every_server_dies_the_primary_is_started_again(instance: HighlyAvailable) -> None:
    await instance.whole()
    all_writers = await ha.writers(instance)
    primary = instance.manifest.primary
    async with ha.writing(all_writers):
        for entry in instance.manifest.nodes:
            await fencing.fence(instance.node(entry.id))
        await ha.on(all_writers)
        await instance.whole()
    assert instance.manifest.primary == primary
    assert await ha.missing(instance, all_writers) == {}


async def test_with_too_few_replicas_to_be_sure_the_primary_is_started_again(instance: HighlyAvailable) -> None:
    await instance.whole()
    primary = instance.manifest.primary
    replica = instance.replicas()[0]
    async with instance.machine.locked(instance.spec.name):
        # One of the two could be the only one that has the newest commit.
        await fencing.fence(replica)
        await fencing.fence(instance.node(primary))
        (replica.folder.data / "global" / "pg_control").rename(replica.folder.path / "kept")
    await instance.whole()
    assert instance.manifest.primary == primary


async def test_a_promotion_that_was_broken_off_is_finished(instance: HighlyAvailable) -> None:
    await instance.whole()
    old, new = instance.manifest.primary, instance.replicas()[0].id
    async with instance.machine.locked(instance.spec.name) as manifest:
        # As a process leaves it that dies right after it has written down what it will do.
        await fencing.fence(instance.node(old))
        entry = manifest.entry(old)
        instance.machine.manifests.save(
            manifest.replace(primary=new).with_entry(type(entry)(entry.id, entry.port, entry.version, NodeState.FENCED))
        )
    status = await instance.whole()
    assert status.primary == new
    assert status.last_failover is not None
    assert (status.last_failover.old_primary, status.last_failover.new_primary) == (old, new)


async def test_a_stopped_instance_is_left_alone_and_its_ports_are_closed(instance: HighlyAvailable) -> None:
    status = await instance.whole()
    assert status.endpoints is not None
    await instance.provider.stop(instance.spec.name, silent)
    assert instance.manifest.desired is Desired.STOPPED
    port = status.endpoints.rw.port

    async def closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return True
        writer.transport.abort()
        return False

    await until(closed)
    assert [instance.process(entry.id) for entry in instance.manifest.nodes] == [None] * 3
    started = await instance.provider.start(instance.spec.name, silent)
    assert started.endpoints == status.endpoints
    await instance.whole()


async def test_a_killed_proxy_is_started_again(instance: HighlyAvailable) -> None:
    status = await instance.whole()
    assert status.endpoints is not None
    proxies = _running_in(str(instance.machine.layout.instances / ".proxy"))
    assert len(proxies) == 1
    proxies[0].kill()

    async def serves() -> bool:
        assert status.endpoints is not None
        try:
            async with instance.session(status.endpoints.rw.port) as session:
                return bool(await session.fetchval("SELECT true"))
        except OSError:
            return False

    await until(serves)


def _listed(instance: HighlyAvailable, port: int) -> bool:
    """Whether the proxy passes readers on to the node on this port."""
    listed = routes.read(instance.machine.layout.instances / ".proxy" / ROUTES_FILE)
    return any(target.port == port for route in listed if route.name == "orders/ro" for target in route.targets)


def _all_listed(instance: HighlyAvailable, ports: set[int]) -> bool:
    return all(_listed(instance, port) for port in ports)


def _running_in(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in process.cmdline():
                found.append(process)
    return found
