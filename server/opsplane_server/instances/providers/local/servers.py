"""Starting a server of any engine: adopting one that runs, launching one that does not, waiting until it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import psutil
import structlog

from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.engine import LocalEngine, LocalNode

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.2
_RETRY_SECONDS = 0.2


async def start(engine: LocalEngine, node: LocalNode, timeout: float) -> psutil.Process:
    """Returns when the server takes connections, be it a new one or one that runs already.

    Harmless to repeat. FailedPrecondition (SERVER_START) if it ends; Unavailable (SERVER_STARTING) if it does not
    answer after `timeout` seconds: it is left alone then, for it may be recovering a lot of data.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _start(engine, node)
    except TimeoutError:
        raise Unavailable(
            f"{node.id} does not answer after {timeout:.0f} s: {engine.failure(node)}", reason="SERVER_STARTING"
        ) from None


async def _start(engine: LocalEngine, node: LocalNode) -> psutil.Process:
    while True:
        running = engine.find(node)
        if running is None:
            await engine.clear(node)
            await engine.configure(node)
            process = await processes.to_the_end(engine.launch, node)
        else:
            process = running
        if await _until_it_answers(engine, node, process):
            log.info("server adopted" if running else "server started", node=node.id, pid=process.pid, port=node.port)
            return process
        # It ended. One that was adopted was on its way down, and one that was launched may have met one that came up
        # at the same time, or what is left of a killed one. Anything else will not get better.
        if running is None and engine.find(node) is None:
            failure = engine.failure(node)
            if not engine.failure_passes(failure):
                raise FailedPrecondition(f"{node.id} did not start: {failure}", reason="SERVER_START")
            await asyncio.sleep(_RETRY_SECONDS)


async def _until_it_answers(engine: LocalEngine, node: LocalNode, process: psutil.Process) -> bool:
    """False when it ended before."""
    wait = _POLL_SECONDS
    while processes.alive(process):
        if await engine.answers(node):
            return True
        await processes.ended(process, wait)
        wait = min(wait * 1.5, _LONGEST_POLL_SECONDS)
    return False


async def stop_all(engine: LocalEngine, nodes: Iterable[LocalNode], *, at_once: bool = False) -> None:
    """Stops servers side by side; the first error comes when all have been tried."""
    outcomes = await asyncio.gather(*(engine.stop(node, at_once=at_once) for node in nodes), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
