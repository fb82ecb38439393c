"""Starting, and all the ways in which it ends with one clear line."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest
from opsplane_server.config import SERVICES

from tests.integration.server.calls import answers, health
from tests.ports import free_port
from tests.server_process import IMPORT_PATH, ServerProcess, alive, new_server, running_server
from tests.waiting import until

SERVING = 1


def refusal(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Why a server does not start; it must say so in one line, and leave nothing behind."""
    with new_server(*arguments, environment=environment) as server:
        return refused(server)


def refused(server: ServerProcess) -> str:
    line = last_line(server)
    assert server.output() == ""
    assert not left_of(server)
    return line


def last_line(server: ServerProcess) -> str:
    """What a server that can not start says in the end."""
    server.start()
    assert server.wait() != 0
    assert "Traceback" not in server.errors()
    prefix = "opsplane: can not start: "
    last = server.errors().splitlines()[-1]
    assert last.startswith(prefix)
    return last.removeprefix(prefix)


def left_of(server: ServerProcess) -> list[list[str]]:
    """Processes that still have to do with the server's data."""
    commands: list[list[str]] = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if any(str(server.data_dir) in argument for argument in command)]


async def test_serves_and_says_where() -> None:
    with running_server("--workers", "2") as server:
        services = ", ".join(SERVICES)
        assert f"is serving {services} on {server.address}" in server.output()
        assert await health(server.address) == SERVING
        assert await answers(server.address)
        assert len(server.workers()) == 2
        ready = server.find_log("server ready")
        assert ready is not None
        assert ready["workers"] == server.workers()
        assert ready["postgres"] == [server.postgres()]
        pids = [*server.workers(), server.postgres()]
        assert server.stop() == 0
        assert not [pid for pid in pids if alive(pid)]


async def test_ctrl_c_in_the_terminal_ends_it_in_order() -> None:
    with running_server() as server:
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert server.find_log("worker drains") is not None
        assert server.find_log("postgres stopped") is not None


async def test_keeps_its_data_and_its_key_for_its_user_alone() -> None:
    with running_server() as server:
        first = server.postgres()
        assert (server.data_dir / "secrets.key").stat().st_mode & 0o777 == 0o600
        assert (server.data_dir / "run").stat().st_mode & 0o777 == 0o700
        key = (server.data_dir / "secrets.key").read_bytes()
        server.stop()
        server.start()
        server.wait_ready()
        assert server.postgres() != first
        assert (server.data_dir / "secrets.key").read_bytes() == key
        assert server.find_log("database created") is None


def test_a_second_server_on_the_port_is_refused() -> None:
    with running_server() as server:
        port = server.address.rpartition(":")[2]
        assert refusal(f"--port={port}") == f"port {port} of 127.0.0.1 is in use by another program"


async def test_a_second_server_on_the_port_is_refused_while_the_first_one_starts() -> None:
    port = free_port()
    with new_server(f"--port={port}") as first:
        first.start()
        await until(lambda: first.find_log("database created") is not None)
        first.signal(signal.SIGSTOP)  # long before it has workers that listen
        try:
            assert refusal(f"--port={port}") == f"port {port} of 127.0.0.1 is in use by another program"
        finally:
            first.signal(signal.SIGCONT)
        first.wait_ready()
        assert first.address == f"127.0.0.1:{port}"


def test_a_busy_metrics_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert refusal(f"--metrics-port={port}") == f"port {port} of 127.0.0.1 is in use by another program"


