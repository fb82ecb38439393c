"""What the port `Provider` promises of an instance, by the local provider with each engine that is installed here."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import psutil
import pytest
from opsplane_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from opsplane_server.instances.model import (
    Engine,
    NodeRole,
    NodeState,
    Placement,
)
from opsplane_server.instances.providers.local.assembling import local_engines

from tests import instances_harness as harness
from tests.instances_clients import query
from tests.instances_harness import silent
from tests.instances_provider import PASSWORD, Shared, machine_with, processes_of, rw, shared
from tests.waiting import until

__all__ = ["shared"]


async def test_its_status_tells_how_to_reach_it(shared: Shared) -> None:
    status = await shared.provider.status(shared.spec.name)
    (node,) = status.nodes
    assert (node.id, node.role, node.state) == ("orders-1", NodeRole.PRIMARY, NodeState.READY)
    assert status.primary == node.id
    assert status.ready_nodes == 1
    assert status.running_version == shared.spec.version
    assert (rw(status).rw.host, rw(status).rw.port) == (node.host, node.port)
    assert rw(status).ro is None
    assert rw(status).r == rw(status).rw
    assert status.storage_used_bytes > 1_000_000
    assert status.tls is bool(status.ca_certificate)
    assert node.start_time is not None


async def test_its_owner_can_log_in_and_keep_things(shared: Shared) -> None:
    await shared.query("CREATE TABLE kept (n integer)")
    await shared.query("INSERT INTO kept VALUES (7)")
    assert await shared.query("SELECT n FROM kept") == 7
    status = await shared.provider.status(shared.spec.name)
    with pytest.raises(Exception, match=r"(?i)password|denied"):
        await query(shared.spec, rw(status).rw, PASSWORD + "x", "SELECT 1")
    await shared.query("DROP TABLE kept")


async def test_tls_is_what_it_says(shared: Shared) -> None:
    status = await shared.provider.status(shared.spec.name)
    if not status.tls:
        assert status.ca_certificate == ""
        return
    await query(shared.spec, rw(status).rw, shared.password, "SELECT 1", ca_certificate=status.ca_certificate)


async def test_made_again_it_stays_what_it_is(shared: Shared) -> None:
    before = await shared.provider.status(shared.spec.name)
    again = await shared.provider.create(shared.spec, shared.secrets, None, silent)
    assert again.endpoints == before.endpoints
    assert again.nodes[0].start_time == before.nodes[0].start_time


async def test_another_instance_of_its_name_is_refused(shared: Shared) -> None:
    other = dataclasses.replace(shared.spec, uid="another")
    with pytest.raises(AlreadyExists):
        await shared.provider.create(other, shared.secrets, None, silent)


async def test_a_parameter_is_changed_while_it_serves(shared: Shared) -> None:
    name, value = shared.dialect.reloaded
    default = await shared.shown(name)
    before = await shared.provider.status(shared.spec.name)
    status = await shared.provider.update(dataclasses.replace(shared.spec, parameters={name: value}), silent)
    assert status.pending_restart == ()
    assert float((await shared.shown(name)).removesuffix("MB")) == float(value.removesuffix("MB"))
    status = await shared.provider.update(shared.spec, silent)
    assert await shared.shown(name) == default
    assert status.nodes[0].start_time == before.nodes[0].start_time


async def test_a_parameter_that_needs_a_restart_waits_for_it(shared: Shared) -> None:
    name, value = shared.dialect.restarted
    default = await shared.shown(name)
    status = await shared.provider.update(dataclasses.replace(shared.spec, parameters={name: value}), silent)
    assert status.pending_restart == (name,)
    assert await shared.shown(name) == default
    restarted = await shared.provider.restart(shared.spec.name, "", silent)
    assert restarted.pending_restart == ()
    assert restarted.endpoints == status.endpoints
    assert await shared.shown(name) == value
    await shared.provider.update(shared.spec, silent)
    await shared.provider.restart(shared.spec.name, "orders-1", silent)
    assert await shared.shown(name) == default


async def test_parameters_that_can_not_be_are_refused_by_name(shared: Shared) -> None:
    name, value = shared.dialect.invalid
    bad = {shared.dialect.unknown: "1", shared.dialect.own: "/tmp", name: value}
    with pytest.raises(InvalidArgument) as caught:
        shared.provider.check(dataclasses.replace(shared.spec, parameters=bad))
    assert {violation.field for violation in caught.value.violations} == {
        f'instance.parameters["{key}"]' for key in bad
    }
    good = dict([shared.dialect.reloaded, shared.dialect.restarted])
    shared.provider.check(dataclasses.replace(shared.spec, parameters=good))
    assert set(shared.provider.settable(shared.spec, [*good, shared.dialect.own, shared.dialect.unknown])) == set(good)


async def test_more_memory_than_there_is_is_refused(shared: Shared) -> None:
    resources = dataclasses.replace(shared.spec.resources, memory_bytes=psutil.virtual_memory().total + 1)
    with pytest.raises(ResourceExhausted):
        shared.provider.check(dataclasses.replace(shared.spec, resources=resources))


async def test_values_of_parameters_can_not_smuggle_in_others(shared: Shared) -> None:
    name, value = shared.dialect.reloaded
    for tail in ("'\nport = '1", "\\", "' port = '1", "\nport=1", " # x", "\n[client]\nport=1"):
        spec = dataclasses.replace(shared.spec, parameters={name: value + tail})
        with pytest.raises(InvalidArgument):
            shared.provider.check(spec)


async def test_a_parameter_is_taken_to_the_letter(shared: Shared) -> None:
    if shared.spec.engine is not Engine.POSTGRESQL:
        pytest.skip("only PostgreSQL has parameters of any name and text")
    value = r"it's a 'value' \' with # \n and = 'more'"
    spec = dataclasses.replace(shared.spec, parameters={"my.text": value})
    shared.provider.check(spec)
    await shared.provider.update(spec, silent)
    assert await shared.shown("my.text") == value
    await shared.provider.update(shared.spec, silent)


async def test_it_is_stopped_and_started(shared: Shared) -> None:
    await shared.query("CREATE TABLE stays (n integer)")
    before = await shared.provider.status(shared.spec.name)
    for _ in range(2):  # harmless again
        stopped = await shared.provider.stop(shared.spec.name, silent)
        assert [node.state for node in stopped.nodes] == [NodeState.STOPPED]
        assert stopped.primary == ""
    assert stopped.endpoints == before.endpoints
    assert (await shared.provider.find(shared.spec.name)).stopped
    assert processes_of(shared.folder) == []
    with pytest.raises(Unavailable):
        await shared.provider.access(shared.spec.name)
    for _ in range(2):
        started = await shared.provider.start(shared.spec.name, silent)
        assert started.endpoints == before.endpoints
        assert started.primary == "orders-1"
    assert await shared.query("SELECT count(*) FROM stays") == 0
    await shared.query("DROP TABLE stays")


async def test_it_outlives_its_provider_and_is_adopted(shared: Shared) -> None:
    before = await shared.provider.status(shared.spec.name)
    other = harness.provider(machine_with(shared.spec.engine, shared.folder))
    assert (await other.status(shared.spec.name)).nodes == before.nodes
    assert (await other.start(shared.spec.name, silent)).nodes == before.nodes


async def test_what_was_committed_survives_a_kill(shared: Shared) -> None:
    await shared.query("CREATE TABLE survives (n integer)")
    await shared.query("INSERT INTO survives VALUES (1)")
    _main_process(shared).kill()
    await until(lambda: _main_process_or_none(shared) is None)
    dead = await shared.provider.status(shared.spec.name)
    assert (dead.primary, dead.nodes[0].state, dead.nodes[0].role) == ("", NodeState.UNREACHABLE, NodeRole.UNKNOWN)
    await shared.provider.start(shared.spec.name, silent)
    assert await shared.query("SELECT n FROM survives") == 1
    await shared.query("DROP TABLE survives")


async def test_it_is_started_again_when_it_dies(shared: Shared) -> None:
    changed = asyncio.Event()
    supervision = asyncio.create_task(shared.provider.supervise(lambda name: changed.set()))
    try:
        killed = _main_process(shared)
        killed.kill()

        async def serves() -> bool:
            status = await shared.provider.status(shared.spec.name)
            return status.primary == "orders-1" and _main_process(shared).pid != killed.pid

        await until(serves)
        await asyncio.wait_for(changed.wait(), 60)
        await shared.provider.stop(shared.spec.name, silent)
        await shared.provider.start(shared.spec.name, silent)
    finally:
        supervision.cancel()
        await asyncio.wait({supervision})


async def test_another_process_under_its_number_is_not_taken_for_it(shared: Shared) -> None:
    await shared.provider.stop(shared.spec.name, silent)
    (pid_file,) = _pid_files(shared, f"{os.getpid()}\n")
    status = await shared.provider.status(shared.spec.name)
    assert status.nodes[0].state is NodeState.STOPPED
    started = await shared.provider.start(shared.spec.name, silent)
    assert started.nodes[0].state is NodeState.READY
    assert not pid_file.read_text().startswith(f"{os.getpid()}\n")


async def test_it_knows_what_its_record_needs(shared: Shared) -> None:
    found = await shared.provider.find(shared.spec.name)
    assert (found.spec, found.secrets, found.stopped) == (shared.spec, shared.secrets, False)
    await shared.provider.set_password(shared.spec.name, "reader", "of what is written")
    found = await harness.provider(machine_with(shared.spec.engine, shared.folder)).find(shared.spec.name)
    assert found.secrets.users == {**shared.secrets.users, "reader": "of what is written"}
    await shared.provider.set_password(shared.spec.name, "reader", "")
    assert (await shared.provider.find(shared.spec.name)).secrets == shared.secrets
    assert PASSWORD not in repr(found)


async def test_it_tells_what_it_uses(shared: Shared) -> None:
    (used,) = await shared.provider.usage(shared.spec.name)
    assert used.node == "orders-1"
    assert used.memory_bytes > 5_000_000
    assert used.storage_used_bytes > 1_000_000

    async def has_worked() -> bool:
        await shared.query("SELECT 1")
        (now,) = await shared.provider.usage(shared.spec.name)
        return now.cpu_seconds > used.cpu_seconds

    await until(has_worked)


async def test_slow_statements_are_logged(shared: Shared) -> None:
    await shared.provider.update(dataclasses.replace(shared.spec, parameters=shared.dialect.slow), silent)
    await shared.query(shared.dialect.sleep)

    async def logged() -> bool:
        return any(shared.dialect.named in line for line in await shared.provider.slow_log(shared.spec.name))

    await until(logged)
    await shared.provider.update(shared.spec, silent)


async def test_a_start_that_fails_says_why_and_can_be_mended(shared: Shared) -> None:
    if not shared.dialect.impossible:
        pytest.skip("nothing is known that this engine takes and can not start with")
    broken = dataclasses.replace(shared.spec, parameters=shared.dialect.impossible)
    shared.provider.check(broken)
    await shared.provider.update(broken, silent)
    with pytest.raises(FailedPrecondition, match=r"did not start: .*memory") as caught:
        await shared.provider.restart(shared.spec.name, "", silent)
    assert caught.value.reason == "SERVER_START"
    await shared.provider.update(shared.spec, silent)
    assert (await shared.provider.start(shared.spec.name, silent)).primary == "orders-1"


async def test_its_admin_has_every_right(shared: Shared) -> None:
    access = await shared.provider.access(shared.spec.name)
    assert access.password == shared.secrets.admin
    assert access.password not in repr(access)


async def test_notices_name_what_has_no_effect(shared: Shared) -> None:
    spec = dataclasses.replace(shared.spec, placement=Placement(namespace="here"))
    fields = {notice.field for notice in shared.provider.notices(spec)}
    assert {"placement.namespace", "resources.memory_bytes", "resources.cpu_millis"} <= fields
    assert "placement.storage_class" not in fields


async def test_no_secret_lies_open(shared: Shared) -> None:
    secrets = [shared.secrets.admin, shared.secrets.replication, PASSWORD]
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        assert not any(secret in word for secret in secrets for word in words), process
    for path in (shared.folder / "instances").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path


async def test_files_are_closed_to_others(shared: Shared) -> None:
    instance = shared.machine.layout.instance(shared.spec.name)
    assert instance.manifest.stat().st_mode & 0o077 == 0
    assert instance.nodes.stat().st_mode & 0o077 == 0
    owner = shared.machine.account(shared.spec.name)
    assert instance.nodes.stat().st_uid == owner.uid != 0


def _pid_files(shared: Shared, content: str) -> list[Path]:
    """The files that tell a server's number, overwritten as a killed one could have left them."""
    folder = shared.machine.layout.instance(shared.spec.name).node("orders-1")
    name = "data/postmaster.pid" if shared.spec.engine is Engine.POSTGRESQL else "run/mysqld.pid"
    path = folder.path / name
    if shared.spec.engine is Engine.POSTGRESQL:
        content += f"{folder.data}\n1\n1\n\n\n"
    path.write_text(content)
    owner = shared.machine.account(shared.spec.name)
    os.chown(path, owner.uid, owner.gid)
    return [path]


def _main_process(shared: Shared) -> psutil.Process:
    process = _main_process_or_none(shared)
    assert process is not None
    return process


def _main_process_or_none(shared: Shared) -> psutil.Process | None:
    manifest = shared.machine.manifests.load(shared.spec.name)
    engine = local_engines(shared.machine)[shared.spec.engine]
    return engine.find(shared.machine.node(manifest, "orders-1"))
