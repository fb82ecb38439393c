"""`opsplane db` and `opsplane backup` against a real server, from create to delete, with the clients that people use.

pgbench and node-postgres reach the instance by what `db connection` says. In the end the passwords are looked for
wherever the server writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.components import cache_folder, lacking
from tests.instances_server import instances_server
from tests.logs_shippers import database
from tests.server_process import ServerProcess
from tests.unit.cli.commands import Outcome, opsplane_command
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PASSWORD = "pAss-phrase 'quoted' \"twice\" of the shop"
ROTATED = "another-Pass.phrase of the shop"
WRITER = Path(__file__).parent.parent / "node_postgres" / "writer.js"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with instances_server("--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def ready(server: ServerProcess) -> ServerProcess:
    """The server with the highly available instance `shop`."""
    asyncio.run(_create(server))
    return server


async def _create(server: ServerProcess) -> None:
    arguments = ("--nodes", "3", "--sync", "1", "--memory", "128Mi", "--user", "ann", "--database", "shop")
    created = await run(server, "db", "create", "shop", *arguments, "--password-env", "SECRET", SECRET=PASSWORD)
    assert created.status == 0, created.err
    assert PASSWORD not in created.out + created.err


async def run(server: ServerProcess, *arguments: str, **environment: str) -> Outcome:
    return await opsplane_command(*arguments, address=server.address, environment=environment)


async def asked(server: ServerProcess, *arguments: str) -> Any:
    """What the command prints as JSON."""
    outcome = await run(server, "-o", "json", *arguments)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


async def primary(server: ServerProcess) -> str:
    return str((await asked(server, "db", "show", "shop"))["currentPrimary"])


async def test_the_instance_is_shown_with_its_nodes(ready: ServerProcess) -> None:
    shown = await run(ready, "db", "show", "shop")
    assert shown.status == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["state", "ready"] in rows
    assert ["user", "ann"] in rows
    assert sum(row[:1] == [f"shop-{number}"] for row in rows for number in (1, 2, 3)) == 3
    listed = await run(ready, "db", "list")
    assert "shop" in listed.out


async def test_pgbench_runs_on_the_endpoint_for_writes_and_on_that_for_reads(ready: ServerProcess) -> None:
    told = await asked(ready, "db", "connection", "shop")
    pgbench = _program("pgbench")

    async def bench(endpoint: str, *arguments: str) -> str:
        place = told[endpoint]
        process = await asyncio.create_subprocess_exec(
            pgbench, "-h", place["host"], "-p", str(place["port"]), "-U", told["username"], *arguments,
            told["database"],
            env={"PATH": os.defpath, "PGPASSWORD": told["password"]},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    await bench("rw", "-i", "-s", "1")
    assert "number of failed transactions: 0" in await bench("rw", "-c", "4", "-t", "100")
    # On what the replicas have by now; they follow within moments.
    connection = await asyncpg.connect(told["ro"]["uri"])
    try:

        async def there() -> bool:
            return bool(await connection.fetchval("SELECT to_regclass('pgbench_history') IS NOT NULL"))

        await until(there)
    finally:
        await connection.close()
    assert "number of failed transactions: 0" in await bench("ro", "-S", "-n", "-c", "4", "-t", "200")


async def test_node_postgres_writes_on_through_switchover_and_failover(ready: ServerProcess) -> None:
    module = _node_postgres()
    told = await asked(ready, "db", "connection", "shop")
    rw = told["rw"]
    connection = await asyncpg.connect(rw["uri"])
    try:
        await connection.execute("CREATE TABLE written (number bigint PRIMARY KEY)")
    finally:
        await connection.close()
    writer = await asyncio.create_subprocess_exec(
        "node", str(WRITER), rw["host"], str(rw["port"]), told["username"], told["database"],
        env={"PATH": os.environ["PATH"], "NODE_PATH": str(module), "PGPASSWORD": told["password"]},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    committed: list[int] = []

    async def read() -> None:
        assert writer.stdout is not None
        async for line in writer.stdout:
            word, number, *_ = line.decode().split()
            if word == "committed":
                committed.append(int(number))

    async def more() -> None:
        before = len(committed)
        await until(lambda: len(committed) > before + 20)

    reading = asyncio.create_task(read())
    try:
        for change in ("switchover", "failover"):
            await more()
            old = await primary(ready)
            changed = await run(ready, "db", change, "shop")
            assert changed.status == 0, changed.err
            assert await primary(ready) != old

            async def whole() -> bool:
                return bool((await asked(ready, "db", "show", "shop"))["state"] == "STATE_READY")

            await until(whole, timeout=120)
        await more()
        assert writer.stdin is not None
        writer.stdin.close()
        await reading
        assert await writer.wait() == 0
    finally:
        if writer.returncode is None:
            writer.kill()
            await writer.wait()
        reading.cancel()
    connection = await asyncpg.connect(rw["uri"])
    try:
        found = {row["number"] for row in await connection.fetch("SELECT number FROM written")}
    finally:
        await connection.close()
    assert found >= set(committed)


async def test_a_backup_is_verified_and_restored(ready: ServerProcess) -> None:
    made = await asked(ready, "backup", "create", "shop", "--id", "shop-first", "--retention-days", "7")
    assert made["state"] == "STATE_READY"
    assert int(made["sizeBytes"]) > 0
    verified = await run(ready, "backup", "verify", "shop-first")
    assert verified.status == 0, verified.out + verified.err
    arguments = ("--as", "shop-copy", "--memory", "64Mi", "--password-env", "SECRET")
    restored = await run(ready, "backup", "restore", "shop-first", *arguments, SECRET=PASSWORD)
    assert restored.status == 0, restored.err
    copied = await run(
        ready, "db", "connect", "shop-copy", "--", "-At", "-c", "SELECT count(*) FROM pgbench_accounts",
        PATH=f"{Path(_program('psql')).parent}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert (copied.status, copied.out) == (0, "100000\n"), copied.err
    exported = await asked(ready, "backup", "export", "shop-first", "first.tar.gz")
    archive = next(ready.data_dir.rglob("first.tar.gz"))
    assert archive.stat().st_size == int(exported["sizeBytes"])
    deleted = await run(ready, "db", "delete", "shop-copy", "--yes")
    assert deleted.status == 0, deleted.err


async def test_no_password_is_anywhere_it_can_be_read(ready: ServerProcess) -> None:
    rotated = await run(ready, "db", "users", "rotate", "shop", "ann", "--password-env", "SECRET", SECRET=ROTATED)
    assert rotated.status == 0, rotated.err
    told = await asked(ready, "db", "connection", "shop")
    assert told["password"] == ROTATED
    connection = await asyncpg.connect(told["rw"]["uri"])
    await connection.close()
    for command in (("db", "events"), ("operation", "list"), ("db", "slow", "shop"), ("backup", "list")):
        listed = json.dumps(await asked(ready, *command))
        assert not [secret for secret in (PASSWORD, ROTATED) if secret in listed], command
    async with database(ready) as ours:
        tables = await ours.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
            "WHERE schemaname !~ '^(pg_|information)'"
        )
        for table in tables:
            rows = await ours.fetchval(f"SELECT string_agg(row::text, '\n') FROM {table['name']} row")
            assert not [secret for secret in (PASSWORD, ROTATED) if secret in (rows or "")], table["name"]
    needles = [secret.encode() for secret in (PASSWORD, ROTATED)]
    leaks = await asyncio.to_thread(_files_with, ready.data_dir.parent, needles)
    assert not leaks


def _files_with(folder: Path, needles: list[bytes]) -> list[str]:
    """Files that hold one of them, logs and data of all servers included."""
    found = []
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # removed meanwhile
        if any(needle in content for needle in needles):
            found.append(str(path.relative_to(folder)))
    return found


def _program(name: str) -> str:
    """One of PostgreSQL's, beside the server that the wheel brings."""
    from opsplane_server.storage.binaries import wheel_binaries

    return str(wheel_binaries() / "bin" / name)


def _node_postgres() -> Path:
    """The folder of modules that has it, from the cache of `make tools`."""
    modules = cache_folder() / "node-postgres" / "node_modules"
    if shutil.which("node") is None or not (modules / "pg").is_dir():
        problem = "node-postgres is not here; `make tools` installs it where Node.js is"
        lacking(problem)
    return modules
