"""`python -m opsplane_server.instances.providers.local.proxy FOLDER [UID GID]`: serves FOLDER/routes.json."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import sys
from encodings import idna  # noqa: F401 - the loop imports it late, when this process may not read it any more
from pathlib import Path

import structlog
import uvloop

from opsplane_server.instances.providers.local.proxy.process import LOCK_FILE, PID_FILE, ROUTES_FILE
from opsplane_server.instances.providers.local.proxy.server import Proxy

log = structlog.get_logger("opsplane_server.instances.providers.local.proxy")

_IN_USE = 3


async def _run(folder: Path, account: list[int]) -> None:
    loop = asyncio.get_running_loop()
    proxy = Proxy(folder / ROUTES_FILE)
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGHUP, proxy.hint)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    # Only now: whoever reads it may send signals.
    (folder / PID_FILE).write_text(f"{os.getpid()}\n")
    if account:
        os.setgroups([])
        os.setgid(account[1])
        os.setuid(account[0])
    log.info("proxy starts", pid=os.getpid())
    try:
        await proxy.run()
    except asyncio.CancelledError:
        log.info("proxy ends", pid=os.getpid())


def main() -> int:
    """Returns the status of the process: 3 when another proxy serves this folder."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    folder = Path(sys.argv[1])
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
    except BlockingIOError:
        return _IN_USE
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_run(folder, [int(number) for number in sys.argv[2:4]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
