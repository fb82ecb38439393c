"""Planned changes of an instance with replicas that commits do not wait for, and what nobody plans for it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import Engine, FailoverKind, HighAvailability, NodeState
from opsplane_server.instances.providers.local.postgres.installations import Installations

from tests import instances_harness as harness
from tests.instances_harness import silent
from tests.integration.instances import ha
from tests.integration.instances.ha import HighlyAvailable
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def instance() -> AsyncIterator[HighlyAvailable]:
    """Two nodes; a commit waits for no replica."""
    async with ha.highly_available(HighAvailability(2)) as made:
        yield made


async def test_clients_write_on_through_switchovers_and_nothing_is_lost(instance: HighlyAvailable) -> None:
    all_writers = await ha.writers(instance)
    async with ha.writing(all_writers):
        for _ in range(2):
            old = instance.manifest.primary
            inode = (instance.node(old).folder.data / "PG_VERSION").stat().st_ino
            report = await instance.provider.failover(instance.spec.name, "", FailoverKind.SWITCHOVER, "asked", silent)
            assert (report.kind, report.old_primary) == (FailoverKind.SWITCHOVER, old)
            assert report.new_primary == instance.manifest.primary != old
            assert report.lost_bytes == 0
            assert report == instance.manifest.last_failover
            await ha.on(all_writers)
            await instance.whole()
            assert (instance.node(old).folder.data / "PG_VERSION").stat().st_ino == inode  # its own data, not a copy
    assert await ha.missing(instance, all_writers) == {}


async def test_what_a_dead_primary_could_not_send_is_taken_from_its_disk(instance: HighlyAvailable) -> None:
    await instance.whole()
    old = instance.manifest.primary
    sender = next(each for each in _forked(instance, old) if "walsender" in each.cmdline()[0])
    all_writers = await ha.writers(instance)
    async with ha.writing(all_writers):
        sender.send_signal(signal.SIGSTOP)  # what is written from now on does not leave
        await ha.on(all_writers, 100)
        instance.kill(old)
        await until(lambda: instance.manifest.primary != old)
        await ha.on(all_writers)
    report = (await instance.whole()).last_failover
    assert report is not None
    assert report.kind is FailoverKind.AUTOMATIC
    assert report.lost_bytes == 0
    assert await ha.missing(instance, all_writers) == {}


async def test_a_replica_that_does_not_catch_up_stays_one(
    instance: HighlyAvailable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsplane_server.instances.providers.local.postgres.failovers._CATCH_UP_SECONDS", 0.5)
    await instance.whole()
    primary, replica = instance.manifest.primary, instance.replicas()[0]
    before = instance.process(primary)
    receiver = next(each for each in _forked(instance, replica.id) if "walreceiver" in each.cmdline()[0])
    receiver.send_signal(signal.SIGSTOP)
    try:
        status = await instance.status()
        assert status.endpoints is not None
        async with instance.session(status.endpoints.rw.port) as session:
            await session.execute("INSERT INTO written VALUES ('behind', 1)")
        with pytest.raises(FailedPrecondition) as refused:
            await instance.provider.failover(instance.spec.name, "", FailoverKind.SWITCHOVER, "", silent)
    finally:
        receiver.send_signal(signal.SIGCONT)
    assert refused.value.reason == "REPLICA_BEHIND"
    assert instance.manifest.primary == primary
    assert instance.process(primary) == before


async def test_a_primary_that_does_not_stop_in_good_order_stays_one(
    instance: HighlyAvailable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsplane_server.instances.providers.local.postgres.failovers._LAST_RECORD_SECONDS", 0.0)
    monkeypatch.setattr("opsplane_server.instances.providers.local.postgres.engine._STOPS", ((signal.SIGKILL, 10.0),))
    await instance.whole()
    primary = instance.manifest.primary
    with pytest.raises(FailedPrecondition) as refused:
        await instance.provider.failover(instance.spec.name, "", FailoverKind.SWITCHOVER, "", silent)
    assert refused.value.reason == "NOT_SHUT_DOWN"
    monkeypatch.undo()
    await instance.whole()
    assert instance.manifest.primary == primary


async def test_replicas_are_added_and_removed_while_clients_write(instance: HighlyAvailable) -> None:
    before = await instance.whole()
    all_writers = await ha.writers(instance)
    three = dataclasses.replace(instance.spec, high_availability=HighAvailability(3, synchronous_replicas=2))
    async with ha.writing(all_writers):
        status = await instance.provider.update(three, silent)
        assert [node.state for node in status.nodes] == [NodeState.READY] * 3
        assert status.endpoints == before.endpoints
        assert sum(node.synchronous for node in status.nodes) == 2
        await ha.on(all_writers)
        status = await instance.provider.update(instance.spec, silent)
        assert len(status.nodes) == 2
        assert not any(node.synchronous for node in status.nodes)
        await ha.on(all_writers)
        nodes = instance.machine.layout.instance(instance.spec.name).nodes
        assert sorted(path.name for path in nodes.iterdir()) == sorted(node.id for node in status.nodes)
    assert await ha.missing(instance, all_writers) == {}


async def test_without_automatic_failover_the_primary_is_started_again(instance: HighlyAvailable) -> None:
    await instance.whole()
    by_hand = dataclasses.replace(instance.spec, high_availability=HighAvailability(2, automatic_failover=False))
    await instance.provider.update(by_hand, silent)
    primary = instance.manifest.primary
    before = instance.process(primary)
    instance.kill(primary)
    await until(lambda: instance.process(primary) not in (None, before))
    await instance.whole()
    assert instance.manifest.primary == primary
    await instance.provider.update(instance.spec, silent)


async def test_primaries_change_many_times_in_a_row(instance: HighlyAvailable) -> None:
    """Each leaves traces in the next one's log, its archive and its summaries that must not hold up a later one."""
    all_writers = await ha.writers(instance)
    async with ha.writing(all_writers):
        for _ in range(3):
            await instance.whole()
            await instance.provider.failover(instance.spec.name, "", FailoverKind.SWITCHOVER, "", silent)
            await instance.whole()
            old = instance.manifest.primary
            instance.kill(old)
            await until(lambda: instance.manifest.primary != old)  # noqa: B023
            await ha.on(all_writers)
    await instance.whole()
    assert await ha.missing(instance, all_writers) == {}


