"""Many workers on one queue, with cancelling, dying and beginning anew in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from opsplane_server.errors import Aborted, FailedPrecondition, LeaseLost
from opsplane_server.ftptransfer.model import (
    Cancelled,
    Child,
    Expanded,
    Failed,
    Outcome,
    Progress,
    Released,
    Retry,
    Selection,
    Succeeded,
    Task,
)
from opsplane_server.rpc.paging import PageRequest

from tests.contract.ftptransfer.test_queue import LOST, submit, totals, transfer
from tests.ftptransfer_harness import FtpTransfer
from tests.waiting import until

_FILES = 300
_TREES = 6
_CHILDREN = 30
_WORKERS = 4


@pytest.mark.parametrize("seed", [7, 8])
async def test_every_transfer_ends_once_whatever_happens(ftp: FtpTransfer, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # not for secrets
    ids = await submit(ftp, *(transfer(f"f{n}", message=f'{{"task_id": "{n}"}}') for n in range(_FILES)))
    trees = await submit(ftp, *(transfer(f"t{n}", selection=Selection.TREE) for n in range(_TREES)))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(_work(ftp, f"w-{n}", chance, stop)) for n in range(_WORKERS)]
        group.create_task(_upkeep(ftp, chance, stop))
        # Until it has ended a transfer may be begun anew when the queue has been seen empty.
        await _meddle(ftp, [*ids, *trees], chance)

        async def empty() -> bool:
            return await ftp.value("SELECT count(*) FROM ftptransfer.queue") == 0

        await until(empty)
        stop.set()
    assert sum(worker.result() for worker in workers) > _FILES

    found = await ftp.store.list_transfers(PageRequest(10_000, None), ())
    states = Counter(one.state.value for one in found)
    assert set(states) <= {"SUCCEEDED", "FAILED", "CANCELLED"}
    for tree in (one for one in found if one.children is not None):
        assert tree.children is not None
        mine = Counter(one.state.value for one in found if one.parent == tree.id)
        counted = (tree.children.succeeded, tree.children.failed, tree.children.cancelled)
        assert counted == (mine["SUCCEEDED"], mine["FAILED"], mine["CANCELLED"])
        assert tree.children.bytes_transferred == 100 * mine["SUCCEEDED"]
        assert len({one.source.path for one in found if one.parent == tree.id}) == sum(mine.values())
    assert await ftp.value("SELECT count(*) FROM ftptransfer.endings") == len(found)
    # Begun anew they end again, and that is told again.
    ends = await ftp.value("SELECT count(*) FROM ftptransfer.outbox")
    assert isinstance(ends, int)
    assert ends >= _FILES
    counted_all = await totals(ftp)
    assert counted_all["succeeded"] + counted_all["failed"] + counted_all["cancelled"] >= len(found)
    assert counted_all["succeeded"] == states["SUCCEEDED"]


async def _work(ftp: FtpTransfer, worker: str, chance: random.Random, stop: asyncio.Event) -> int:
    settled = 0
    while not stop.is_set():
        tasks = await ftp.take(chance.randint(1, 40), worker=worker)
        if not tasks:
            await asyncio.sleep(0.005)
            await ftp.queue.renew(worker, [])
            continue
        lost = await ftp.queue.renew(worker, [Progress(task, 1, 100) for task in tasks])
        outcomes = [
            (task, Cancelled() if task.cancelled or task.id in lost else await _outcome(ftp, task, chance))
            for task in tasks
        ]
        chance.shuffle(outcomes)
        if chance.random() < 0.05:
            continue  # forgotten, until the lease is taken away
        await ftp.queue.settle(worker, outcomes)
        settled += len(outcomes)
    return settled


async def _outcome(ftp: FtpTransfer, task: Task, chance: random.Random) -> Outcome:
    if task.selection is not Selection.FILE:
        children = [Child(f"{task.source.path}/{n}", f"/{n}", 100) for n in range(_CHILDREN)]
        with contextlib.suppress(LeaseLost):
            await ftp.queue.expand(task, children)
        ends: list[Outcome] = [Expanded(), Expanded(), Retry(LOST, 0), Released()]
    else:
        ends = [*[Succeeded(100, sent=100)] * 6, Failed(LOST), Retry(LOST, 0.0), Retry(LOST, 0.01), Released()]
    return chance.choice(ends)


async def _upkeep(ftp: FtpTransfer, chance: random.Random, stop: asyncio.Event) -> None:
    while not stop.is_set():
        if chance.random() < 0.3:
            await ftp.expire(f"w-{chance.randrange(_WORKERS)}")
        await ftp.sweeps.sweep()
        await asyncio.sleep(0.02)


async def _meddle(ftp: FtpTransfer, ids: Sequence[str], chance: random.Random) -> None:
    for _ in range(40):
        one = chance.choice(ids)
        with contextlib.suppress(FailedPrecondition, Aborted):
            await (ftp.transfers.cancel(one) if chance.random() < 0.5 else ftp.transfers.retry(one))
        await asyncio.sleep(0.01)
