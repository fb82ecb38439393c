"""Backups of real PostgreSQL servers: chains, moments, and a server that is killed under way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.backups.v1 import backup_pb2, backups_pb2
from opsplane.common.v1 import platform_pb2
from opsplane.ftptransfer.v1 import connections_pb2, ftptransfer_pb2_grpc
from opsplane.instances.v1 import instance_pb2, instances_pb2

from tests.backups_client import Client
from tests.ftp_servers.base import PASSWORD as PASSWORD_OF_FTP
from tests.ftp_servers.base import FtpProcess, running
from tests.ftp_servers.pyftpdlib import Pyftpdlib
from tests.instances_server import instances_server
from tests.rpc_harness import require_status
from tests.server_process import ServerProcess, kill
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "a-password-to-look-for-5150"
LEDGER = "instances/ledger"
STATE = backup_pb2.Backup.State


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with instances_server() as running_one:
        yield running_one


@pytest.fixture(scope="module")
def exports(server: ServerProcess) -> Path:
    return server.data_dir / "exports"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ledger(server: ServerProcess) -> None:
    """An instance that archives its log."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel, server)
        recovery = instance_pb2.PointInTimeRecovery(enabled=True)
        await client.create("ledger", point_in_time_recovery=recovery)
        await client.query(LEDGER, "CREATE TABLE entries (id int PRIMARY KEY, note text)", "SELECT 1")


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: ServerProcess, ledger: None) -> AsyncIterator[Client]:
    """The server may have been started again since the test before."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Client(channel, server)


async def add(client: Client, first: int, count: int) -> None:
    await client.query(
        LEDGER,
        f"INSERT INTO entries SELECT n, repeat(md5(n::text), 30) FROM generate_series({first}, {first + count - 1}) n",
        "SELECT 1",
    )


async def restored(client: Client, request: backups_pb2.RestoreBackupRequest) -> int:
    """How many entries an instance has that is made by the request, and removed again."""
    made = await client.done(await client.backups.RestoreBackup(request), instance_pb2.Instance)
    count: int = await client.query(made.name, "SELECT count(*) FROM entries")
    await client.remove(made.name)
    return count


async def test_chain_of_incremental_backups_is_restored_as_a_whole(client: Client) -> None:
    await add(client, 1, 20_000)
    full = await client.back_up(LEDGER)
    await add(client, 20_001, 100)
    second = await client.back_up(LEDGER, incremental=True)
    await add(client, 20_101, 100)
    third = await client.back_up(LEDGER, incremental=True)
    assert (second.base_backup, third.base_backup) == (full.name, second.name)
    assert third.size_bytes < full.size_bytes
    assert third.restore_size_bytes >= full.restore_size_bytes
    request = backups_pb2.RestoreBackupRequest(backup=third.name, instance_id="chain")
    request.instance.password = PASSWORD
    assert await restored(client, request) == 20_200
    verified = await client.done(
        await client.backups.VerifyBackup(backups_pb2.VerifyBackupRequest(name=third.name)), backup_pb2.Backup
    )
    assert verified.verification.state == backup_pb2.Verification.STATE_PASSED, verified.verification
    assert verified.verification.row_count >= 20_200


async def test_any_moment_is_restored_from_the_newest_backup_before_it(client: Client) -> None:
    before = int(await client.query(LEDGER, "SELECT count(*) FROM entries"))
    await client.back_up(LEDGER)
    await add(client, 100_001, 10)
    moment = Timestamp()
    moment.FromDatetime(await client.query(LEDGER, "SELECT clock_timestamp()"))
    # More than a file of the log, so that the moment is archived without waiting.
    await add(client, 200_001, 30_000)

    async def covered() -> bool:
        found = await client.instances.GetInstance(instances_pb2.GetInstanceRequest(name=LEDGER))
        latest: Timestamp = found.point_in_time_recovery.latest_time
        return latest.ToDatetime() >= moment.ToDatetime()

    await until(covered, timeout=90)
    point = backups_pb2.PointInTime(instance=LEDGER, time=moment)
    request = backups_pb2.RestoreBackupRequest(point_in_time=point, instance_id="moment")
    assert await restored(client, request) == before + 10


async def test_archive_is_sent_by_ftp_and_not_left_here(client: Client, server: ServerProcess, exports: Path) -> None:
    [made, *_] = await client.list()
    request = backups_pb2.ExportBackupRequest(name=made.name)
    request.ftp.connection = "connections/offsite"
    request.ftp.path = "/data/nightly/"
    with require_status(grpc.StatusCode.NOT_FOUND):
        await client.backups.ExportBackup(request)
    with running(Pyftpdlib) as ftp:
        await create_connection(server, ftp)
        exported = await client.done(await client.backups.ExportBackup(request), backups_pb2.ExportBackupResponse)
        name = made.name.removeprefix("backups/")
        assert exported.path == f"/data/nightly/{name}.tar.gz"
        assert exported.transfer.startswith("transfers/")
        content = (ftp.files / "nightly" / f"{name}.tar.gz").read_bytes()
        assert len(content) == exported.size_bytes
        assert hashlib.sha256(content).hexdigest() == exported.sha256
        assert list(files(exports)) == []
        with pytest.raises(AssertionError, match="exists"):
            await client.done(await client.backups.ExportBackup(request), backups_pb2.ExportBackupResponse)
        assert list(files(exports)) == []


async def create_connection(server: ServerProcess, ftp: FtpProcess) -> None:
    address = connections_pb2.FtpServer(host=ftp.host, port=ftp.port, user=ftp.user, password=PASSWORD_OF_FTP)
    request = connections_pb2.CreateConnectionRequest(
        connection=connections_pb2.Connection(ftp=address), connection_id="offsite"
    )
    async with grpc.aio.insecure_channel(server.address) as channel:
        await ftptransfer_pb2_grpc.FtpTransferStub(channel).CreateConnection(request)


def kill_all(server: ServerProcess) -> None:
    """Ends the server and its workers, by SIGKILL; what they run stays."""
    workers = server.workers()
    server.kill()
    for worker in workers:
        kill(worker)


@pytest.mark.parametrize(("stage", "gently"), [("copying", False), ("copying", True)])
async def test_server_that_was_ended_completes_its_backup_when_it_is_back(
    client: Client, server: ServerProcess, stage: str, gently: bool
) -> None:
    """Ended when the operation tells of a stage that begins so."""
    operation = await client.backups.CreateBackup(
        backups_pb2.CreateBackupRequest(backup=backup_pb2.Backup(instance=LEDGER))
    )

    async def reached() -> bool:
        found = await client.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name))
        metadata = platform_pb2.OperationMetadata()
        assert found.metadata.Unpack(metadata)
        return bool(found.done or metadata.stage.startswith(stage))

    await until(reached)
    if gently:
        assert server.stop() == 0
    else:
        kill_all(server)
    server.start()
    server.wait_ready()
    async with grpc.aio.insecure_channel(server.address) as channel:
        again = Client(channel, server)
        found = await again.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name))
        made = await again.done(found, backup_pb2.Backup)
        assert made.state == STATE.STATE_READY
        assert {backup.state for backup in await again.list()} == {STATE.STATE_READY}
        locations = {backup.location for backup in await again.list()}
        assert {path.name for path in copies(server).iterdir() if path.is_dir()} == locations


async def test_deleted_backups_leave_nothing(client: Client, server: ServerProcess) -> None:
    for backup in await client.list():
        request = backups_pb2.DeleteBackupRequest(name=backup.name, force=True, allow_missing=True)
        await client.done(await client.backups.DeleteBackup(request), Empty)
    assert await client.list() == []
    assert [path.name for path in copies(server).iterdir() if path.is_dir()] == []


async def test_password_of_a_restore_is_in_no_file(client: Client, server: ServerProcess) -> None:
    assert PASSWORD not in server.errors()
    found = [path for path in files(server.data_dir) if PASSWORD.encode() in path.read_bytes()]
    assert found == []


def copies(server: ServerProcess) -> Path:
    return server.data_dir / "backups"


def files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_file() and not path.is_symlink():
                yield path
