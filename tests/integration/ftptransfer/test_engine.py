"""The engine with a queue in memory and a server that is a folder."""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opsplane_server.ftptransfer import engine as engine_module
from opsplane_server.ftptransfer.engine import TransferEngine
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure, HeldBack, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import (
    Cancelled,
    End,
    ExistingFile,
    Expanded,
    Failed,
    LeftOver,
    Outcome,
    Released,
    Retry,
    Selection,
    Succeeded,
    Task,
)
from opsplane_server.ftptransfer.temporary import is_temporary
from opsplane_server.storage.signals import Signal

from tests.ftptransfer_fakes import FolderServer, MemoryQueue, ftp, local, task_between
from tests.waiting import until

CONTENT = os.urandom(5000)


class Bench:
    """A queue, a server and what engines share."""

    def __init__(self, root: Path) -> None:
        self.local = root / "local"
        self.remote = root / "remote"
        self.local.mkdir()
        self.remote.mkdir()
        self.server = FolderServer(self.remote)
        self.queue = MemoryQueue()
        self.figures = TransferFigures()
        self.signal: Signal = Signal(lambda: self.signal._hint())

    def engine(self, worker: str = "w-1", **settings: Any) -> TransferEngine:
        return TransferEngine(self.queue, self.server, self.signal, self.figures, worker=worker, **settings)

    def put(self, *tasks: Task) -> None:
        self.queue.put(*tasks)
        self.signal.notify()

    def down(self, name: str, content: bytes = CONTENT, *, connection: str = "ftp", **settings: Any) -> Task:
        (self.remote / name).write_bytes(content)
        ends = End(ftp(connection), f"/{name}"), End(local(self.local), f"/in/{name}")
        return task_between(*ends, id=f"{connection}-{name}", **settings)

    def up(self, name: str, content: bytes = CONTENT, **settings: Any) -> Task:
        (self.local / name).write_bytes(content)
        return task_between(End(local(self.local), f"/{name}"), End(ftp(), f"/in/{name}"), id=f"up-{name}", **settings)

    async def ended(self, count: int) -> dict[str, Outcome]:
        await until(lambda: len(self.queue.ended) >= count, timeout=30)
        return self.queue.ended

    def temporaries(self) -> list[Path]:
        return [path for folder in (self.local, self.remote) for path in folder.rglob("*") if is_temporary(path.name)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(engine_module, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(engine_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr("opsplane_server.ftptransfer.retries.delay", _soon)
    return Bench(tmp_path)


def _soon(failure: object, attempt: int) -> float | None:
    return 0.01 if getattr(failure, "retryable", False) else None


def break_first(count: int, *steps: str, failure: BaseException | None = None) -> Callable[[str], None]:
    left = count

    def hook(step: str) -> None:
        nonlocal left
        if step in steps and left > 0:
            left -= 1
            raise failure or TransferFailure(ErrorReason.CONNECTION_LOST, "cut")

    return hook


async def test_files_go_both_ways(bench: Bench) -> None:
    downs = [bench.down(f"d{number}") for number in range(100)]
    ups = [bench.up(f"u{number}") for number in range(100)]
    async with bench.engine():
        bench.put(*downs, *ups)
        ended = await bench.ended(200)
    assert all(isinstance(outcome, Succeeded) for outcome in ended.values())
    for number in range(100):
        assert (bench.local / f"in/d{number}").read_bytes() == CONTENT
        assert (bench.remote / f"in/u{number}").read_bytes() == CONTENT
    assert bench.temporaries() == []
    assert bench.figures.tasks_succeeded == 200
    assert bench.figures.bytes_transferred == 200 * len(CONTENT)
    assert bench.figures.tasks_in_progress == 0


async def test_the_queue_is_asked_for_many_at_a_time(bench: Bench) -> None:
    bench.put(*(bench.down(f"d{number}") for number in range(500)))
    async with bench.engine():
        await bench.ended(500)
    assert bench.queue.statements.count("take") + bench.queue.statements.count("settle") < 200


async def test_broken_connections_are_tried_again_and_resumed(bench: Bench) -> None:
    bench.server.hook = break_first(3, "retrieve half")
    bench.put(*(bench.down(f"d{number}") for number in range(20)))
    async with bench.engine():
        ended = await bench.ended(20)
    retries = [outcome for _, outcome in bench.queue.history if isinstance(outcome, Retry)]
    assert [retry.failure.code for retry in retries] == [ErrorCode.CONNECTION_ERROR] * 3
    assert sum(outcome.resumed > 0 for outcome in ended.values() if isinstance(outcome, Succeeded)) == 3
    assert all((bench.local / f"in/d{number}").read_bytes() == CONTENT for number in range(20))
    assert bench.temporaries() == []


@pytest.mark.parametrize("way", ["down", "up"])
async def test_after_the_last_attempt_it_has_failed_and_nothing_is_left(bench: Bench, way: str) -> None:
    bench.server.hook = break_first(100, "retrieve half", "store half")
    bench.put(getattr(bench, way)("a", max_attempts=3))
    async with bench.engine():
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Failed)
    assert outcome.failure.reason is ErrorReason.CONNECTION_LOST
    assert len(bench.queue.history) == 3
    assert bench.temporaries() == []
    assert bench.figures.failures == {ErrorCode.CONNECTION_ERROR: 1}
    assert bench.figures.tasks_in_progress == 0


async def test_what_no_waiting_helps_is_not_tried_again(bench: Bench) -> None:
    missing = bench.down("missing")
    (bench.remote / "missing").unlink()
    bench.put(
        missing,
        task_between(End(ftp(), "/x"), End(local(bench.local), "../x"), id="out"),
        task_between(End(local(bench.local), "/no"), End(ftp(), "/x"), id="no source"),
    )
    async with bench.engine():
        ended = await bench.ended(3)
    codes = {task: outcome.failure.code for task, outcome in ended.items() if isinstance(outcome, Failed)}
    assert codes == {
        missing.id: ErrorCode.FILE_NOT_FOUND,
        "out": ErrorCode.FILE_NOT_FOUND,  # of its two faults the source's is seen first
        "no source": ErrorCode.FILE_NOT_FOUND,
    }
    assert len(bench.queue.history) == 3


async def test_unexpected_errors_are_failures(bench: Bench) -> None:
    bench.server.hook = break_first(100, "stat", failure=ZeroDivisionError())
    bench.put(bench.down("a", max_attempts=2))
    async with bench.engine():
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Failed)
    assert outcome.failure.code is ErrorCode.UNKNOWN_ERROR


@pytest.mark.parametrize("way", ["down", "up"])
async def test_cancelled_while_it_runs(bench: Bench, way: str) -> None:
    def hook(step: str) -> None:
        if step in ("retrieve half", "store half"):
            bench.server.gate = asyncio.Event()
        if step == "delete":  # to clean up
            bench.server.gate = None

    bench.server.hook = hook
    task = getattr(bench, way)("a")
    async with bench.engine():
        bench.put(task)
        await until(lambda: bench.server.gate is not None)
        assert len(bench.temporaries()) == 1
        bench.queue.cancelled.add(task.id)
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Cancelled)
    assert outcome.sent == len(CONTENT) // 2
    assert bench.temporaries() == []
    assert bench.figures.tasks_in_progress == 0


