"""Proofs of copies and data: files against their manifest, the log that a copy needs, the checksums of pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from opsplane_server.errors import DataLoss, FailedPrecondition
from opsplane_server.instances.providers.local import programs
from opsplane_server.instances.providers.local.bulk import Tally, in_thread, together
from opsplane_server.instances.providers.local.postgres import backup_manifest
from opsplane_server.instances.providers.local.postgres.backup_manifest import BackupManifest, LogRange, position
from opsplane_server.instances.providers.local.programs import Installation
from opsplane_server.storage.accounts import Account

_COMMIT = re.compile(r"desc: COMMIT(?:_PREPARED)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")

Tell = Callable[[int], Awaitable[None]]


async def check_copy(data: Path, installation: Installation, account: Account, tell: Tell) -> BackupManifest:
    """Compares a copy with its manifest, the log that it needs included, and gives the manifest. DataLoss."""
    manifest = await asyncio.to_thread(backup_manifest.read, data)
    tally = Tally(manifest.size)
    await together(
        in_thread(lambda: backup_manifest.check(data, manifest, tally), tally, tell),
        _check_log(data, manifest, installation, account),
    )
    return manifest


async def _check_log(data: Path, manifest: BackupManifest, installation: Installation, account: Account) -> None:
    for part in manifest.log:
        command: list[str | Path] = [*_waldump(data, installation, part), "--start", part.start, "--quiet"]
        outcome = await programs.run(account, command, check=False)
        if outcome.returncode != 0:
            raise DataLoss(f"the log in the copy is damaged: {outcome.last_line}", reason="COPY_DAMAGED")


async def last_commit(
    data: Path, manifest: BackupManifest, installation: Installation, account: Account
) -> datetime | None:
    """When the last transaction in the log of a copy was committed; None if there is none in it."""
    for part in reversed(manifest.log):
        size = segment_bytes(data)
        # The log may be large and the last commit is near its end: segment after segment from there.
        end, first = position(part.end), position(part.start)
        start = max(first, (end - 1) // size * size)
        while True:
            command: list[str | Path] = [
                *_waldump(data, installation, part),
                "--start",
                f"{start >> 32:X}/{start & 0xFFFFFFFF:X}",
            ]
            outcome = await programs.run(account, [*command, "--rmgr", "Transaction"], check=False)
            times = _COMMIT.findall(outcome.output)
            if times:
                return max(datetime.fromisoformat(time).replace(tzinfo=UTC) for time in times)
            if start == first:
                break
            start = max(first, start - size)
    return None


def _waldump(data: Path, installation: Installation, part: LogRange) -> list[str | Path]:
    log = data / "pg_wal"
    return [installation.program("pg_waldump"), "--path", log, "--timeline", str(part.timeline), "--end", part.end]


def segment_bytes(data: Path) -> int:
    """How large the segments of the log in a data folder are. Blocks."""
    sizes = [file.stat().st_size for file in (data / "pg_wal").iterdir() if re.fullmatch("[0-9A-F]{24}", file.name)]
    if not sizes:
        raise DataLoss("there is no log in the copy", reason="COPY_DAMAGED")
    return max(sizes)


async def check_pages(data: Path, installation: Installation, account: Account, tell: Tell) -> str:
    """Reads every page of a stopped server; what was found, in words. DataLoss; FailedPrecondition."""

    async def line(text: str) -> None:
        if match := re.search(r"\((\d+)%\)", text):
            await tell(int(match[1]))

    command: list[str | Path] = [installation.program("pg_checksums"), "--check", "--progress", "-D", data]
    outcome = await programs.run(account, command, on_line=line, check=False)
    if outcome.returncode == 0:
        match = re.search(r"Blocks scanned:\s+(\d+)", outcome.output)
        return f"all {int(match[1]):,} pages have their checksums" if match else "all pages have their checksums"
    if "checksums are not enabled" in outcome.output:
        raise FailedPrecondition("the data were made without page checksums", reason="NO_CHECKSUMS")
    damaged = [text for text in outcome.output.splitlines() if "checksum verification failed" in text]
    if damaged:
        place = damaged[0].partition("in file ")[2].replace(f"{data}/", "")
        raise DataLoss(f"{len(damaged)} or more pages are damaged, such as one of {place}", reason="DATA_DAMAGED")
    raise FailedPrecondition(f"the pages can not be checked: {outcome.last_line}", reason="CHECK_FAILED")
