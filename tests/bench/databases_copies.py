"""How long CreateBackup and RestoreBackup take for a database of 1 GB, against the bare tools.

Ours is the whole way: a call to a real server and its operation, which ends when the backup is READY, so copied and
checked, or when the restored instance is. The bare tools are pg_basebackup and pg_verifybackup with the same options,
from the same server to the same disk; and a copy of the backup's files, put in place by `cp`, whose server is started
and waited for until it takes connections. They take turns, so that both see the same noise; the result is the median
of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import struct
import subprocess
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc
from opsplane.instances.v1 import instance_pb2, instances_pb2, instances_pb2_grpc
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.providers.local import processes, programs
from opsplane_server.instances.providers.local.layout import NodeFolder
from opsplane_server.storage import postmaster
from opsplane_server.storage.accounts import Account, choose_account, private_folder
from opsplane_server.storage.binaries import wheel_binaries

from tests.instances_harness import end_all, port_range
from tests.postgres_fixtures import reachable_folder
from tests.server_process import new_server
from tests.waiting import until

BACKUP_GOAL = 1.3
RESTORE_GOAL = 2.0
NAME = "instances/bench"
MIB = 1024 * 1024
ROWS = 1024 * 1024
ROW_BYTES = 990  # with its head and its place in the page about a kilobyte


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` rounds of about 20 seconds each."""
    first, last = port_range()
    ports = {"OPSPLANE_INSTANCES__FIRST_PORT": str(first), "OPSPLANE_INSTANCES__LAST_PORT": str(last)}
    with new_server("--services=instances,backups", environment=ports) as server, reachable_folder() as folder:
        server.start()
        server.wait_ready()
        try:
            taken = asyncio.run(_measure(server.address, server.data_dir / "instances", folder, rounds))
        finally:
            end_all(server.data_dir / "instances")
    return [
        _entry("backup_vs_pg_basebackup", "pg_basebackup + pg_verifybackup", BACKUP_GOAL, taken.backups),
        _entry("restore_vs_cp", "cp + start", RESTORE_GOAL, taken.restores),
    ]


