"""Starts a load generator and lives until it is killed: `python starter.py FOLDER API RECEIVER DURATION`."""

import asyncio
import sys
from pathlib import Path

from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runners.port import Exporter

from tests.integration.loadtesting.runner.scripts import constant, spec


async def main(folder: str, api: str, receiver: str, duration: str) -> None:
    await LocalRunner(Path(folder)).start(spec(constant(duration), Exporter(receiver, "t"), api=api))
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
