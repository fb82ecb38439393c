"""The proxy's process: started once a machine, found again by whoever comes later, told of new routes.

FOLDER/routes.json     what it serves
      /proxy.lock      held by it as long as it lives
      /proxy.pid       its number
      /proxy.log
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import structlog

import opsplane_server
from opsplane_server.errors import Unavailable
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.proxy import routes
from opsplane_server.instances.providers.local.proxy.routes import Route
from opsplane_server.storage.accounts import Account, create_folder

log = structlog.get_logger(__name__)

ROUTES_FILE = "routes.json"
LOCK_FILE = "proxy.lock"
PID_FILE = "proxy.pid"
LOG_FILE = "proxy.log"

_MODULE = "opsplane_server.instances.providers.local.proxy"
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class ProxyProcess:
    """The proxy of `folder`. `account` is who it runs as when this process is root."""

    def __init__(self, folder: Path, account: Account) -> None:
        self._folder = folder
        self._account = account

    def find(self) -> psutil.Process | None:
        """The running proxy, None if there is none: the number in the file alone proves nothing."""
        try:
            process = psutil.Process(int((self._folder / PID_FILE).read_text()))
            arguments = process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if alive and _MODULE in arguments and str(self._folder) in arguments else None

    def write(self, wanted: Iterable[Route]) -> None:
        """Changes the routes; a proxy that runs follows within milliseconds."""
        create_folder(self._folder)
        owner = (self._account.uid, self._account.gid) if os.geteuid() != self._account.uid else None
        routes.write(self._folder / ROUTES_FILE, wanted, owner)
        proxy = self.find()
        if proxy is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                proxy.send_signal(signal.SIGHUP)

    def routes(self) -> list[Route]:
        """What it serves, as it was last written; nothing when that can not be read."""
        try:
            return list(routes.read(self._folder / ROUTES_FILE))
        except ValueError:
            return []

    async def start(self) -> psutil.Process:
        """Returns the proxy that runs, started now if there was none. Unavailable when it does not start."""
        create_folder(self._folder)
        child: subprocess.Popen[bytes] | None = None
        try:
            async with asyncio.timeout(_START_SECONDS):
                while True:
                    found = self.find()
                    if found is not None:
                        return found
                    # One that ended found another in its place, which may have died since.
                    if child is None or child.poll() is not None:
                        child = self._launch()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()
            raise Unavailable(f"the proxy in {self._folder} did not start; see its {LOG_FILE}") from None
        finally:
            if child is not None and child.returncode is None:
                processes.let_go(child)

    async def stop(self) -> None:
        """Ends it; all connections through it are cut."""
        proxy = self.find()
        if proxy is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(psutil.NoSuchProcess, TimeoutError):
                proxy.send_signal(number)
                async with asyncio.timeout(_STOP_SECONDS):
                    while self.find() is not None:
                        reap(proxy.pid)
                        await asyncio.sleep(0.01)
                return

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", _MODULE, str(self._folder)]
        if os.geteuid() != self._account.uid:
            # It changes its account by itself: that one need not be able to read the interpreter.
            command += [str(self._account.uid), str(self._account.gid)]
        packages = str(Path(opsplane_server.__path__[0]).resolve().parent)
        log_file = os.open(self._folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd="/",
                env={"PATH": os.defpath, "PYTHONPATH": packages},
                start_new_session=True,
            )
        finally:
            os.close(log_file)


def reap(pid: int) -> None:
    """Collects the status of a dead child of ours, so that it is gone; harmless for any other process."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
