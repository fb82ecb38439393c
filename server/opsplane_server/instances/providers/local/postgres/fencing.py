"""Ending a server for certain, whatever is left of it.

When a main process is killed its sessions live on: one that is busy can still commit, and tell its client so, long
after another node is the primary. They have left the server's session and process group and belong to no parent any
more; only their titles tell whose they were, by the `cluster_name` that every server here is started with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import psutil
import structlog

from opsplane_server.errors import Unavailable
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.engine import LocalNode

log = structlog.get_logger(__name__)

_LONGEST_ID = 48  # of 63 characters that a cluster_name may have
_ATTACHED_SECONDS = 10.0
_POLL_SECONDS = 0.005


def tag(node: LocalNode) -> str:
    """The `cluster_name` of this server, unlike that of any other on the machine, in other data directories too."""
    digest = hashlib.sha256(os.fsencode(node.folder.path)).hexdigest()[:12]
    return f"{node.id[:_LONGEST_ID]}-{digest}"


async def fence(node: LocalNode) -> int:
    """Kills all processes of this server and returns when none is left; how many there were.

    Unavailable (PROCESS_STUCK) if the kernel does not end one: then nobody may take the server for dead.
    """
    killed = 0
    while targets := await asyncio.to_thread(_processes, node):
        # Again until none is found: a session may have been forked while they were looked for.
        await processes.kill(targets)
        killed += len(targets)
    await _until_detached(node)
    if killed:
        log.info("server fenced", node=node.id, processes=killed)
    return killed


def remains(node: LocalNode) -> bool:
    """Whether any process of this server lives."""
    return bool(_processes(node))


def _processes(node: LocalNode) -> list[psutil.Process]:
    title = f"postgres: {tag(node)}: ".encode()
    data = os.fsencode(node.folder.data)
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_of(Path("/proc", name, "cmdline"), title, data):
            try:
                process = psutil.Process(int(name))
            except psutil.NoSuchProcess:
                continue
            # Asked again, now that the number is bound to the start time of a process.
            if _is_of(Path("/proc", name, "cmdline"), title, data) and processes.alive(process):
                found.append(process)
    return found


def _is_of(file: Path, title: bytes, data: bytes) -> bool:
    """Whether it is the command line of a session or helper, or of the main process, which has that of a session that
    was forked a moment ago too.
    """
    try:
        line = file.read_bytes()
    except OSError:  # it has ended
        return False
    if line.startswith(title):
        return True
    program, *words = line.split(b"\0")
    return os.path.basename(program) == b"postgres" and b"-D" in words and data in words


async def _until_detached(node: LocalNode) -> None:
    """The kernel counts who is attached to the server's shared memory: the proof that titles can not give."""
    try:
        lines = (node.folder.data / "postmaster.pid").read_text().splitlines()
        segment = lines[6].split()[1]
    except (FileNotFoundError, IndexError):
        return  # stopped in good order, or died before it had any
    try:
        async with asyncio.timeout(_ATTACHED_SECONDS):
            while True:
                if not _attached(segment):
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise Unavailable(f"a process of {node.id} does not end", reason="PROCESS_STUCK") from None


def _attached(segment: str) -> bool:
    try:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    except FileNotFoundError:
        return False
    return any(words[1] == segment and words[6] != "0" for words in map(str.split, lines[1:]))
