"""The queue of tasks: who gets which task when, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opsplane_server.errors import LeaseLost
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.model import (
    Admission,
    Cancelled,
    Child,
    Expanded,
    Failed,
    LeftOver,
    Location,
    NewTransfer,
    Origin,
    Outcome,
    Priority,
    Progress,
    Released,
    Retry,
    Selection,
    Succeeded,
    Transfer,
    TransferState,
)
from opsplane_server.rpc.ids import new_id

from tests.ftptransfer_harness import FtpTransfer

LOST = Failure(ErrorCode.CONNECTION_ERROR, ErrorReason.CONNECTION_LOST, "426 gone", 426, True)
MISSING = Failure(ErrorCode.FILE_NOT_FOUND, ErrorReason.NOT_FOUND, "550 no such file", 550)
DONE = Succeeded(100, sent=100, duration=0.5)


def transfer(
    name: str = "a",
    *,
    remote: str = "remote-server-a",
    priority: Priority = Priority.NORMAL,
    selection: Selection = Selection.FILE,
    task_id: str = "",
    message: str = "",
    max_attempts: int = 0,
    failure: Failure | None = None,
) -> NewTransfer:
    """A download of the file `name`."""
    return NewTransfer(
        id=new_id(),
        source=Location(remote, f"/{name}"),
        destination=Location("local", f"/{name}"),
        origin=Origin("kafka", "ftp-tasks", 1, 42) if message else Origin("rpc", "somebody"),
        priority=priority,
        selection=selection,
        task_id=task_id,
        task_key=task_id,
        message=message,
        max_attempts=max_attempts,
        failure=failure,
    )


async def submit(ftp: FtpTransfer, *transfers: NewTransfer) -> list[str]:
    """Ids of the transfers, which are in the queue."""
    return [transfer_id for _, transfer_id in await ftp.transfers.admit(transfers)]


async def states(ftp: FtpTransfer, ids: Sequence[str]) -> list[TransferState]:
    return [(await ftp.store.get(one)).state for one in ids]


async def only(ftp: FtpTransfer, transfer_id: str) -> Transfer:
    return await ftp.store.get(transfer_id)


async def totals(ftp: FtpTransfer) -> dict[str, int]:
    figures = await ftp.figure_store.read()
    return {
        "succeeded": figures.succeeded,
        "cancelled": figures.cancelled,
        "failed": sum(figures.failed.values()),
        "bytes": figures.bytes_transferred,
        "active": figures.active,
    }


async def test_tasks_come_by_priority_and_then_in_the_order_of_submission(ftp: FtpTransfer) -> None:
    wanted = [transfer("n1"), transfer("l1", priority=Priority.LOW), transfer("h1", priority=Priority.HIGH)]
    more = [transfer("n2"), transfer("h2", priority=Priority.HIGH)]
    await submit(ftp, *wanted)
    await submit(ftp, *more)
    tasks = await ftp.take()
    assert [task.source.path for task in tasks] == ["/h1", "/h2", "/n1", "/n2", "/l1"]


async def test_a_task_has_what_an_attempt_needs(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer("a"))
    [task] = await ftp.take()
    assert task.id == one
    assert task.source.connection.config_section == "remote-server-a"
    assert not task.source.connection.is_local
    assert task.destination.connection.is_local
    assert (task.attempt, task.max_attempts, task.is_last_attempt) == (1, 5, False)
    running = await only(ftp, one)
    assert (running.state, running.attempt_count) == (TransferState.RUNNING, 1)
    assert running.start_time is not None


async def test_a_task_is_given_to_one_worker(ftp: FtpTransfer) -> None:
    await submit(ftp, *(transfer(f"{number}") for number in range(20)))
    first = await ftp.take(10, worker="w-1")
    second = await ftp.take(100, worker="w-2")
    assert len(first) == len(second) == 10
    assert not {task.id for task in first} & {task.id for task in second}
    assert await ftp.take(100, worker="w-3") == []


async def test_connections_are_left_out_that_are_not_wanted(ftp: FtpTransfer) -> None:
    await submit(ftp, *(transfer(f"{number}") for number in range(10)), transfer("b", remote="Other Server"))
    [task] = await ftp.take(5, without={"remote-server-a"})
    assert task.source.path == "/b"
    assert len(await ftp.take(5, without={"other-server"})) == 5


async def test_success(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    await ftp.settle((task, Succeeded(100, sent=70, resumed=30, modify_time=time, duration=1.25)))
    ended = await only(ftp, one)
    assert ended.state is TransferState.SUCCEEDED
    assert (ended.size_bytes, ended.bytes_transferred, ended.resumed_bytes) == (100, 100, 30)
    assert (ended.duration, ended.source_modify_time, ended.attempt_count) == (1.25, time, 1)
    assert ended.end_time is not None
    assert ended.failure is None
    assert await totals(ftp) == {"succeeded": 1, "cancelled": 0, "failed": 0, "bytes": 70, "active": 0}


async def test_failure(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.settle((task, Failed(MISSING, sent=5, duration=0.5)))
    ended = await only(ftp, one)
    assert ended.state is TransferState.FAILED
    assert ended.failure is not None
    assert ended.failure == replace(MISSING, time=ended.failure.time)
    assert ended.failure.time is not None
    assert ended.bytes_transferred == 0
    assert (await ftp.figure_store.read()).failed[ErrorCode.FILE_NOT_FOUND] == 1
    assert await totals(ftp) == {"succeeded": 0, "cancelled": 0, "failed": 1, "bytes": 5, "active": 0}


async def test_a_retry_comes_when_it_is_due(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer(max_attempts=2))
    [task] = await ftp.take()
    await ftp.settle((task, Retry(LOST, delay=3600, sent=9)))
    waiting = await only(ftp, one)
    assert waiting.state is TransferState.WAITING
    assert waiting.failure is not None
    assert waiting.failure.reason is ErrorReason.CONNECTION_LOST
    assert waiting.next_attempt_time is not None
    assert await ftp.take() == []
    await ftp.platform.run("UPDATE ftptransfer.queue SET due = now()")
    [again] = await ftp.take()
    assert (again.attempt, again.is_last_attempt) == (2, True)
    assert again.generation > task.generation
    await ftp.settle((again, DONE))
    assert (await only(ftp, one)).failure is None
    assert (await totals(ftp))["bytes"] == 109


async def test_a_task_that_is_given_back_has_not_been_attempted(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.settle((task, Released()))
    assert (await only(ftp, one)).state is TransferState.PENDING
    [again] = await ftp.take()
    assert again.attempt == 1


async def test_what_a_worker_has_lost_it_can_not_change(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.expire("w-1")
    await ftp.sweep()
    [again] = await ftp.take(worker="w-2")
    assert await ftp.queue.renew("w-1", [Progress(task, 10)]) == {one}
    for outcome in (DONE, Failed(LOST), Retry(LOST, 0), Cancelled(), Released()):
        await ftp.settle((task, outcome))
    found = await only(ftp, one)
    assert (found.state, found.attempt_count, found.bytes_transferred) == (TransferState.RUNNING, 2, 0)
    with pytest.raises(LeaseLost):
        await ftp.queue.expand(task, [Child("/a", "/a")])
    await ftp.settle((again, DONE), worker="w-2")
    assert await totals(ftp) == {"succeeded": 1, "cancelled": 0, "failed": 0, "bytes": 100, "active": 0}


async def test_a_worker_that_took_its_task_again_can_not_settle_it_by_the_old_one(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.expire("w-1")
    await ftp.sweep()
    await ftp.queue.renew("w-1", [])
    [again] = await ftp.take()
    await ftp.settle((task, Failed(LOST)))
    assert await states(ftp, [one]) == [TransferState.RUNNING]
    await ftp.settle((again, DONE))
    assert await states(ftp, [one]) == [TransferState.SUCCEEDED]


async def test_a_worker_without_a_lease_gets_nothing(ftp: FtpTransfer) -> None:
    await submit(ftp, transfer("a"), transfer("b"))
    await ftp.take(1)
    await ftp.expire("w-1")
    assert await ftp.take(1) == []
    await ftp.queue.renew("w-1", [])
    assert len(await ftp.take(1)) == 1


async def test_a_worker_that_leaves_gives_all_back(ftp: FtpTransfer) -> None:
    ids = await submit(ftp, transfer("a"), transfer("b"))
    await ftp.take()
    await ftp.queue.leave("w-1")
    assert await states(ftp, ids) == [TransferState.PENDING] * 2
    assert len(await ftp.take(worker="w-2")) == 2


@pytest.mark.parametrize("cleaned", [True, False])
async def test_a_task_whose_workers_die_again_and_again_fails(ftp: FtpTransfer, cleaned: bool) -> None:
    [one] = await submit(ftp, transfer())
    await ftp.take()
    await ftp.platform.run("UPDATE ftptransfer.queue SET crashes = 19")
    await ftp.expire("w-1")
    await ftp.sweep()
    [task] = await ftp.take(worker="w-2")
    assert task.failure is not None
    assert task.failure.code is ErrorCode.UNKNOWN_ERROR
    if cleaned:
        await ftp.settle((task, Failed(task.failure)), worker="w-2")
    else:
        await ftp.expire("w-2")
        await ftp.sweep()
    ended = await only(ftp, one)
    assert ended.state is TransferState.FAILED
    assert ended.failure is not None
    assert ended.failure.code is ErrorCode.UNKNOWN_ERROR


async def test_progress_is_kept(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    assert await ftp.queue.renew("w-1", [Progress(task, 40, 100, 40, 8.5)]) == set()
    found = await only(ftp, one)
    assert (found.bytes_transferred, found.size_bytes, found.bytes_per_second) == (40, 100, 8.5)


async def test_a_task_that_nobody_has_is_cancelled_at_once(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    assert (await ftp.transfers.cancel(one)).state is TransferState.CANCELLED
    assert (await ftp.transfers.cancel(one)).state is TransferState.CANCELLED
    assert await ftp.take() == []
    assert (await totals(ftp))["cancelled"] == 1


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Cancelled(), TransferState.CANCELLED),
        (Failed(LOST), TransferState.CANCELLED),
        (DONE, TransferState.SUCCEEDED),
    ],
)
async def test_a_task_that_is_cancelled_while_it_runs(ftp: FtpTransfer, outcome: Outcome, state: TransferState) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    assert (await ftp.transfers.cancel(one)).state is TransferState.RUNNING
    assert await ftp.queue.renew("w-1", [Progress(task)]) == {one}
    await ftp.settle((task, outcome))
    assert await states(ftp, [one]) == [state]
    assert (await totals(ftp))["active"] == 0


async def given_back(ftp: FtpTransfer, outcome: Outcome, **settings: Any) -> str:
    """A transfer that was attempted once, and that nobody has now."""
    [one] = await submit(ftp, transfer(**settings))
    [task] = await ftp.take()
    await ftp.settle((task, outcome))
    return one


@pytest.mark.parametrize("outcome", [Retry(LOST, 3600), Released()])
@pytest.mark.parametrize("running", [True, False])
async def test_a_task_that_was_attempted_is_cleaned_up_after_when_it_is_cancelled(
    ftp: FtpTransfer, outcome: Outcome, running: bool
) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    if running:
        await ftp.transfers.cancel(one)
        await ftp.settle((task, outcome))
    else:
        await ftp.settle((task, outcome))
        await ftp.transfers.cancel(one)
    await ftp.sweep()
    before = await only(ftp, one)
    assert not before.state.ended
    [left] = await ftp.take(worker="w-2")
    assert (left.id, left.cancelled, left.failure) == (one, True, None)
    assert (await only(ftp, one)).attempt_count == before.attempt_count
    await ftp.settle((left, Released()), worker="w-2")
    [left] = await ftp.take()
    await ftp.settle((left, Cancelled()))
    ended = await only(ftp, one)
    assert (ended.state, ended.attempt_count) == (TransferState.CANCELLED, before.attempt_count)
    assert ended.failure == before.failure
    assert await ftp.take() == []
    assert (await totals(ftp))["cancelled"] == 1


async def test_a_task_that_nobody_cleans_up_after_is_cancelled_all_the_same(ftp: FtpTransfer) -> None:
    one = await given_back(ftp, Retry(LOST, 3600))
    await ftp.transfers.cancel(one)
    await ftp.platform.run("UPDATE ftptransfer.queue SET due = due - interval '1 minute'")
    await ftp.sweep()
    assert await states(ftp, [one]) == [TransferState.CANCELLED]
    assert await ftp.take() == []


@pytest.mark.parametrize("again", [True, False])
async def test_a_task_that_left_something_fails_when_it_is_cleaned_up_after(ftp: FtpTransfer, again: bool) -> None:
    one = await given_back(ftp, LeftOver(LOST, sent=5))
    await ftp.sweep()
    found = await only(ftp, one)
    assert (found.state.ended, found.attempt_count) == (False, 1)
    await ftp.transfers.cancel(one)
    [left] = await ftp.take(worker="w-2")
    assert left.is_over
    assert left.failure is not None
    assert left.failure.message == LOST.message
    if again:
        await ftp.settle((left, LeftOver(left.failure)), worker="w-2")
        [left] = await ftp.take()
        assert left.failure is not None
        await ftp.settle((left, Failed(left.failure)))
    else:
        await ftp.settle((left, LeftOver(left.failure)), worker="w-2")
        await ftp.platform.run("UPDATE ftptransfer.queue SET due = due - interval '1 minute'")
        await ftp.sweep()
    found = await only(ftp, one)
    assert (found.state, found.attempt_count) == (TransferState.FAILED, 1)
    assert found.failure is not None
    assert found.failure.message == LOST.message
    assert await ftp.take() == []
    assert await totals(ftp) == {"succeeded": 0, "cancelled": 0, "failed": 1, "bytes": 5, "active": 0}


@pytest.mark.parametrize("running", [True, False])
async def test_a_cancelled_task_that_left_something_is_cancelled_when_it_is_cleaned_up_after(
    ftp: FtpTransfer, running: bool
) -> None:
    [one] = await submit(ftp, transfer())
    [task] = await ftp.take()
    if running:
        await ftp.transfers.cancel(one)
    await ftp.settle((task, LeftOver(LOST if running else None)))
    [left] = await ftp.take()
    assert (left.cancelled, left.failure) == (True, None)
    await ftp.settle((left, LeftOver()))
    await ftp.platform.run("UPDATE ftptransfer.queue SET due = due - interval '1 minute'")
    await ftp.sweep()
    assert await states(ftp, [one]) == [TransferState.CANCELLED]


async def test_what_needs_no_session_is_cleaned_up_whatever_connections_are_not_wanted(ftp: FtpTransfer) -> None:
    down = await given_back(ftp, Retry(LOST, 3600))
    ends = Location("local", "/b"), Location("remote-server-a", "/b")
    [up] = await submit(ftp, replace(transfer(), source=ends[0], destination=ends[1]))
    [task] = await ftp.take()
    await ftp.settle((task, Retry(LOST, 3600)))
    for one in (down, up):
        await ftp.transfers.cancel(one)
    assert [task.id for task in await ftp.take(without={"remote-server-a"})] == [down]
    assert [task.id for task in await ftp.take()] == [up]


async def test_what_is_known_of_the_source_comes_with_the_task(ftp: FtpTransfer) -> None:
    first, second = (datetime(2026, 1, 2, 3, 4, 5, micro, tzinfo=UTC) for micro in (123456, 7))
    await submit(ftp, transfer())
    [task] = await ftp.take()
    assert (task.size, task.modify_time) == (None, None)
    await ftp.queue.renew("w-1", [Progress(task, 40, 100, 40, 8.5, first)])
    await ftp.expire("w-1")
    await ftp.sweep()
    [task] = await ftp.take(worker="w-2")
    assert (task.size, task.modify_time) == (100, first)
    await ftp.settle((task, Retry(LOST, 0, size=200, modify_time=second)), worker="w-2")
    [task] = await ftp.take(worker="w-2")
    assert (task.size, task.modify_time) == (200, second)
    await ftp.settle((task, Released(size=200, modify_time=first)), worker="w-2")
    [task] = await ftp.take(worker="w-2")
    assert (task.size, task.modify_time) == (200, first)
    await ftp.queue.renew("w-2", [Progress(task, 0, None, 0, 0.0, None)])
    await ftp.queue.leave("w-2")
    await ftp.queue.renew("w-2", [])
    [task] = await ftp.take(worker="w-2")
    assert task.modify_time is None


async def test_the_same_task_is_taken_once(ftp: FtpTransfer) -> None:
    first = transfer("a", task_id="t-1")
    again = replace(first, id=new_id())
    other = replace(again, id=new_id(), source=Location("remote-server-a", "/b"))
    admissions = await ftp.transfers.admit([first, again])
    assert [kind for kind, _ in admissions] == [Admission.NEW, Admission.KNOWN]
    assert {one for _, one in admissions} == {first.id}
    assert await ftp.transfers.admit([other, again]) == [(Admission.CONFLICT, first.id), (Admission.KNOWN, first.id)]
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    assert await ftp.transfers.admit([again]) == [(Admission.KNOWN, first.id)]
    assert await ftp.take() == []


async def test_a_task_of_kafka_that_is_wrong_fails_at_once(ftp: FtpTransfer) -> None:
    wrong = [
        transfer("a", remote="nobody", message='{"task_id": "1"}'),
        transfer("b", remote="local", message='{"task_id": "2"}'),
        transfer("../c", message='{"task_id": "3"}'),
    ]
    ids = await submit(ftp, *wrong)
    reasons = []
    for one in ids:
        found = await only(ftp, one)
        assert found.state is TransferState.FAILED
        assert found.failure is not None
        assert found.failure.code is ErrorCode.INVALID_CONFIG
        reasons.append(found.failure.reason)
    assert reasons == [ErrorReason.NO_CONNECTION, ErrorReason.ENDS, ErrorReason.PATH]
    async with ftp.database.connection() as connection:
        rows = await connection.fetch(
            "SELECT status, message ->> 'task_id' AS task, error_code FROM ftptransfer.outbox ORDER BY xid, id"
        )
    assert [tuple(row) for row in rows] == [("failed", str(number), "INVALID_CONFIG") for number in (1, 2, 3)]
    assert (await totals(ftp))["failed"] == 3


async def test_a_section_of_the_file_may_name_a_connection(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer("a", remote="Other Server"))
    assert (await only(ftp, one)).source.connection == "other-server"


async def test_results_for_kafka_come_with_the_end(ftp: FtpTransfer) -> None:
    ids = await submit(
        ftp, *(transfer(str(number), message=f'{{"task_id": "{number}", "x": [1]}}') for number in range(3))
    )
    tasks = await ftp.take()
    await ftp.settle((tasks[0], Succeeded(100, duration=1.5)), (tasks[1], Failed(MISSING)))
    await ftp.settle((tasks[1], DONE))
    await ftp.transfers.cancel(ids[2])
    await ftp.settle((tasks[2], Cancelled()))
    async with ftp.database.connection() as connection:
        rows = await connection.fetch(
            """SELECT status, message ->> 'task_id' AS task, bytes_transferred, extract(epoch FROM duration)::float8,
                      error_code, error_message FROM ftptransfer.outbox ORDER BY message ->> 'task_id'"""
        )
    assert [tuple(row) for row in rows] == [
        ("success", "0", 100, 1.5, None, None),
        ("failed", "1", 0, 0.0, "FILE_NOT_FOUND", "550 no such file"),
        ("cancelled", "2", 0, 0.0, None, None),
    ]


async def test_what_others_submit_leaves_no_row_for_kafka(ftp: FtpTransfer) -> None:
    await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    assert await ftp.value("SELECT count(*) FROM ftptransfer.outbox") == 0


async def tree(ftp: FtpTransfer, *names: str) -> str:
    """A tree of files of 100 bytes, all in the queue."""
    [parent] = await submit(ftp, transfer("top", selection=Selection.TREE, priority=Priority.HIGH))
    [task] = await ftp.take()
    assert task.selection is Selection.TREE
    children = [Child(f"/top/{name}", f"/top/{name}", 100) for name in names]
    await ftp.queue.expand(task, children[:2])
    await ftp.queue.expand(task, children)
    await ftp.settle((task, Expanded()))
    return parent


async def test_a_tree_ends_with_its_last_file(ftp: FtpTransfer) -> None:
    parent = await tree(ftp, "a", "b", "c")
    found = await only(ftp, parent)
    assert found.state is TransferState.RUNNING
    assert found.children is not None
    assert (found.children.pending, found.size_bytes) == (3, 300)
    tasks = await ftp.take()
    assert [task.source.path for task in tasks] == ["/top/a", "/top/b", "/top/c"]
    child = await only(ftp, tasks[0].id)
    assert (child.parent, child.priority, child.origin.kind) == (parent, Priority.HIGH, "tree")
    await ftp.queue.renew("w-1", [Progress(task, 40, 100, 40, 2.0) for task in tasks])
    found = await only(ftp, parent)
    assert found.children is not None
    assert (found.children.running, found.bytes_transferred, found.bytes_per_second) == (3, 120, 6.0)
    await ftp.settle((tasks[0], DONE), (tasks[1], Succeeded(150, skipped=True)))
    await ftp.settle((tasks[2], DONE))
    ended = await only(ftp, parent)
    assert ended.state is TransferState.SUCCEEDED
    assert ended.children is not None
    assert (ended.children.succeeded, ended.children.skipped, ended.children.pending) == (3, 1, 0)
    assert (ended.size_bytes, ended.bytes_transferred) == (350, 350)


async def test_an_empty_tree_ends_at_once(ftp: FtpTransfer) -> None:
    parent = await tree(ftp)
    assert await states(ftp, [parent]) == [TransferState.SUCCEEDED]


async def test_files_may_end_before_the_tree_is_gone_through(ftp: FtpTransfer) -> None:
    [parent] = await submit(ftp, transfer("top", selection=Selection.GLOB))
    [task] = await ftp.take()
    await ftp.queue.expand(task, [Child("/top/a", "/top/a", 100)])
    [child] = await ftp.take(worker="w-2")
    await ftp.settle((child, DONE), worker="w-2")
    assert await states(ftp, [parent]) == [TransferState.RUNNING]
    await ftp.settle((task, Expanded()))
    assert await states(ftp, [parent]) == [TransferState.SUCCEEDED]


async def test_a_tree_and_its_last_file_may_be_settled_together(ftp: FtpTransfer) -> None:
    [parent] = await submit(ftp, transfer("top", selection=Selection.TREE))
    [task] = await ftp.take()
    await ftp.queue.expand(task, [Child("/top/a", "/top/a", 100)])
    [child] = await ftp.take()
    await ftp.settle((task, Expanded()), (child, DONE))
    assert await states(ftp, [parent]) == [TransferState.SUCCEEDED]


async def test_a_tree_fails_with_its_files(ftp: FtpTransfer) -> None:
    parent = await tree(ftp, "a", "b")
    first, second = await ftp.take()
    await ftp.settle((first, DONE), (second, Failed(MISSING)))
    ended = await only(ftp, parent)
    assert ended.state is TransferState.FAILED
    assert ended.failure is not None
    assert ended.failure.reason is ErrorReason.CHILDREN_FAILED

    await ftp.transfers.retry(parent)
    assert await states(ftp, [parent, first.id, second.id]) == [
        TransferState.RUNNING,
        TransferState.SUCCEEDED,
        TransferState.PENDING,
    ]
    [again] = await ftp.take()
    assert again.id == second.id
    await ftp.settle((again, DONE))
    ended = await only(ftp, parent)
    assert ended.state is TransferState.SUCCEEDED
    assert ended.children is not None
    assert (ended.children.succeeded, ended.children.failed, ended.bytes_transferred) == (2, 0, 200)


async def test_a_file_that_is_begun_anew_opens_its_tree_again(ftp: FtpTransfer) -> None:
    parent = await tree(ftp, "a", "b")
    first, second = await ftp.take()
    await ftp.settle((first, DONE), (second, Failed(MISSING)))
    await ftp.transfers.retry(second.id)
    assert await states(ftp, [parent]) == [TransferState.RUNNING]
    [again] = await ftp.take()
    await ftp.settle((again, DONE))
    assert await states(ftp, [parent]) == [TransferState.SUCCEEDED]


async def test_a_tree_is_cancelled_with_its_files(ftp: FtpTransfer) -> None:
    parent = await tree(ftp, "a", "b", "c")
    done, running = await ftp.take(2)
    await ftp.settle((done, DONE))
    await ftp.transfers.cancel(parent)
    await ftp.sweep()
    assert await ftp.queue.renew("w-1", [Progress(running)]) == {running.id}
    await ftp.settle((running, Cancelled()))
    await ftp.sweep()
    found = await only(ftp, parent)
    assert found.state is TransferState.CANCELLED
    assert found.children is not None
    assert (found.children.succeeded, found.children.cancelled) == (1, 2)
    assert (await totals(ftp))["active"] == 0


@pytest.mark.parametrize(
    ("outcome", "state"), [(Cancelled(), TransferState.CANCELLED), (Failed(LOST), TransferState.FAILED)]
)
async def test_a_tree_that_was_not_gone_through_waits_for_the_files_that_there_are(
    ftp: FtpTransfer, outcome: Outcome, state: TransferState
) -> None:
    [parent] = await submit(ftp, transfer("top", selection=Selection.TREE))
    [task] = await ftp.take()
    await ftp.queue.expand(task, [Child("/top/a", "/top/a", 100)])
    [child] = await ftp.take()
    await ftp.settle((task, outcome))
    assert await states(ftp, [parent]) == [TransferState.RUNNING]
    await ftp.settle((child, DONE))
    await ftp.sweep()
    assert await states(ftp, [parent]) == [state]
    await ftp.transfers.retry(parent)
    [again] = await ftp.take()
    assert again.selection is Selection.TREE


async def test_a_dead_workers_tree_is_gone_through_again_without_doubling(ftp: FtpTransfer) -> None:
    [parent] = await submit(ftp, transfer("top", selection=Selection.TREE))
    [task] = await ftp.take()
    children = [Child(f"/top/{name}", f"/top/{name}", 100) for name in "abc"]
    await ftp.queue.expand(task, children[:2])
    await ftp.expire("w-1")
    await ftp.sweep()
    taken = {one.source.path: one for one in await ftp.take(worker="w-2")}
    again = taken.pop("/top")
    await ftp.queue.expand(again, children)
    await ftp.settle((again, Expanded()), *((one, DONE) for one in taken.values()), worker="w-2")
    [last] = await ftp.take(worker="w-2")
    await ftp.settle((last, DONE), worker="w-2")
    found = await only(ftp, parent)
    assert found.state is TransferState.SUCCEEDED
    assert found.children is not None
    assert found.children.succeeded == 3


async def test_a_retry_has_all_attempts_again(ftp: FtpTransfer) -> None:
    one = replace(transfer(max_attempts=2), retry_count=1)
    [one_id] = await submit(ftp, one)
    [task] = await ftp.take()
    assert task.is_last_attempt
    await ftp.settle((task, Failed(LOST)))
    found = await ftp.transfers.retry(one_id)
    assert (found.state, found.failure, found.end_time) == (TransferState.PENDING, None, None)
    [again] = await ftp.take()
    assert (again.attempt, again.is_last_attempt) == (1, False)


async def test_a_connection_that_is_gone_fails_its_tasks(ftp: FtpTransfer) -> None:
    [one] = await submit(ftp, transfer())
    await ftp.platform.run("UPDATE ftptransfer.transfers SET source_connection = 'gone'")
    assert await ftp.take() == []
    found = await only(ftp, one)
    assert found.failure is not None
    assert found.failure.reason is ErrorReason.NO_CONNECTION


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_what_is_left_is_removed_as_long_as_the_destination_is_known(ftp: FtpTransfer, end: str) -> None:
    one = await given_back(ftp, Retry(LOST, 0))
    await ftp.platform.run(f"UPDATE ftptransfer.transfers SET {end}_connection = 'gone'")
    tasks = await ftp.take()
    if end == "source":
        [task] = tasks
        assert task.failure is not None
        assert not task.is_upload
        await ftp.settle((task, Failed(task.failure)))
    else:
        assert tasks == []
    found = await only(ftp, one)
    assert found.failure is not None
    assert found.failure.reason is ErrorReason.NO_CONNECTION


async def test_old_transfers_are_forgotten(ftp: FtpTransfer) -> None:
    old, young, active = await submit(ftp, transfer("a"), transfer("b"), transfer("c"))
    first, second, _ = await ftp.take()
    await ftp.settle((first, DONE), (second, DONE))
    await ftp.platform.run("UPDATE ftptransfer.transfers SET create_time = now() - interval '3 days'")
    await ftp.platform.run(
        """UPDATE ftptransfer.endings SET end_time = now() - interval '2 days'
           WHERE key = (SELECT key FROM ftptransfer.transfers WHERE id = $1)""",
        old,
    )
    assert await ftp.sweeps.forget(timedelta(days=1)) == 1
    listed = await ftp.value("SELECT array_agg(id ORDER BY key) FROM ftptransfer.transfers")
    assert listed == [young, active]
    assert (await totals(ftp))["succeeded"] == 2


async def test_what_a_worker_counted_stays_when_it_is_gone(ftp: FtpTransfer) -> None:
    await submit(ftp, transfer())
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    await ftp.queue.leave("w-1")
    await ftp.platform.run("UPDATE ftptransfer.workers SET seen_time = now() - interval '1 hour'")
    await ftp.sweeps.forget(timedelta(days=1))
    assert await ftp.value("SELECT count(*) FROM ftptransfer.workers") == 0
    assert await ftp.value("SELECT count(*) FROM ftptransfer.totals") == 1
    assert (await totals(ftp))["succeeded"] == 1