async def _left(bench: Bench, way: str) -> Task:
    """A task of which a part has come, and that the next worker is to begin anew."""

    def hook(step: str) -> None:
        if step in ("retrieve half", "store half"):
            bench.server.gate = asyncio.Event()

    bench.server.hook = hook
    task: Task = getattr(bench, way)("a")
    async with bench.engine("w-0", drain_seconds=0.01):
        bench.put(task)
        await until(lambda: bench.server.gate is not None)
    bench.server.gate = None
    bench.server.hook = lambda step: None
    assert len(bench.temporaries()) == 1
    bench.queue.history.clear()
    return task


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("failure", [None, Failure(ErrorCode.INVALID_CONFIG, ErrorReason.NO_CONNECTION, "gone")])
async def test_what_is_over_is_cleaned_up_after_and_not_attempted(
    bench: Bench, way: str, failure: Failure | None
) -> None:
    task = await _left(bench, way)
    bench.queue.change(task.id, cancelled=failure is None, failure=failure)
    bench.server.calls.clear()
    async with bench.engine():
        [outcome] = (await bench.ended(1)).values()
    assert outcome == (Cancelled() if failure is None else Failed(failure))
    assert bench.temporaries() == []
    assert not {"retrieve", "store"} & set(bench.server.calls)
    assert bench.figures.tasks_in_progress == 0


async def test_to_clean_up_is_not_broken_off_by_the_cancelling(bench: Bench) -> None:
    task = await _left(bench, "up")
    bench.queue.change(task.id, cancelled=True)
    bench.queue.cancelled.add(task.id)
    bench.server.gate = asyncio.Event()
    async with bench.engine():
        renewed = bench.queue.statements.count("renew")
        await until(lambda: "delete" in bench.server.calls)
        await until(lambda: bench.queue.statements.count("renew") > renewed + 3)
        bench.server.gate.set()
        await bench.ended(1)
    assert bench.server.calls.count("delete") == 1
    assert bench.temporaries() == []


