"""Instances for tests: the local provider on a folder of its own, and servers that never outlive their test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import itertools
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path

import psutil
from opsplane_server.instances.model import (
    Engine,
    HighAvailability,
    InstanceSpec,
    PointInTimeRecovery,
    ProviderKind,
    Resources,
    Secrets,
)
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.assembling import local_engines
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.machine import LocalSettings, Machine
from opsplane_server.instances.providers.local.provider import LocalProvider
from opsplane_server.storage.secrets import SecretBox

MIB = 1024 * 1024

_FIRST_PORT = 20000
_PORTS = 100
_MACHINES = 10
_SHARES = 10


async def silent(what: str, percent: int) -> None:
    """Progress that nobody looks at."""


def spec(
    instance_id: str,
    *,
    engine: Engine = Engine.POSTGRESQL,
    version: str,
    database: str = "app",
    username: str = "app",
    parameters: dict[str, str] | None = None,
    memory_bytes: int = 256 * MIB,
    storage_bytes: int = 1024 * MIB,
    high_availability: HighAvailability | None = None,
    point_in_time_recovery: PointInTimeRecovery | None = None,
) -> InstanceSpec:
    """A small instance."""
    return InstanceSpec(
        name=f"instances/{instance_id}",
        uid=str(uuid.uuid4()),
        engine=engine,
        version=version,
        provider=ProviderKind.LOCAL,
        machine="here",
        database=database,
        username=username,
        resources=Resources(
            storage_bytes=storage_bytes,
            memory_bytes=memory_bytes,
            cpu_millis=500,
            memory_request_bytes=memory_bytes,
            cpu_request_millis=500,
        ),
        parameters=parameters or {},
        high_availability=high_availability,
        point_in_time_recovery=point_in_time_recovery,
    )


def passwords(username: str = "app") -> Secrets:
    """Strong ones, unlike each other."""
    return Secrets(
        admin=f"admin-{secrets.token_urlsafe(24)}",
        replication=f"replication-{secrets.token_urlsafe(24)}",
        users={username: f"user-{secrets.token_urlsafe(24)}"},
    )


def port_range() -> tuple[int, int]:
    """Ports for one machine of a test, away from those of test processes that run at the same time."""
    first = _FIRST_PORT + (_share() * _MACHINES + next(_machines) % _MACHINES) * _PORTS
    return first, first + _PORTS - 1


_machines = itertools.count()


@cache
def _share() -> int:
    """This process's share of the ports. The lock is held until it ends."""
    for share in range(_SHARES):
        lock = os.open(Path(tempfile.gettempdir()) / f"opsplane-test-ports-{share}", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return share
    raise RuntimeError(f"{_SHARES} test processes share out their ports already")


@contextmanager
def machine_folder() -> Iterator[Path]:
    """A folder that the servers' account may pass; when it goes, every process that works on it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="opsplane-")).resolve()
    if os.geteuid() == 0:
        folder.chmod(0o711)
    try:
        yield folder
    finally:
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(folder: Path) -> None:
    """Kills the processes with a path below `folder` in their command line, and what these have started."""
    found = [process for process in psutil.process_iter() if _works_on(process, folder)]
    victims = {victim for process in found for victim in processes.tree(process)}
    # Told to end at once they give their shared memory back; killed they leave it.
    servers = [process for process in found if _is(process, "postgres")]
    _send(servers, signal.SIGQUIT)
    _wait(servers, 5)
    _send(victims, signal.SIGKILL)
    _wait(victims, 30)
    processes.reap()


def _works_on(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and any(str(folder) in word for word in process.cmdline()[1:])
    except psutil.Error:
        return False


def _is(process: psutil.Process, name: str) -> bool:
    try:
        return bool(process.name() == name)
    except psutil.Error:
        return False


def _send(targets: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in targets:
        processes.send(process, number)


def _wait(ending: Iterable[psutil.Process], seconds: float) -> None:
    # Not psutil's wait, which goes on until somebody has asked for the status of a dead one.
    for process in ending:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            select.select([descriptor], [], [], seconds)
            os.close(descriptor)


def machine(folder: Path, **settings: object) -> Machine:
    """A machine whose data directory is `folder`; the same one again finds what an earlier one made there."""
    first, last = port_range()
    values: dict[str, object] = {"first_port": first, "last_port": last} | settings
    box = SecretBox.from_key_file(folder / "keys", create=True)
    return Machine(Layout.below(folder), LocalSettings(**values), box)  # type: ignore[arg-type]


def provider(on: Machine) -> LocalProvider:
    """The local provider of a machine."""
    return LocalProvider(on, local_engines(on))


@asynccontextmanager
async def local_provider(**settings: object) -> AsyncIterator[LocalProvider]:
    """A local provider on a folder of its own; its servers end with it."""
    with machine_folder() as folder:
        yield provider(machine(folder, **settings))


def _make(folder: str, engine: str, version: str, uid: str, *programs: str) -> None:
    """In a process of its own, which the test kills at its work."""
    wanted = dataclasses.replace(spec("half", engine=Engine(engine), version=version), uid=uid)
    on = machine(Path(folder), programs=tuple(map(Path, programs)))
    asyncio.run(provider(on).create(wanted, passwords(), None, silent))


if __name__ == "__main__":
    _make(*sys.argv[1:])