def test_a_data_directory_in_use_is_refused() -> None:
    with running_server() as server, new_server() as second:
        second.data_dir = server.data_dir
        assert last_line(second).startswith(f"another Opsplane server uses {server.data_dir}")
        second.data_dir = second.data_dir.parent / "none"  # what is left of the first is not its to clean up


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        (["--port=http"], {}, "--port: Input should be a valid integer"),
        (["--services=telepathy"], {}, "--services: there is no service 'telepathy'"),
        ([], {"OPSPLANE_SERVER__WORKERS": "0"}, "environment variable OPSPLANE_SERVER__WORKERS: "),
        ([], {"OPSPLANE_SERVER_PORT": "1"}, "environment variable OPSPLANE_SERVER_PORT: there is no such setting"),
        ([], {"SCHEDULER_MAX_RETRY": "often"}, "environment variable SCHEDULER_MAX_RETRY: "),
        ([], {"OPSPLANE_CONFIG": "/nowhere.yaml"}, "/nowhere.yaml: No such file or directory"),
        (["--host=0.0.0.0"], {}, "server.host 0.0.0.0 is not loopback: serving others needs TLS"),
        (["--host=192.0.2.1"], {}, "server.host 192.0.2.1 is not loopback: serving others needs TLS"),
    ],
)
def test_wrong_configuration_is_refused_by_name(arguments: list[str], environment: dict[str, str], line: str) -> None:
    assert refusal(*arguments, environment=environment).startswith(line)


def test_an_unreachable_database_is_refused() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(nobody.getsockname()[1])}
        assert "the database can not be reached now" in refusal(environment=address)


def external(dsn: str) -> dict[str, str]:
    """The settings for a database of the test server."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    assert parts.username is not None
    assert parts.password is not None
    return {
        "DATABASE_HOST": query["host"][0],
        "DATABASE_PORT": query["port"][0],
        "DATABASE_NAME": parts.path.lstrip("/"),
        "DATABASE_USER": parts.username,
        "DATABASE_PASSWORD": parts.password,
    }


async def test_an_external_database_is_used(dsn: str) -> None:
    with running_server(environment=external(dsn)) as server:
        assert await answers(server.address)
        assert not (server.data_dir / "postgres").exists()
        assert external(dsn)["DATABASE_PASSWORD"] not in server.errors()


def test_a_wrong_password_is_refused(dsn: str) -> None:
    wrong = {**external(dsn), "DATABASE_PASSWORD": "wrong"}
    assert "password authentication failed" in refusal(environment=wrong)


async def test_a_newer_schema_is_refused(dsn: str) -> None:
    with running_server(environment=external(dsn)) as server:
        server.stop()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "INSERT INTO platform.schema_migrations (number, name, checksum) VALUES (9999, '9999_later.sql', '')"
        )
    finally:
        await connection.close()
    assert "9999_later.sql, which this version does not know" in refusal(environment=external(dsn))


async def test_a_database_user_without_privileges_is_refused(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    user = f"poor_{os.getpid()}"
    try:
        await connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'poor'")
        poor = {**external(dsn), "DATABASE_USER": user, "DATABASE_PASSWORD": "poor"}
        assert "permission denied" in refusal(environment=poor)
    finally:
        await connection.execute(f"DROP ROLE IF EXISTS {user}")
        await connection.close()


def test_a_data_directory_that_is_a_file_is_refused() -> None:
    with new_server() as server:
        server.data_dir.write_text("")
        assert str(server.data_dir) in refused(server)


def test_a_worker_that_dies_again_and_again_ends_the_start(tmp_path: Path) -> None:
    broken = "import os, sys\nif sys.orig_argv[-1] == 'opsplane_server.worker': os._exit(7)\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    line = refusal(environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{IMPORT_PATH}"})
    assert line == "a worker ended before it was ready (status 7), 3 times"


async def test_sigterm_while_it_starts_leaves_nothing_behind() -> None:
    with new_server() as server:
        server.start()
        await until(lambda: (server.data_dir / "postgres").exists())
        assert server.find_log("server ready") is None
        assert server.stop() == 0
        assert not left_of(server)


def test_the_command_line_starts_it_in_a_process_without_grpc() -> None:
    with new_server() as server:
        code = (
            "import grpc, sys; from opsplane_server.commands import serve; "
            f"serve(['--data-dir={server.data_dir}', '--port=0', '--metrics-port=0', '--host=0.0.0.0'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "is not loopback" in done.stderr


def test_logs_are_json_with_the_common_fields() -> None:
    with running_server() as server:
        server.stop()
        lines = server.errors().splitlines()
        for line in lines:
            record = json.loads(line)
            assert {"timestamp", "level", "event", "logger", "service"} <= record.keys()
        assert [record["worker"] for record in server.logs() if record["event"] == "worker ready"] == [0]