def _entry(measure: str, reference: str, goal: float, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    seconds = statistics.median(bare for _, bare in pairs)
    return {
        "measure": measure,
        "value": ratio,
        "unit": "ratio",
        "reference": f"{reference}: {seconds:.2f} s for 1 GB",
        "goal": f"<= {goal:g}",
        "met": ratio <= goal,
    }


@dataclass(frozen=True)
class _Taken:
    """Seconds of ours and of the bare tools."""

    backups: list[tuple[float, float]]
    restores: list[tuple[float, float]]


async def _measure(address: str, instances: Path, folder: Path, rounds: int) -> _Taken:
    taken = _Taken([], [])
    async with grpc.aio.insecure_channel(address) as channel:
        node = NodeFolder(instances / "bench" / "nodes" / "bench-1")
        resources = instance_pb2.Resources(storage_bytes=8192 * MIB, memory_bytes=512 * MIB)
        await _done(
            channel,
            await instances_pb2_grpc.InstancesStub(channel).CreateInstance(
                instances_pb2.CreateInstanceRequest(
                    instance_id="bench",
                    instance=instance_pb2.Instance(engine=instance_pb2.ENGINE_POSTGRESQL, resources=resources),
                )
            ),
        )
        await _fill(node)
        account = choose_account(None, node.path)
        private_folder(folder / "bare", account)
        bare = _BareTools(_mended_tree(folder), account, node, folder / "bare")
        for number in range(rounds + 1):
            backup = f"backup-{number}"
            ours = await _timed(_back_up(channel, backup))
            alone = await _timed(bare.back_up())
            restored = await _timed(_restore(channel, backup))
            started = await _timed(bare.restore())
            if number:  # the first has the programs and the data read from disk
                taken.backups.append((ours, alone))
                taken.restores.append((restored, started))
            await _forget(channel, backup)
            await bare.forget()
    return taken


async def _timed(work: Awaitable[None]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def _fill(node: NodeFolder) -> None:
    async with _connected(node) as connection:
        await connection.execute("CREATE TABLE filling (n bigint PRIMARY KEY, content text)")
        await connection.execute("ALTER TABLE filling ALTER content SET STORAGE plain")
        await connection.execute(
            "INSERT INTO filling SELECT n, rpad(n::text, $1, 'x') FROM generate_series(1, $2) AS n", ROW_BYTES, ROWS
        )
        await connection.execute("VACUUM (ANALYZE) filling")
        await connection.execute("CHECKPOINT")


@contextlib.asynccontextmanager
async def _connected(node: NodeFolder) -> Any:
    connection = await asyncpg.connect(
        host=str(node.run), port=_port(node), user=ADMIN_USER, database="postgres", command_timeout=600
    )
    try:
        yield connection
    finally:
        await connection.close()


def _port(node: NodeFolder) -> int:
    (socket,) = node.run.glob(".s.PGSQL.*[0-9]")
    return int(socket.suffix.removeprefix("."))


# Ours


async def _back_up(channel: grpc.aio.Channel, backup_id: str) -> None:
    request = backups_pb2.CreateBackupRequest(backup=backup_pb2.Backup(instance=NAME), backup_id=backup_id)
    await _done(channel, await backups_pb2_grpc.BackupsStub(channel).CreateBackup(request))


async def _restore(channel: grpc.aio.Channel, backup_id: str) -> None:
    request = backups_pb2.RestoreBackupRequest(backup=f"backups/{backup_id}", instance_id="restored")
    await _done(channel, await backups_pb2_grpc.BackupsStub(channel).RestoreBackup(request))


async def _forget(channel: grpc.aio.Channel, backup_id: str) -> None:
    gone = instances_pb2.DeleteInstanceRequest(name="instances/restored")
    await _done(channel, await instances_pb2_grpc.InstancesStub(channel).DeleteInstance(gone))
    deleted = backups_pb2.DeleteBackupRequest(name=f"backups/{backup_id}")
    await _done(channel, await backups_pb2_grpc.BackupsStub(channel).DeleteBackup(deleted))


async def _done(channel: grpc.aio.Channel, operation: operations_pb2.Operation) -> None:
    while not operation.done:
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        operation = await operations_pb2_grpc.OperationsStub(channel).WaitOperation(request)
    if operation.HasField("error"):
        raise RuntimeError(operation.error.message)


# The bare tools


@dataclass(frozen=True)
class _BareTools:
    tree: Path
    account: Account
    node: NodeFolder
    folder: Path

    async def back_up(self) -> None:
        data = self.folder / "copy"
        command: list[str | Path] = [
            self.tree / "bin" / "pg_basebackup",
            "-h",
            self.node.run,
            "-p",
            str(_port(self.node)),
            "-w",
        ]
        command += ["-U", REPLICATION_USER, "-D", data, "-c", "fast", "-X", "stream"]
        await programs.run(self.account, command)
        await programs.run(self.account, [self.tree / "bin" / "pg_verifybackup", data])

    async def restore(self) -> None:
        data = self.folder / "restored"
        await programs.run(self.account, ["cp", "-a", self.folder / "copy", data])
        command: list[str | Path] = [
            self.tree / "bin" / "postgres",
            "-D",
            data,
            "-k",
            self.folder,
            "-c",
            "listen_addresses=",
        ]
        processes.launch(self.account, command, self.folder / "log")
        await until(self._connects)

    async def forget(self) -> None:
        server = postmaster.find(self.folder / "restored")
        assert server is not None
        await processes.kill(processes.tree(server.process))
        for name in ("copy", "restored"):
            await asyncio.to_thread(shutil.rmtree, self.folder / name)

    async def _connects(self) -> bool:
        """Its access rules let nobody in; that it says so is its answer."""
        try:
            await asyncpg.connect(host=str(self.folder), user="bench", database="postgres")
        except asyncpg.InvalidAuthorizationSpecificationError:
            return True
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True


def _mended_tree(folder: Path) -> Path:
    """A copy of the wheel's PostgreSQL 18 whose pg_verifybackup works.

    In the wheel it ends with a segmentation fault: a part of the program that the loader writes to is marked as only
    readable. In the copy that mark is put right; nothing else is changed.
    """
    source = wheel_binaries()
    package = folder / "tree" / source.parent.name
    shutil.copytree(source, package / source.name)
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, package.with_name(libraries.name))
    for path in (folder / "tree").rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    (folder / "tree").chmod(0o755)
    program = package / source.name / "bin" / "pg_verifybackup"
    if subprocess.run([program, "--version"], check=False, capture_output=True).returncode != 0:
        _make_headers_writable(program)
    return package / source.name


def _make_headers_writable(program: Path) -> None:
    """In every loadable part of this 64-bit ELF file that is only readable."""
    content = bytearray(program.read_bytes())
    (table,), (count,) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<H", content, 56)
    for header in range(table, table + 56 * count, 56):
        kind, flags = struct.unpack_from("<II", content, header)
        if (kind, flags) == (1, 4):  # PT_LOAD, PF_R
            struct.pack_into("<I", content, header + 4, 6)  # PF_R | PF_W
    program.write_bytes(content)