@pytest.mark.parametrize("hopeless", [False, True])
async def test_to_clean_up_is_tried_again_where_that_may_help(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hopeless: bool
) -> None:
    monkeypatch.setattr(engine_module, "_BUSY_SECONDS", 0.05)
    task = await _left(bench, "up")
    bench.queue.change(task.id, cancelled=True)
    reason = ErrorReason.LOGIN if hopeless else ErrorReason.CONNECTION_LOST
    bench.server.hook = break_first(3, "login", failure=TransferFailure(reason, "no"))
    async with bench.engine():
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Cancelled)
    assert len(bench.queue.history) == (1 if hopeless else 4)
    assert len(bench.temporaries()) == (1 if hopeless else 0)


async def test_what_failed_for_good_fails_when_nothing_is_left_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_BUSY_SECONDS", 0.05)
    bench.server.hook = break_first(3, "store half", "delete")
    task = bench.up("a", max_attempts=1)
    bench.put(task)
    async with bench.engine():
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Failed)
    assert outcome.failure.message == "cut"
    assert [type(outcome) for _, outcome in bench.queue.history] == [LeftOver, LeftOver, Failed]
    assert bench.temporaries() == []


async def test_a_server_that_is_left_alone_costs_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_BUSY_SECONDS", 0.05)
    bench.server.hook = break_first(3, "login", failure=HeldBack(None, datetime.now(UTC)))
    bench.put(bench.up("a", max_attempts=1))
    async with bench.engine():
        await bench.ended(1)
    assert [type(outcome) for _, outcome in bench.queue.history] == [Released] * 3 + [Succeeded]


async def test_cancelled_while_it_waits_for_a_session(bench: Bench) -> None:
    bench.server.gate = asyncio.Event()
    busy = [bench.down(f"d{number}") for number in range(10)]
    last = bench.down("last")
    async with bench.engine():
        bench.put(*busy, last)
        await until(lambda: last.id in bench.queue.progress)
        bench.queue.cancelled.add(last.id)
        await until(lambda: isinstance(bench.queue.ended.get(last.id), Cancelled))
        bench.server.gate.set()
        await bench.ended(11)
    assert not (bench.local / "in/last").exists()


async def test_progress_is_told(bench: Bench) -> None:
    task = bench.down("a")
    half = asyncio.Event()

    def hook(step: str) -> None:
        if step == "retrieve half":
            bench.server.gate = asyncio.Event()
            half.set()

    bench.server.hook = hook
    async with bench.engine():
        bench.put(task)
        await half.wait()
        await until(lambda: bench.queue.progress.get(task.id, None) is not None)
        await until(lambda: bench.queue.progress[task.id].transferred == len(CONTENT) // 2)
        assert bench.queue.progress[task.id].size == len(CONTENT)
        assert bench.server.gate is not None
        bench.server.gate.set()
        await bench.ended(1)


async def test_connections_with_an_open_circuit_are_passed_over(bench: Bench) -> None:
    bench.server.closed.add("broken")
    broken, fine = bench.down("a", connection="broken"), bench.down("b")
    async with bench.engine():
        bench.put(broken, fine)
        await bench.ended(1)
        assert list(bench.queue.ended) == [fine.id]
        bench.server.closed.clear()
        await bench.ended(2)


async def test_a_slow_connection_does_not_hold_up_another(bench: Bench) -> None:
    gate = asyncio.Event()
    slow = [bench.down(f"s{number}", connection="slow") for number in range(300)]
    fast = [bench.down(f"f{number}") for number in range(30)]
    session = bench.server._session

    def session_of(connection: Any) -> Any:
        if connection.id == "slow":
            return _Never(gate)
        return session(connection)

    bench.server.session = session_of  # type: ignore[method-assign]
    async with bench.engine(drain_seconds=0.1):
        bench.put(*slow, *fast)
        await until(lambda: all(task.id in bench.queue.ended for task in fast))
        assert len(bench.queue.running) <= 40
    assert len(bench.queue.waiting) == 300


class _Never:
    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.wait()

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_drain_finishes_what_runs_and_gives_back_the_rest(bench: Bench) -> None:
    tasks = [bench.down(f"d{number}") for number in range(100)]
    bench.server.gate = asyncio.Event()
    async with asyncio.timeout(30):
        async with bench.engine():
            bench.put(*tasks)
            await until(lambda: bench.server.open_sessions == 10)
            asyncio.get_running_loop().call_later(0.2, bench.server.gate.set)
    assert len(bench.queue.ended) == 10
    assert all(isinstance(outcome, Succeeded) for outcome in bench.queue.ended.values())
    assert len(bench.queue.waiting) == 90
    assert bench.queue.running == {}
    assert bench.temporaries() == []
    assert bench.figures.tasks_in_progress == 0


async def test_drain_gives_back_what_takes_too_long_and_another_goes_on(bench: Bench) -> None:
    def hook(step: str) -> None:
        if step == "retrieve half":
            bench.server.gate = asyncio.Event()

    bench.server.hook = hook
    task = bench.down("a")
    async with bench.engine("w-1", drain_seconds=0.1):
        bench.put(task)
        await until(lambda: bench.server.gate is not None)
    assert [outcome for _, outcome in bench.queue.history if isinstance(outcome, Released)]
    assert len(bench.temporaries()) == 1
    bench.server.gate = None
    bench.server.hook = lambda step: None
    async with bench.engine("w-2"):
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Succeeded)
    assert outcome.resumed == len(CONTENT) // 2
    assert (bench.local / "in/a").read_bytes() == CONTENT
    assert bench.temporaries() == []


