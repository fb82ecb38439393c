"""The executor in one process, over a real database."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
from google.protobuf import wrappers_pb2
from google.rpc import code_pb2, error_details_pb2
from opsplane_server.errors import FailedPrecondition, LeaseLost, Unavailable
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation, OperationCancelled, OperationState

from tests.platform_harness import Platform
from tests.waiting import until

StringValue = wrappers_pb2.StringValue


async def test_a_handler_gets_the_request_and_gives_the_response(platform: Platform) -> None:
    async def greet(execution: Execution) -> StringValue:
        with pytest.raises(ValueError, match="BytesValue"):
            execution.request(wrappers_pb2.BytesValue)
        return StringValue(value=f"hello {execution.request(StringValue).value}")

    async with platform.executor({"test.steps": greet}):
        done = await platform.done(await platform.submit(request=StringValue(value="ann")))
    response = StringValue()
    assert done.response is not None
    assert done.response.Unpack(response)
    assert (done.state, response.value, done.attempt) == (OperationState.SUCCEEDED, "hello ann", 1)


async def test_an_operation_is_taken_up_only_when_its_transaction_is_committed(platform: Platform) -> None:
    async def handle(execution: Execution) -> None:
        await platform.effect(execution.operation.name, "done", "worker")

    async with platform.executor({"test.steps": handle}):
        with suppress(KeyError):
            async with platform.database.transaction():
                lost = await platform.submit()
                raise KeyError
        async with platform.database.transaction():
            kept = await platform.submit()
        await platform.done(kept)
        assert await platform.effects(kept.name) == ["done"]
        assert await platform.effects(lost.name) == []


async def test_a_domain_error_fails_the_operation_with_its_details(platform: Platform) -> None:
    async def fail(execution: Execution) -> None:
        raise FailedPrecondition("no room left", reason="DISK_FULL")

    async with platform.executor({"test.steps": fail}):
        done = await platform.done(await platform.submit())
    assert done.error is not None
    info = error_details_pb2.ErrorInfo()
    assert done.error.details[0].Unpack(info)
    assert done.state is OperationState.FAILED
    assert (done.error.code, done.error.message) == (code_pb2.FAILED_PRECONDITION, "no room left")
    assert info.reason == "DISK_FULL"


@pytest.mark.parametrize("error", [RuntimeError("password=secret"), asyncio.CancelledError("secret")])
async def test_an_unexpected_error_fails_the_operation_and_leaks_nothing(
    platform: Platform, error: BaseException
) -> None:
    async def fail(execution: Execution) -> None:
        await execution.checkpoint("one")
        raise error

    async with platform.executor({"test.steps": fail}):
        done = await platform.done(await platform.submit())
    assert done.error is not None
    assert (done.state, done.error.code) == (OperationState.FAILED, code_pb2.INTERNAL)
    assert "secret" not in str(done.error)


async def test_what_is_away_is_tried_again_from_the_last_checkpoint(platform: Platform) -> None:
    seen: list[tuple[str, object]] = []

    async def flaky(execution: Execution) -> None:
        seen.append((execution.step, execution.data))
        if len(seen) == 1:
            await execution.checkpoint("two", data={"n": 1})
            raise Unavailable("not now")

    async with platform.executor({"test.steps": flaky}):
        done = await platform.done(await platform.submit())
    assert seen == [("", {}), ("two", {"n": 1})]
    assert (done.state, done.attempt) == (OperationState.SUCCEEDED, 1)


async def test_cut_connections_do_not_fail_an_operation(platform: Platform) -> None:
    cut = asyncio.Event()

    async def work(execution: Execution) -> None:
        for step in ("a", "b", "c"):
            if execution.step >= step:
                continue
            async with execution.transaction():
                await platform.effect(execution.operation.name, step, "worker")
                if step == "b" and not cut.is_set():
                    cut.set()
                    await asyncio.create_task(
                        platform.run(
                            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                        )
                    )
                await execution.checkpoint(step)

    async with platform.executor({"test.steps": work}):
        done = await platform.done(await platform.submit())
    assert cut.is_set()
    assert done.state is OperationState.SUCCEEDED
    assert await platform.effects(done.name) == ["a", "b", "c"]


async def test_a_handler_that_honours_a_cancel_ends_as_cancelled(platform: Platform) -> None:
    started = asyncio.Event()

    async def wait(execution: Execution) -> None:
        assert not execution.cancel_requested
        started.set()
        await execution.cancelled()
        raise OperationCancelled

    async with platform.executor({"test.steps": wait}):
        operation = await platform.submit()
        await started.wait()
        await platform.operations.cancel(operation.name)
        done = await platform.done(operation)
    assert done.error is not None
    assert (done.state, done.error.code) == (OperationState.CANCELLED, code_pb2.CANCELLED)


async def test_a_cancel_before_the_start_is_left_to_the_handler(platform: Platform) -> None:
    async def handle(execution: Execution) -> None:
        assert execution.cancel_requested
        await execution.cancelled()
        raise OperationCancelled

    operation = await platform.submit()
    await platform.operations.cancel(operation.name)
    async with platform.executor({"test.steps": handle}):
        assert (await platform.done(operation)).state is OperationState.CANCELLED


async def test_a_handler_may_complete_in_spite_of_a_cancel(platform: Platform) -> None:
    async def handle(execution: Execution) -> None:
        await execution.cancelled()

    async with platform.executor({"test.steps": handle}):
        operation = await platform.submit()
        await platform.operations.cancel(operation.name)
        done = await platform.done(operation)
    assert (done.state, done.cancel_requested) == (OperationState.SUCCEEDED, True)


async def test_shutdown_gives_the_lease_back_and_another_goes_on(platform: Platform) -> None:
    at_two = asyncio.Event()

    async def first(execution: Execution) -> None:
        await execution.checkpoint("two", data={"by": "first"})
        at_two.set()
        try:
            await asyncio.Event().wait()
        finally:
            # What a handler makes of its cancellation at shutdown says nothing about its work.
            raise RuntimeError

    async def second(execution: Execution) -> StringValue:
        return StringValue(value=f"{execution.step} {execution.data}")

    async with platform.executor({"test.steps": first}, owner="first", lease_seconds=600):
        operation = await platform.submit()
        await at_two.wait()
    left = await platform.operations.get(operation.name)
    assert left.state is OperationState.RUNNING
    async with platform.executor({"test.steps": second}, owner="second"):
        done = await platform.done(operation)
    response = StringValue()
    assert done.response is not None
    assert done.response.Unpack(response)
    assert response.value == "two {'by': 'first'}"
    assert (done.attempt, done.crashes) == (2, 0)


async def test_the_lease_is_renewed_while_a_handler_works(platform: Platform) -> None:
    renewed = "SELECT lease_until > update_time + interval '3.5 s' FROM platform.operations WHERE name = $1"

    async def work(execution: Execution) -> None:
        async def later() -> bool:
            return bool(await platform.value(renewed, execution.operation.name))

        await until(later)

    async with (
        platform.executor({"test.steps": work}, lease_seconds=3),
        platform.executor({"test.steps": work}, owner="other", lease_seconds=3),
    ):
        done = await platform.done(await platform.submit())
    assert (done.state, done.attempt) == (OperationState.SUCCEEDED, 1)


async def test_a_lost_lease_cancels_the_handler_and_refuses_its_writes(platform: Platform) -> None:
    ends: list[str] = []
    refused: list[bool] = []
    over = asyncio.Event()

    async def stubborn(execution: Execution) -> None:
        name = execution.operation.name
        # Somebody else takes over, as after a pause of this process.
        await platform.run(
            "UPDATE platform.operations SET lease_owner = 'other', generation = 9, lease_until = 'infinity'"
        )
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
        for write in (execution.checkpoint("late"), enter(execution, name)):
            try:
                await write
            except LeaseLost:
                refused.append(True)
        over.set()

    async def enter(execution: Execution, name: str) -> None:
        async with execution.transaction():
            await platform.effect(name, "late", "loser")

    async with platform.executor({"test.steps": stubborn}, lease_seconds=1.5):
        operation = await platform.submit()
        await over.wait()
    current = await platform.operations.get(operation.name)
    assert (ends, refused) == (["cancelled"], [True, True])
    assert (current.state, current.step) == (OperationState.RUNNING, "")
    assert await platform.effects(operation.name) == []
    assert await platform.value("SELECT lease_owner FROM platform.operations") == "other"


async def test_an_operation_that_kills_its_processes_ends_as_failed(platform: Platform) -> None:
    told: list[Operation] = []

    async def never(execution: Execution) -> None:
        raise AssertionError("it must not run again")

    async def tell(operation: Operation) -> None:
        told.append(operation)

    operation = await platform.submit()
    for owner in "abc":
        await platform.store.acquire(["test.steps"], owner=owner, node="here", lease=timedelta(0), limit=1, busy=[])
    async with platform.executor({"test.steps": never}, max_crashes=3, failure_hooks={"test.steps": tell}):
        done = await platform.done(operation)
    assert done.error is not None
    assert (done.state, done.crashes, told) == (OperationState.FAILED, 3, [done])
    assert "3 server processes ended" in done.error.message


async def test_the_failure_hook_is_part_of_the_end(platform: Platform) -> None:
    async def fail(execution: Execution) -> None:
        raise FailedPrecondition("no")

    async def write_and_break(operation: Operation) -> None:
        await platform.effect(operation.name, "hook", "worker")
        if operation.target == "things/one":
            raise RuntimeError("broken hook")

    async with platform.executor({"test.steps": fail}, failure_hooks={"test.steps": write_and_break}):
        broken = await platform.done(await platform.submit())
        sound = await platform.done(
            await platform.operations.submit(kind="test.steps", verb="DoIt", target="things/two")
        )
    assert (broken.state, await platform.effects(broken.name)) == (OperationState.FAILED, [])
    assert (sound.state, await platform.effects(sound.name)) == (OperationState.FAILED, ["hook"])


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_than_the_limit_runs_at_once_and_the_oldest_first(platform: Platform, limit: int) -> None:
    order: list[str] = []
    running: set[str] = set()

    async def work(execution: Execution) -> None:
        order.append(execution.operation.name)
        running.add(execution.operation.name)
        assert len(running) <= limit
        await execution.checkpoint("one")
        running.remove(execution.operation.name)

    submitted = [await platform.submit() for _ in range(9)]
    async with platform.executor({"test.steps": work}, concurrency=limit):
        ended = [await platform.done(operation) for operation in submitted]
    assert {operation.state for operation in ended} == {OperationState.SUCCEEDED}
    # Those that are taken up together start in any order.
    names = [operation.name for operation in submitted]
    for at in range(0, len(names), limit):
        assert set(order[: at + limit]) <= set(names[: at + 2 * limit - 1])
    assert sorted(order) == sorted(names)


async def test_operations_of_another_node_are_left_to_it(platform: Platform) -> None:
    async def where(execution: Execution) -> StringValue:
        return StringValue(value=execution.operation.node or "")

    elsewhere, here = await platform.submit(node="there"), await platform.submit(node="here")
    async with platform.executor({"test.steps": where}):
        await platform.done(here)
        await platform.done(await platform.submit())
        assert (await platform.operations.get(elsewhere.name)).state is OperationState.PENDING


async def test_a_watcher_sees_states_of_another_process_up_to_the_end(platform: Platform) -> None:
    seen: list[tuple[str, int]] = []
    go = asyncio.Event()

    async def work(execution: Execution) -> None:
        for percent in (30, 60, 90):
            await execution.checkpoint(f"p{percent}", stage=f"at {percent}", progress_percent=percent)
            await go.wait()
            go.clear()

    operation = await platform.submit()
    async with platform.executor({"test.steps": work}):
        async for state in platform.operations.watch(operation.name):
            seen.append((state.state, state.progress_percent))
            if state.stage == f"at {state.progress_percent}" and not state.state.done:
                go.set()
    assert [pair for pair in seen if pair[1]] == [
        ("RUNNING", 30),
        ("RUNNING", 60),
        ("RUNNING", 90),
        ("SUCCEEDED", 100),
    ]
