"""An executor in a process of its own, to be killed or stopped at any point of an operation of three steps.

    python -m tests.integration.platform.worker DSN OWNER LEASE_SECONDS

The request of an operation names the points at which its attempts stop, one each: the first attempt at the first
point, and so on; an attempt without a point runs through. At its point a handler prints `at NAME POINT` and waits
for a line on standard input, even when it is cancelled: the worst handler there can be. `refused NAME ERROR` tells
how each attempt to write ended after that.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from google.protobuf import wrappers_pb2
from opsplane_server.errors import LeaseLost
from opsplane_server.platform.execution import Execution, Handler
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.model import Lease, Operation, Outcome
from opsplane_server.platform.stores.postgres import PostgresOperationStore

from tests.platform_harness import Platform, connect

STEPS = ("a", "b", "c")
POINTS = (
    "start",
    *(f"{step}:{place}" for step in STEPS for place in ("open", "written", "checkpointed", "committed")),
    "finish",
)

Reach = Callable[[Operation, str], Awaitable[None]]


def three_steps(platform: Platform, owner: str, reach: Reach) -> Handler:
    """A handler whose every step writes one row."""

    async def handle(execution: Execution) -> wrappers_pb2.StringValue:
        operation = execution.operation
        await reach(operation, "start")
        for number, step in enumerate(STEPS, start=1):
            if execution.step >= step:
                continue
            async with execution.transaction():
                await reach(operation, f"{step}:open")
                await platform.effect(operation.name, step, owner)
                await reach(operation, f"{step}:written")
                await execution.checkpoint(step, data={"by": owner}, stage=f"did {step}", progress_percent=30 * number)
                await reach(operation, f"{step}:checkpointed")
            await reach(operation, f"{step}:committed")
        return wrappers_pb2.StringValue(value="done")

    return handle


def wanted_point(operation: Operation) -> str:
    """The point at which this attempt stops, empty for none."""
    request = wrappers_pb2.StringValue()
    assert operation.request is not None
    assert operation.request.Unpack(request)
    points = request.value.split()
    return points[operation.attempt - 1] if operation.attempt <= len(points) else ""


def tell(*words: str) -> None:
    """A line for the test."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


class Gate:
    """Where handlers wait for the test."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    def open_by_line(self) -> None:
        sys.stdin.readline()
        self.open()

    async def reach(self, operation: Operation, point: str) -> None:
        if point != wanted_point(operation):
            return
        tell("at", operation.name, point)
        while not self._open.is_set():
            with suppress(asyncio.CancelledError):
                await self._open.wait()


class GatedStore(PostgresOperationStore):
    """Stops where the handler is through and its result is not written yet."""

    def __init__(self, platform: Platform, gate: Gate) -> None:
        super().__init__(platform.database)
        self._gate = gate

    async def finish(self, lease: Lease, outcome: Outcome) -> Operation:
        await self._gate.reach(await self.get(lease.name), "finish")
        try:
            return await super().finish(lease, outcome)
        except LeaseLost:
            tell("refused", lease.name, "LeaseLost")
            raise


def telling(handler: Handler) -> Handler:
    """Prints what is refused."""

    async def handle(execution: Execution) -> wrappers_pb2.StringValue:
        try:
            return await handler(execution)  # type: ignore[return-value]
        except (Exception, asyncio.CancelledError) as error:
            tell("refused", execution.operation.name, type(error).__name__)
            raise

    return handle


async def main(dsn: str, owner: str, lease_seconds: float) -> None:
    gate, ended = Gate(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_reader(sys.stdin, gate.open_by_line)
    # Handlers wait inside transactions, so each needs a connection, and another for the renewal of its lease.
    async with connect(dsn, max_size=40) as platform:
        handler = telling(three_steps(platform, owner, gate.reach))
        async with OperationExecutor(
            GatedStore(platform, gate),
            platform.database,
            {"test.steps": handler},
            owner=owner,
            node="here",
            signals=platform.signals,
            lease_seconds=lease_seconds,
            poll_seconds=0.1,
        ):
            tell("ready")
            await ended.wait()
            gate.open()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
