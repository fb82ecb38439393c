"""Processes that die, stop or end in the middle of operations, at every point that there is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest
from google.protobuf import wrappers_pb2
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.model import Operation, OperationState

from tests.integration.platform.worker import POINTS, STEPS, Reach, three_steps
from tests.integration.platform.workers import started_worker
from tests.platform_harness import Platform
from tests.waiting import until


async def submit(platform: Platform, *points: str) -> Operation:
    return await platform.submit(request=wrappers_pb2.StringValue(value=" ".join(points)))


async def pass_by(operation: Operation, point: str) -> None:
    """Stops nowhere."""


def second(platform: Platform, reach: Reach = pass_by) -> OperationExecutor:
    """Another server process, played by this one."""
    handler = three_steps(platform, "second", reach)
    return platform.executor({"test.steps": handler}, owner="second", lease_seconds=600)


async def contents(platform: Platform) -> list[str]:
    """Every row of operations and effects, as text."""
    async with platform.database.connection() as connection:
        rows = await connection.fetch(
            """SELECT o::text AS row FROM platform.operations o
               UNION ALL SELECT e::text FROM public.effects e ORDER BY 1"""
        )
    return [row["row"] for row in rows]


async def require_each_effect_once(platform: Platform, done: Sequence[Operation], attempts: int) -> None:
    for operation in done:
        assert operation.state is OperationState.SUCCEEDED, operation
        assert (operation.attempt, operation.step, operation.progress_percent) == (attempts, "c", 100)
        assert await platform.effects(operation.name) == list(STEPS)


async def test_kill_9_at_any_point_leaves_each_effect_once(platform: Platform) -> None:
    operations = [await submit(platform, point) for point in POINTS]
    async with started_worker(platform.dsn, "first", lease_seconds=3) as worker:
        reached = await worker.lines("at", len(POINTS))
        assert {(name, point) for name, point in reached} == {
            (operation.name, point) for operation, point in zip(operations, POINTS, strict=True)
        }
        await worker.kill()
    by_first = await platform.value("SELECT count(*) FROM public.effects")
    # Committed before the kill: a by 9 operations, b by 5, c by 1 that was stopped after it and 1 at its end.
    assert by_first == 10 + 6 + 2
    async with second(platform):
        done = [await platform.done(operation) for operation in operations]
    await require_each_effect_once(platform, done, attempts=2)
    assert {operation.crashes for operation in done} == {1}


async def test_kill_9_again_and_again_leaves_each_effect_once(platform: Platform) -> None:
    kills = ("start", "b:written", "b:committed", "finish")
    operation = await submit(platform, *kills)
    for number, point in enumerate(kills):
        async with started_worker(platform.dsn, f"worker-{number}", lease_seconds=2) as worker:
            assert await worker.lines("at", 1) == [[operation.name, point]]
            await worker.kill()
    async with second(platform):
        done = await platform.done(operation)
    await require_each_effect_once(platform, [done], attempts=5)
    assert done.crashes == 4


@pytest.mark.parametrize("wakes_at", ["start", "end"])
async def test_a_stopped_holder_that_wakes_up_after_a_takeover_changes_nothing(
    platform: Platform, wakes_at: str
) -> None:
    """Be it while the next holder works, or when that has finished."""
    operations = [await submit(platform, point) for point in POINTS]
    started: set[str] = set()
    go = asyncio.Event()

    async def wait_at_start(operation: Operation, point: str) -> None:
        if point == "start":
            started.add(operation.name)
            await go.wait()

    async with started_worker(platform.dsn, "first", lease_seconds=2) as worker:
        await worker.lines("at", len(POINTS))
        worker.send(signal.SIGSTOP)
        async with second(platform, wait_at_start):
            await until(lambda: len(started) == len(POINTS))
            if wakes_at == "end":
                go.set()
                for operation in operations:
                    await platform.done(operation)
            before = await contents(platform)
            worker.open_gate()
            worker.send(signal.SIGCONT)
            refused = await worker.lines("refused", len(POINTS))
            assert {name for name, _ in refused} == {operation.name for operation in operations}
            # The database has ended the transactions of those that were stopped inside one, and some are cancelled
            # in the middle of a write, since the renewal of their lease was refused first.
            assert {error for _, error in refused} <= {"LeaseLost", "Unavailable", "CancelledError"}
            assert await worker.terminate() == 0
            assert await contents(platform) == before
            go.set()
            done = [await platform.done(operation) for operation in operations]
            await require_each_effect_once(platform, done, attempts=2)


async def test_a_server_that_is_asked_to_end_hands_its_operations_over_at_once(platform: Platform) -> None:
    operation = await submit(platform, "b:committed")
    async with started_worker(platform.dsn, "first", lease_seconds=600) as worker:
        await worker.lines("at", 1)
        assert await worker.terminate() == 0
    async with second(platform):
        done = await platform.done(operation)
    assert done.state is OperationState.SUCCEEDED
    assert await platform.effects(operation.name) == list(STEPS)
    assert done.crashes == 0