async def test_pgbench_runs_on_the_primary_and_on_replicas(instance: HighlyAvailable) -> None:
    status = await instance.whole()
    assert status.endpoints is not None
    assert status.endpoints.ro is not None
    program = Installations((), Path("/none")).of(status.running_version).program("pgbench")
    environment = {"PGPASSWORD": instance.secrets.users["app"], "PATH": os.defpath}

    async def pgbench(port: int, *words: str) -> str:
        command = [program, "-h", "127.0.0.1", "-p", str(port), "-U", "app", *words, "app"]
        child = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await child.communicate()
        assert child.returncode == 0, said.decode()
        return said.decode()

    await pgbench(status.endpoints.rw.port, "--initialize", "--quiet")
    said = await pgbench(status.endpoints.rw.port, "--client=4", "--transactions=50")
    assert "number of transactions actually processed: 200/200" in said
    await instance.level()
    said = await pgbench(status.endpoints.ro.port, "--client=4", "--transactions=50", "--select-only", "--no-vacuum")
    assert "number of transactions actually processed: 200/200" in said


async def test_whoever_takes_over_the_supervision_finds_what_happened_before(instance: HighlyAvailable) -> None:
    await instance.whole()
    await instance.leave()
    primary = instance.manifest.primary
    instance.kill(primary)
    await until(lambda: instance.process(primary) is None)
    instance.supervise()
    await until(lambda: instance.manifest.primary != primary)
    await instance.whole()


async def test_a_single_server_is_started_again_and_becomes_highly_available() -> None:
    with harness.machine_folder() as folder:
        machine = harness.machine(folder)
        provider = harness.provider(machine)
        spec = harness.spec("orders", version=provider.versions(Engine.POSTGRESQL)[0])
        single = HighlyAvailable(machine, provider, spec, harness.passwords())
        status = await provider.create(spec, single.secrets, None, silent)
        assert status.endpoints is not None
        port = status.endpoints.rw.port
        single.supervise()
        try:
            before = single.process("orders-1")
            single.kill("orders-1")
            await until(lambda: single.process("orders-1") not in (None, before))
            await single.whole(nodes=1)
            async with single.session(port) as session:
                await session.execute("CREATE TABLE kept AS SELECT 7 AS n")
            await provider.update(dataclasses.replace(spec, high_availability=HighAvailability(2)), silent)
            status = await single.whole(nodes=2)
            assert status.endpoints is not None
            assert status.endpoints.rw.port == port
            assert status.endpoints.ro is not None
            for each in (port, status.endpoints.ro.port):
                async with single.session(each) as session:
                    assert await session.fetchval("SELECT n FROM kept") == 7
            single.kill("orders-1")
            await until(lambda: single.manifest.primary == "orders-2")
            await single.whole(nodes=2)
            async with single.session(port) as session:
                assert await session.fetchval("SELECT n FROM kept") == 7
        finally:
            await single.leave()
        with pytest.raises(FailedPrecondition) as refused:
            await provider.failover(spec.name, "orders-2", FailoverKind.SWITCHOVER, "", silent)
        assert refused.value.reason == "NO_CANDIDATE"
        await provider.delete(spec.name, silent)


def _forked(instance: HighlyAvailable, node_id: str) -> list[psutil.Process]:
    process = instance.process(node_id)
    assert process is not None
    return process.children()
