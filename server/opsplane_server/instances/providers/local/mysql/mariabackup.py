"""MariaDB's own copying program, and the program of both engines that reads the checksums of pages."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, ResourceExhausted
from opsplane_server.instances.engines.mysql.connecting import SOCKET
from opsplane_server.instances.model import Access
from opsplane_server.instances.providers.local import programs
from opsplane_server.instances.providers.local.bulk import Part, files_below, size_of
from opsplane_server.instances.providers.local.copies import CopyFolder
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.mysql.handed_over import options_file
from opsplane_server.instances.providers.local.mysql.installations import Installation
from opsplane_server.storage.accounts import Account

log = structlog.get_logger(__name__)

_TELL_SECONDS: Final = 0.5
# From this line on no transaction commits, and while this file is copied none has again.
_COMMITS_BLOCKED: Final = "Acquired locks for BACKUP STAGE BLOCK_COMMIT"
_COPIED_WHILE_BLOCKED: Final = Path("mysql") / "table_stats.MAI"
_NO_ROOM: Final = ("No space left on device", "Errcode: 28", "error 28")
_WRONG_PAGE: Final = "Fail"
_MEMORY: Final = "--use-memory=64M"
_PAGE_FILES: Final = ("ibdata", "undo")


async def copy(installation: Installation, node: LocalNode, access: Access, folder: CopyFolder, part: Part) -> datetime:
    """Copies the data of a server at work to `folder.data` and makes them ready; the moment that they are of."""
    program = installation.program("mariadb-backup", "mariabackup")
    making = _Making(folder, await asyncio.to_thread(size_of, node.folder.data), part)
    content = f"[mariabackup]\nuser={access.user}\npassword={access.password}\nsocket={node.folder.run / SOCKET}\n"
    async with options_file(node.folder.conf, folder.path.name, node.account, content) as options:
        command = [
            program, f"--defaults-file={options}", "--backup", f"--target-dir={folder.data}",
            f"--datadir={node.folder.data}", "--parallel=2",
        ]  # fmt: skip
        outcome = await programs.run(node.account, command, on_line=making.line, check=False)
    _raise_failure(outcome)
    cut_time = await asyncio.to_thread(making.cut_time)
    outcome = await programs.run(
        node.account, [program, "--no-defaults", "--prepare", _MEMORY, f"--target-dir={folder.data}"], check=False
    )
    _raise_failure(outcome)
    return cut_time


class _Making:
    """Reads what the program says."""

    def __init__(self, folder: CopyFolder, total: int, part: Part) -> None:
        self._data = folder.data
        self._total = max(total, 1)
        self._part = part
        self._told = time.monotonic()
        self._blocked: datetime | None = None
        self._copied_since = False

    async def line(self, text: str) -> None:
        if _COMMITS_BLOCKED in text:
            self._blocked = datetime.now(UTC)
        elif self._blocked is not None and str(_COPIED_WHILE_BLOCKED) in text:
            self._copied_since = True
        if time.monotonic() - self._told > _TELL_SECONDS:
            done = await asyncio.to_thread(size_of, self._data)
            await self._part.tell(min(99, done * 100 // self._total))
            self._told = time.monotonic()

    def cut_time(self) -> datetime:
        """A moment at which commits were blocked. The lines tell, but may be read late; the file tells better."""
        if self._blocked is None:
            raise DataLoss("the copying program did not say when it blocked commits", reason="COPY_FAILED")
        if not self._copied_since:
            return self._blocked
        written = datetime.fromtimestamp((self._data / _COPIED_WHILE_BLOCKED).stat().st_mtime, UTC)
        return min(self._blocked, written)


async def check_pages(installation: Installation, account: Account, data: Path, part: Part) -> str:
    """Reads every page of InnoDB's files and compares its checksum. DataLoss."""
    program = installation.program("innochecksum")
    files = await asyncio.to_thread(lambda: [(path, status.st_size) for path, status in files_below(data)])
    paged = [(path, size) for path, size in files if _has_pages(path)]
    total, done = max(1, sum(size for _, size in paged)), 0
    for path, size in paged:
        for pages in _ranges(path):
            outcome = await programs.run(account, [program, *pages, path], check=False)
            if outcome.returncode == 0:
                continue
            log.warning("innochecksum failed", file=str(path), output=outcome.output[-2000:])
            name, words = path.relative_to(data), outcome.last_line
            if _WRONG_PAGE in outcome.output:
                raise DataLoss(f"pages of {name} do not have their checksum: {words}", reason="DATA_DAMAGED")
            raise FailedPrecondition(f"{name} can not be checked: {words}", reason="PROGRAM_FAILED")
        done += size
        await part.tell(done * 100 // total)
    return f"every page of {len(paged):,} files of {total:,} bytes has its checksum"


def _ranges(path: Path) -> list[list[str]]:
    """Options that leave out what is no page of its file: copies of others that are being written (doublewrite)."""
    return [["-e", "63"], ["-s", "192"]] if path.name == "ibdata1" else [[]]


def _has_pages(path: Path) -> bool:
    if path.suffix == ".ibd":
        return True
    return path.name.startswith(_PAGE_FILES) and not path.suffix  # not the cache of pages to load, ib_buffer_pool


def _raise_failure(outcome: programs.Outcome) -> None:
    if outcome.returncode == 0:
        return
    log.warning("mariadb-backup failed", output=outcome.output[-2000:])
    if any(words in outcome.output for words in _NO_ROOM):
        raise ResourceExhausted(f"no room for the copy: {outcome.last_line}", reason="NO_SPACE")
    raise FailedPrecondition(f"the copy could not be made: {outcome.last_line}", reason="COPY_FAILED")
