"""What the port `Provider` promises of making instances and removing them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest
from opsplane_server.errors import (
    FailedPrecondition,
    LeaseLost,
    NotFound,
    ResourceExhausted,
)
from opsplane_server.instances.model import (
    Engine,
)

from tests import instances_harness as harness
from tests.instances_clients import query
from tests.instances_harness import silent
from tests.instances_provider import machine_with, newest, processes_of, rw
from tests.waiting import until


@pytest.fixture(params=list(Engine))
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(request.param)


async def test_half_made_it_is_gone_on_with_or_removed(engine: Engine) -> None:
    """The programs that a killed process had started go on: they must neither disturb the next attempt nor stay."""
    with harness.machine_folder() as folder:
        machine = machine_with(engine, folder)
        provider = harness.provider(machine)
        spec = harness.spec("half", engine=engine, version=newest(provider, engine))
        secrets = harness.passwords()
        maker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.instances_harness", str(folder), engine, spec.version, spec.uid,
            *map(str, machine.settings.programs),
        )  # fmt: skip
        nodes = machine.layout.instance(spec.name).nodes
        await until(lambda: any(nodes.glob("*/data.new/*")))
        maker.kill()
        await maker.wait()

        for percent in (1, 80):

            async def broken_off(what: str, done: int, after: int = percent) -> None:
                if done >= after:
                    raise LeaseLost(what)

            with pytest.raises(LeaseLost):
                await provider.create(spec, secrets, None, broken_off)
            with pytest.raises(FailedPrecondition):
                await provider.find(spec.name)
            with pytest.raises(FailedPrecondition):
                await provider.start(spec.name, silent)
        status = await provider.create(spec, secrets, None, silent)
        assert status.primary == "half-1"
        await query(spec, rw(status).rw, (await provider.find(spec.name)).secrets.users["app"], "SELECT 1")
        for _ in range(2):  # harmless again
            await provider.delete(spec.name, silent)
        _nothing_is_left(folder)
        with pytest.raises(NotFound):
            await provider.status(spec.name)


async def test_instances_have_ports_of_their_own() -> None:
    with harness.machine_folder() as folder, socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        machine = harness.machine(folder, first_port=taken, last_port=taken)
        provider = harness.provider(machine)
        spec = harness.spec("nowhere", version=newest(provider, Engine.POSTGRESQL))
        with pytest.raises(ResourceExhausted):
            await provider.create(spec, harness.passwords(), None, silent)
        await provider.delete(spec.name, silent)
        _nothing_is_left(folder)


async def test_every_version_of_postgresql_runs_and_tls_is_what_it_says() -> None:
    """Under names so long that no path of a socket could hold them."""
    with harness.machine_folder() as folder:
        provider = harness.provider(harness.machine(folder))
        for number, version in enumerate(provider.versions(Engine.POSTGRESQL)[1:]):
            spec = harness.spec(f"version-{number}".ljust(63, "x"), version=version)
            secrets = harness.passwords()
            status = await provider.create(spec, secrets, None, silent)
            assert status.running_version == version
            rows = await query(
                spec,
                rw(status).rw,
                secrets.users["app"],
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
                ca_certificate=status.ca_certificate,
            )
            assert rows[0][0] is status.tls
            sockets = (await provider.access(spec.name)).host
            assert len(sockets) < 80
            (server,) = [process for process in processes_of(folder) if "-D" in process.cmdline()]
            shared_memory = _shared_memory(Path(server.cmdline()[2]))
            assert _segments() >= shared_memory
            server.kill()  # what a killed one leaves must go as well
            await provider.delete(spec.name, silent)
            assert os.path.basename(sockets) not in os.listdir(os.path.dirname(sockets))
            assert not _segments() & shared_memory
        _nothing_is_left(folder)


def _shared_memory(data: Path) -> set[str]:
    return {(data / "postmaster.pid").read_text().splitlines()[6].split()[1]}


def _segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def _nothing_is_left(folder: Path) -> None:
    assert processes_of(folder) == []
    left = [path for path in (folder / "instances").iterdir() if path.name != "ports.lock" and "proxy" not in path.name]
    assert left == []