async def test_database_that_is_away_for_a_while_loses_nothing(bench: Bench) -> None:
    tasks = [bench.down(f"d{number}") for number in range(200)]
    async with bench.engine():
        bench.put(*tasks)
        for _ in range(3):
            count = len(bench.queue.ended)
            await until(lambda count=count: len(bench.queue.ended) > count or len(bench.queue.ended) == 200)  # type: ignore[misc]
            bench.queue.away = True
            await asyncio.sleep(0.1)
            bench.queue.away = False
        ended = await bench.ended(200)
    assert all(isinstance(outcome, Succeeded) for outcome in ended.values())
    assert all((bench.local / f"in/d{number}").read_bytes() == CONTENT for number in range(200))


async def test_lost_lease_stops_attempts_before_they_rename(bench: Bench) -> None:
    bench.server.gate = asyncio.Event()
    tasks = [bench.down(f"d{number}") for number in range(5)]
    async with bench.engine(lease_seconds=0.3):
        bench.put(*tasks)
        await until(lambda: bench.server.open_sessions == 5)
        bench.queue.away = True
        await until(lambda: bench.server.open_sessions == 0)
        bench.server.gate.set()
        assert not (bench.local / "in").exists() or list((bench.local / "in").iterdir()) == bench.temporaries()
        bench.queue.away = False
        ended = await bench.ended(5)
    assert all(isinstance(outcome, Succeeded) for outcome in ended.values())
    assert bench.temporaries() == []
    assert bench.figures.tasks_in_progress == 0


async def test_two_workers_share_without_doubling(bench: Bench) -> None:
    tasks = [bench.down(f"d{number}") for number in range(300)]
    bench.put(*tasks)
    async with bench.engine("w-1"), bench.engine("w-2"):
        await bench.ended(300)
    assert len(bench.queue.history) == 300


async def test_trees_and_globs_are_expanded(bench: Bench) -> None:
    (bench.remote / "deep/er").mkdir(parents=True)
    (bench.remote / "deep/er/x.gz").touch()
    (bench.local / "y").touch()
    glob = task_between(
        End(ftp(), "/deep/**/*.gz"), End(local(bench.local), "/in"), id="glob", selection=Selection.GLOB
    )
    tree = task_between(End(local(bench.local), "/"), End(ftp(), "/in"), id="tree", selection=Selection.TREE)
    missing = task_between(End(ftp(), "/no"), End(local(bench.local), "/in"), id="no", selection=Selection.TREE)
    async with bench.engine():
        bench.put(glob, tree, missing)
        ended = await bench.ended(3)
    assert isinstance(ended["glob"], Expanded)
    assert isinstance(ended["tree"], Expanded)
    assert isinstance(ended["no"], Failed)
    assert [child.destination_path for child in bench.queue.children["glob"]] == ["/in/er/x.gz"]
    assert [child.source_path for child in bench.queue.children["tree"]] == ["/y"]


async def test_skipped_files_need_no_session(bench: Bench) -> None:
    (bench.local / "in").mkdir()
    (bench.local / "in/a").write_bytes(b"there")
    async with bench.engine():
        bench.put(bench.down("a", existing_file=ExistingFile.SKIP))
        [outcome] = (await bench.ended(1)).values()
    assert isinstance(outcome, Succeeded)
    assert outcome.skipped
    assert bench.server.calls == []


async def test_the_event_loop_is_never_held_up(bench: Bench) -> None:
    tasks = [bench.down(f"d{number}", connection=f"c{number % 10}") for number in range(1000)]
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    async with bench.engine():
        measuring = asyncio.create_task(measure())
        bench.put(*tasks)
        await bench.ended(1000)
        measuring.cancel()
    # Far above what is seen (a few milliseconds), because the machine may be busy with other things.
    assert longest < 0.5
