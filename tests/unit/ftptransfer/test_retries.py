"""When a task is tried again, how many are taken at a time, and how outcomes are handed back."""

import asyncio

import pytest
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.lanes import Exhausted, Lanes
from opsplane_server.ftptransfer.model import End, Released
from opsplane_server.ftptransfer.retries import delay
from opsplane_server.ftptransfer.settling import Settler

from tests.ftptransfer_fakes import MemoryQueue, ftp, task_between
from tests.waiting import until

NEVER = {
    ErrorReason.ENDS,
    ErrorReason.NO_CONNECTION,
    ErrorReason.PATH,
    ErrorReason.MALFORMED_TASK,
    ErrorReason.NOT_FOUND,
    ErrorReason.LOGIN,
    ErrorReason.TLS,
    ErrorReason.ACCESS_DENIED,
    ErrorReason.EXISTS,
    ErrorReason.CHILDREN_FAILED,
}


@pytest.mark.parametrize("reason", ErrorReason)
def test_which_are_tried_again(reason: ErrorReason) -> None:
    failure = TransferFailure(reason, "x").failure
    assert (delay(failure, 1) is None) == (reason in NEVER)


def test_delays_grow_up_to_a_limit_and_are_spread() -> None:
    failure = TransferFailure(ErrorReason.CONNECTION_LOST, "x").failure
    longest = []
    for attempt in (1, 2, 3, 4, 10, 10_000):
        delays = [delay(failure, attempt) or 0.0 for _ in range(500)]
        assert min(delays) < max(delays) / 4
        longest.append(max(delays))
    limits = [1, 4, 16, 64, 300, 300]
    assert all(limit / 2 < most <= limit for most, limit in zip(longest, limits, strict=True))


def test_what_will_not_pass_soon_waits_longer() -> None:
    def longest(reason: ErrorReason) -> float:
        return max(delay(TransferFailure(reason, "x").failure, 1) or 0.0 for _ in range(500))

    assert longest(ErrorReason.NO_SPACE) > 4 * longest(ErrorReason.CONNECTION_LOST)


def test_a_lane_takes_no_more_than_it_can_use() -> None:
    lanes = Lanes(lambda connection: 2)
    assert lanes.room(8) == 8
    for _ in range(4):
        lanes.add("a", 0.0)
    assert list(lanes.full(0.0)) == ["a"]
    assert lanes.room(8) == 8
    assert not lanes.end("a", 0.0)
    assert lanes.end("a", 0.0)
    assert not lanes.end("a", 0.0)  # nobody was passed over since
    assert list(lanes.full(0.0)) == []


def test_a_lane_without_others_behind_it_wakes_nobody() -> None:
    lanes = Lanes(lambda connection: 2)
    lanes.add("a", 0.0)
    assert list(lanes.full(0.0)) == []
    assert not lanes.end("a", 1.0)


def test_a_fast_lane_takes_more() -> None:
    lanes = Lanes(lambda connection: 2)
    lanes.add("a", 0.0)
    for number in range(1000):
        lanes.add("a", number / 1000)
        lanes.end("a", number / 1000)
    assert lanes.room(0) > 40
    lanes.end("a", 1.0)
    assert lanes.room(0) > 40  # it may be out of tasks for a moment only
    assert list(lanes.full(60.0)) == []
    assert lanes.room(0) == 0


def test_the_queue_is_not_asked_again_for_what_it_did_not_have() -> None:
    assert not Exhausted().covers([], 0, 0.0)
    exhausted = Exhausted(["a"], 3, 10.0)
    assert exhausted.covers(["a", "b"], 3, 9.0)
    assert not exhausted.covers(["b"], 3, 9.0)
    assert not exhausted.covers(["a"], 4, 9.0)
    assert not exhausted.covers(["a"], 3, 10.0)


async def test_dropped_outcomes_leave_the_settler_at_rest() -> None:
    queue = MemoryQueue()
    settler = Settler(queue, "w-1", lambda outcomes: None)
    running = asyncio.create_task(settler.run())
    task = task_between(End(ftp(), "/a"), End(ftp("other"), "/a"))
    settler.add(task, Released())
    settler.drop()
    await asyncio.sleep(0.1)  # longer than it gathers
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    settler.add(task, Released())
    await until(lambda: "settle" in queue.statements)
    assert turns
    for each in (running, counting):
        each.cancel()
    await asyncio.gather(running, counting, return_exceptions=True)
