"""Runs the command line as people do: as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import opsplane

IMPORT_PATH = str(Path(next(iter(opsplane.__path__))).parent)


class Outcome(NamedTuple):
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


async def start(
    *arguments: str,
    address: str,
    environment: Mapping[str, str] | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    """Starts `opsplane` with pipes for its output, in nobody's terminal."""
    variables = {**os.environ, "OPSPLANE_ADDRESS": address, **(environment or {})}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (IMPORT_PATH, variables.get("PYTHONPATH"))))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "opsplane.cli",
        *arguments,
        env=variables,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def opsplane_command(
    *arguments: str, address: str = "127.0.0.1:1", environment: Mapping[str, str] | None = None
) -> Outcome:
    """Runs `opsplane` to its end."""
    process = await start(*arguments, address=address, environment=environment)
    try:
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())
