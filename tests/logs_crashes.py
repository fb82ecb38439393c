"""Ends a server, or its database, by SIGKILL in the middle of its work, and waits until all is well again."""

from __future__ import annotations

import time

from tests.server_process import ServerProcess, alive, kill

RECOVERY_SECONDS = 60.0


def kill_server(server: ServerProcess) -> None:
    """Ends the workers and their parent, starts the server again and returns when it is ready."""
    workers = server.workers()
    for worker in workers:
        kill(worker)
    server.kill()
    server.start()
    server.wait_ready()


def kill_postgres(server: ServerProcess) -> None:
    """Ends the main process of the database and returns when the server has restarted it."""
    before = _restarts(server)
    postgres = server.postgres()
    kill(postgres)
    deadline = time.monotonic() + RECOVERY_SECONDS
    while alive(postgres) or _restarts(server) == before:
        if time.monotonic() > deadline:
            raise AssertionError(f"postgres is not restarted: {server.errors()[-2000:]}")
        time.sleep(0.02)


def _restarts(server: ServerProcess) -> int:
    return sum(record["event"] == "postgres restarted" for record in server.logs())
