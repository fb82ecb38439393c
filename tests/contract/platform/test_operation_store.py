"""What every OperationStore keeps to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opsplane_server.errors import FailedPrecondition, LeaseLost, NotFound
from opsplane_server.platform.model import Checkpoint, Lease, NewOperation, Operation, OperationState, Outcome
from opsplane_server.platform.ports import OperationStore
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest

from tests.platform_harness import Platform

LONG = timedelta(minutes=1)
OVER = timedelta(0)


@pytest.fixture
def store(platform: Platform) -> OperationStore:
    return platform.store


def new(name: str = "operations/one", **fields: Any) -> NewOperation:
    return NewOperation(**{"name": name, "kind": "k", "verb": "V", "target": "t", "principal": "ann"} | fields)


def packed(text: str) -> any_pb2.Any:
    message = any_pb2.Any()
    message.Pack(wrappers_pb2.StringValue(value=text))
    return message


async def take(
    store: OperationStore, owner: str = "a", *, lease: timedelta = LONG, node: str = "here", limit: int = 10
) -> list[Operation]:
    return await store.acquire(["k"], owner=owner, node=node, lease=lease, limit=limit, busy=[])


def lease_of(operation: Operation, owner: str = "a") -> Lease:
    return Lease(operation.name, owner, operation.generation)


async def finish(store: OperationStore, name: str) -> Operation:
    await store.insert(new(name))
    (taken,) = await take(store)
    return await store.finish(lease_of(taken), Outcome(OperationState.SUCCEEDED, response=packed("done")))


async def test_an_operation_is_kept_as_it_was_submitted(store: OperationStore) -> None:
    inserted = await store.insert(new(request=packed("hello"), request_id="r", node="n", hidden=True))
    assert inserted == await store.get("operations/one")
    assert (inserted.state, inserted.attempt, inserted.data) == (OperationState.PENDING, 0, {})
    assert (inserted.request, inserted.request_id, inserted.node, inserted.hidden) == (
        packed("hello"),
        "r",
        "n",
        True,
    )
    assert inserted.create_time.tzinfo is not None


async def test_an_unknown_name_is_not_found(store: OperationStore) -> None:
    for call in (store.get, store.request_cancel, store.delete):
        with pytest.raises(NotFound):
            await call("operations/none")


async def test_the_oldest_are_acquired_first_and_once(store: OperationStore) -> None:
    for number in range(3):
        await store.insert(new(f"operations/o{number}"))
    first = await take(store, limit=2)
    assert [operation.name for operation in first] == ["operations/o0", "operations/o1"]
    assert {(o.state, o.attempt, o.generation, o.crashes) for o in first} == {(OperationState.RUNNING, 1, 1, 0)}
    assert [operation.name for operation in await take(store)] == ["operations/o2"]
    assert await take(store) == []


async def test_only_known_kinds_of_this_node_that_are_not_busy_are_acquired(store: OperationStore) -> None:
    await store.insert(new("operations/elsewhere", node="there"))
    await store.insert(new("operations/unknown", kind="other"))
    await store.insert(new("operations/busy"))
    await store.insert(new("operations/ours", node="here"))
    await store.insert(new("operations/any"))
    found = await store.acquire(["k"], owner="a", node="here", lease=LONG, limit=10, busy=["operations/busy"])
    assert [operation.name for operation in found] == ["operations/ours", "operations/any"]


async def test_two_processes_never_acquire_the_same(store: OperationStore) -> None:
    for number in range(40):
        await store.insert(new(f"operations/o{number}"))
    shares = await asyncio.gather(*(take(store, owner, limit=7) for owner in "abcdefgh"))
    names = [operation.name for share in shares for operation in share]
    assert len(names) == len(set(names))
    rest = await take(store, limit=40)
    assert len(names) + len(rest) == 40


async def test_an_expired_lease_is_taken_over_as_a_crash(store: OperationStore) -> None:
    await store.insert(new())
    await take(store, lease=OVER)
    (taken,) = await take(store, "b")
    assert (taken.generation, taken.attempt, taken.crashes) == (2, 2, 1)


async def test_a_released_lease_is_taken_over_at_once_and_is_no_crash(store: OperationStore) -> None:
    await store.insert(new())
    await store.insert(new("operations/two"))
    await take(store)
    await store.release("a", "operations/one")
    (taken,) = await take(store, "b")
    assert (taken.name, taken.generation, taken.attempt, taken.crashes) == ("operations/one", 2, 2, 0)
    await store.release("a")
    assert [operation.name for operation in await take(store, "c")] == ["operations/two"]
    await store.release("nobody")


async def test_a_renewed_lease_is_not_taken_over(store: OperationStore) -> None:
    await store.insert(new())
    (taken,) = await take(store, lease=OVER)
    renewed = await store.renew(lease_of(taken), LONG)
    assert renewed.revision == taken.revision, "a renewal is nothing to see for watchers"
    assert await take(store, "b") == []


Write = Callable[[OperationStore, Lease], Awaitable[object]]
WRITES: dict[str, Write] = {
    "renew": lambda store, lease: store.renew(lease, LONG),
    "lock": lambda store, lease: store.lock(lease, LONG),
    "checkpoint": lambda store, lease: store.checkpoint(lease, Checkpoint("late")),
    "finish": lambda store, lease: store.finish(lease, Outcome(OperationState.SUCCEEDED, response=packed("late"))),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_writes_of_a_lost_lease_are_refused_and_change_nothing(store: OperationStore, write: Write) -> None:
    await store.insert(new())
    (old,) = await take(store, lease=OVER)
    (current,) = await take(store, "b")
    # An old generation, another owner, and the same owner under an older generation.
    for lost in (lease_of(old), lease_of(current, "a"), lease_of(old, "b")):
        with pytest.raises(LeaseLost):
            await write(store, lost)
    assert await store.get(current.name) == current
    await store.finish(lease_of(current, "b"), Outcome(OperationState.CANCELLED))
    with pytest.raises(LeaseLost):
        await write(store, lease_of(current, "b"))


async def test_a_locked_operation_is_not_taken_over(platform: Platform) -> None:
    store = platform.store
    await store.insert(new())
    (taken,) = await take(store, lease=OVER)
    async with platform.database.transaction():
        await store.lock(lease_of(taken), LONG)
        assert await asyncio.create_task(take(store, "b")) == []
    assert len(await take(store, "b")) == 1


async def test_a_checkpoint_keeps_what_it_does_not_say(store: OperationStore) -> None:
    await store.insert(new())
    lease = lease_of((await take(store))[0])
    first = await store.checkpoint(lease, Checkpoint("one", {"a": [1, "ü"]}, "starting", 40))
    assert (first.step, first.data, first.stage, first.progress_percent) == ("one", {"a": [1, "ü"]}, "starting", 40)
    second = await store.checkpoint(lease, Checkpoint("two"))
    assert (second.step, second.data, second.stage, second.progress_percent) == ("two", first.data, "starting", 40)
    assert second.revision > first.revision
    assert second.update_time >= first.update_time


async def test_progress_never_falls_nor_passes_100(store: OperationStore) -> None:
    await store.insert(new())
    lease = lease_of((await take(store))[0])
    seen = [
        (await store.checkpoint(lease, Checkpoint("s", progress_percent=percent))).progress_percent
        for percent in (10, 5, -3, 60, 170, 20)
    ]
    assert seen == [10, 10, 10, 60, 100, 100]


async def test_an_outcome_is_kept(store: OperationStore) -> None:
    done = await finish(store, "operations/good")
    assert (done.state, done.response, done.error, done.progress_percent) == (
        "SUCCEEDED",
        packed("done"),
        None,
        100,
    )
    assert done.end_time is not None

    await store.insert(new("operations/bad"))
    lease = lease_of((await take(store))[0])
    error = status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone")
    error.details.add().Pack(error_details_pb2.ErrorInfo(reason="GONE"))
    failed = await store.finish(lease, Outcome(OperationState.FAILED, error=error))
    assert (failed.state, failed.response, failed.error, failed.progress_percent) == ("FAILED", None, error, 0)
    assert await store.get(failed.name) == failed
    assert await take(store) == []


async def test_an_error_message_may_hold_anything(store: OperationStore) -> None:
    await store.insert(new())
    error = status_pb2.Status(code=code_pb2.INTERNAL, message="printed \0 and stopped")
    failed = await store.finish(lease_of((await take(store))[0]), Outcome(OperationState.FAILED, error=error))
    assert failed.error is not None
    assert failed.error.message == "printed  and stopped"


async def test_a_wish_to_cancel_reaches_the_holder_once(store: OperationStore) -> None:
    await store.insert(new())
    asked = await store.request_cancel("operations/one")
    assert asked.cancel_requested
    assert await store.request_cancel("operations/one") == asked
    assert await store.cancel_requests("a") == set()
    (taken,) = await take(store)
    assert taken.cancel_requested
    assert await store.cancel_requests("a") == {"operations/one"}
    assert await store.cancel_requests("b") == set()
    await store.finish(lease_of(taken), Outcome(OperationState.CANCELLED))
    assert await store.cancel_requests("a") == set()


async def test_a_finished_operation_is_not_cancelled(store: OperationStore) -> None:
    done = await finish(store, "operations/one")
    assert await store.request_cancel(done.name) == done


async def test_only_finished_operations_are_deleted(store: OperationStore) -> None:
    done = await finish(store, "operations/done")
    await store.delete(done.name)
    with pytest.raises(NotFound):
        await store.get(done.name)
    await store.insert(new())
    with pytest.raises(FailedPrecondition) as refused:
        await store.delete("operations/one")
    assert refused.value.reason == "OPERATION_NOT_DONE"


async def test_pages_are_newest_first_without_hidden_ones(store: OperationStore) -> None:
    kept = [await store.insert(new(f"operations/o{number}", hidden=number == 1)) for number in range(5)]
    first = await store.list_operations(PageRequest(2, None), [])
    assert [operation.name for operation in first] == ["operations/o4", "operations/o3", "operations/o2"]
    rest = await store.list_operations(PageRequest(2, (kept[3].id,)), [])
    assert [operation.name for operation in rest] == ["operations/o2", "operations/o0"]


async def test_lists_are_filtered(store: OperationStore) -> None:
    done = await finish(store, "operations/done")
    await store.insert(new("operations/open", verb="Other", target="things/x"))

    async def names(*conditions: Condition) -> list[str]:
        return [operation.name for operation in await store.list_operations(PageRequest(10, None), conditions)]

    assert await names(Condition("done", "=", True)) == ["operations/done"]
    assert await names(Condition("state", "!=", "SUCCEEDED"), Condition("verb", "=", "Other")) == ["operations/open"]
    assert await names(Condition("target", ":", "THINGS/")) == ["operations/open"]
    assert await names(Condition("create_time", ">", done.create_time)) == ["operations/open"]


async def test_old_finished_operations_are_purged_in_batches(platform: Platform) -> None:
    store = platform.store
    for number in range(5):
        await finish(store, f"operations/o{number}")
    await platform.run("UPDATE platform.operations SET end_time = end_time - interval '2 days' WHERE id % 2 = 1")
    await store.insert(new("operations/open"))
    await platform.run("UPDATE platform.operations SET create_time = create_time - interval '9 days'")
    old = await platform.value("SELECT count(*) FROM platform.operations WHERE end_time < now() - interval '1 day'")
    day = timedelta(days=1)
    assert [await store.purge(day, old - 1), await store.purge(day, 10), await store.purge(day, 10)] == [
        old - 1,
        1,
        0,
    ]
    assert await platform.value("SELECT count(*) FROM platform.operations") == 6 - old
    await store.get("operations/open")
