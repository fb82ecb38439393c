"""The program pg_upgrade: it starts and stops both servers by itself, out of everybody's reach."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import psutil

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import ADMIN_USER
from opsplane_server.instances.providers.local import processes, programs
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.manifest import write_durably
from opsplane_server.instances.providers.local.postgres import single_user
from opsplane_server.instances.providers.local.postgres.installations import Installations
from opsplane_server.instances.providers.local.programs import Outcome
from opsplane_server.storage import postmaster
from opsplane_server.storage.accounts import private_folder

_PORT = "50432"  # a name for a socket; nobody listens on the network
_PROGRAMS = ("initdb", "pg_upgrade", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb", "cp")
_STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
_FINDINGS_LIMIT = 1500
# Dumping and restoring a schema locks all of its tables at once.
_OPTIONS = "-c max_locks_per_transaction=1024"


class PgUpgrade:
    """Makes the data in `new.folder.scratch`, fresh from initdb, those of `old`; both are the same node.

    source: where the old data are while none of the node's servers runs.
    """

    def __init__(self, installations: Installations, old: LocalNode, new: LocalNode, source: Path) -> None:
        self.source = source
        self._installations = installations
        self._old = old
        self._new = new
        self._work = old.folder.path / "upgrade"

    async def check(self, *, live: bool) -> None:
        """Looks for what stands against it, while the old server goes on. FailedPrecondition with the findings."""
        outcome = await self._start("--check", self._old.folder.data, live=live)
        if outcome.returncode != 0:
            raise FailedPrecondition(
                f"the data can not be upgraded: {await asyncio.to_thread(self._findings, outcome)}",
                reason="UPGRADE_CHECK_FAILED",
            )

    async def run(self) -> None:
        """Upgrades; `source` stays as it is. FailedPrecondition."""
        # The new files share their blocks with the old where the file system can that.
        copying = "--clone" if await self._clones() else "--copy"
        outcome = await self._start(copying, self.source, live=False)
        if outcome.returncode != 0:
            raise FailedPrecondition(
                f"the upgrade failed, and the old version goes on: {await asyncio.to_thread(self._findings, outcome)}",
                reason="UPGRADE_FAILED",
            )

    async def end_leftovers(self) -> None:
        """Ends what a killed process of ours left at work, and leaves the old data shut down in good order."""

        def found() -> list[psutil.Process]:
            left = processes.working_on(self._old.folder.path, self._old.account)
            return [process for process in left if _name(process) in _PROGRAMS]

        await processes.kill(await asyncio.to_thread(found))
        for data in (self.source, self._new.folder.scratch):
            server = await asyncio.to_thread(postmaster.find, data)
            if server is not None:
                await processes.end(server.process, _STOPS)
        installation = await asyncio.to_thread(self._installations.reachable, self._old.version, self._old.account)
        await single_user.recover(installation, self._old.account, self.source)

    async def clean(self) -> None:
        """Removes its logs and scripts."""
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)

    async def _start(self, mode: str, data: Path, *, live: bool) -> Outcome:
        old, new = self._old, self._new
        await asyncio.to_thread(self._open, data)
        before = await asyncio.to_thread(self._installations.reachable, old.version, old.account)
        after = await asyncio.to_thread(self._installations.reachable, new.version, old.account)
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)
        await asyncio.to_thread(private_folder, self._work, old.account)
        command: list[str | Path] = [after.program("pg_upgrade"), mode, "-U", ADMIN_USER, "-s", old.folder.run]
        command += ["-b", before.folder / "bin", "-B", after.folder / "bin", "-d", data, "-D"]
        command += [
            new.folder.scratch,
            "-p",
            str(old.port) if live else _PORT,
            "-P",
            _PORT,
            "-o",
            _OPTIONS,
            "-O",
            _OPTIONS,
        ]
        return await programs.run(old.account, command, cwd=self._work, check=False)

    async def _clones(self) -> bool:
        target = self._work / "clone"
        await asyncio.to_thread(private_folder, self._work, self._old.account)
        command: list[str | Path] = ["cp", "--reflink=always", self.source / "PG_VERSION", target]
        return (await programs.run(self._old.account, command, check=False)).returncode == 0

    def _open(self, old_data: Path) -> None:
        """Gives both the rules by which the system account is the admin. Ours are beside the data, and no server of
        ours reads those in them.
        """
        owner = (self._old.account.uid, self._old.account.gid)
        for name in ("pg_hba.conf", "pg_ident.conf"):
            content = (self._old.folder.conf / name).read_bytes()
            for data in (old_data, self._new.folder.scratch):
                write_durably(data / name, content, owner=owner)

    def _findings(self, outcome: Outcome) -> str:
        """What it says on its output, and the lists that it leaves beside."""
        lines = [line.strip() for line in outcome.output.splitlines()]
        found = [line for line in lines if line and not line.endswith(" ok") and not line.startswith("--")]
        for report in sorted(self._new.folder.scratch.glob("pg_upgrade_output.d/*/*.txt")):
            found += report.read_text(errors="replace").splitlines()
        text = " ".join(" ".join(found).split())
        return text.replace(f"{self._new.folder.scratch}/", "")[:_FINDINGS_LIMIT]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


async def collect_statistics(installations: Installations, node: LocalNode) -> None:
    """On the running server, roughly at first, so that plans are soon sensible. FailedPrecondition."""
    installation = await asyncio.to_thread(installations.reachable, node.version, node.account)
    command: list[str | Path] = [installation.program("vacuumdb"), "-h", node.folder.run, "-p", str(node.port)]
    command += ["-U", ADMIN_USER, "-w", "--all", "--analyze-in-stages"]
    if int(installation.major) >= 18:
        command.append("--missing-stats-only")  # pg_upgrade took the others along
    await programs.run(node.account, command)
