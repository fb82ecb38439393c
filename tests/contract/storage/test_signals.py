import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from opsplane_server.storage.signals import Signals

from tests.waiting import until

LONG = 3600.0  # never reached: whoever waits for it has lost a hint, and the test runs out of time
pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def overheard(dsn: str) -> AsyncIterator[list[str]]:
    """What is really sent, in order."""
    topics: list[str] = []
    connection = await asyncpg.connect(dsn)
    await connection.add_listener("opsplane", lambda *arguments: topics.append(str(arguments[3])))
    try:
        yield topics
    finally:
        await connection.close()


async def cut(dsn: str) -> int:
    """Ends the connections of all Signals; says how many there were."""
    connection = await asyncpg.connect(dsn)
    try:
        query = """
            SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
            WHERE application_name = 'opsplane signals' AND datname = current_database()
        """
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def test_a_hint_reaches_every_process_and_its_own(dsn: str) -> None:
    async with Signals(dsn) as one, Signals(dsn) as other:
        mine, theirs = one.topic("runs"), other.topic("runs")
        seen = mine.generation, theirs.generation
        mine.notify()
        assert await theirs.changed(seen[1], LONG)
        assert await mine.changed(seen[0], LONG)


async def test_a_hint_is_for_its_topic_alone(dsn: str) -> None:
    async with Signals(dsn) as one, Signals(dsn) as other:
        name = "projects/überlang-" + "x" * 200
        long, short = other.topic(name), other.topic("runs")
        seen = short.generation
        waiting = asyncio.create_task(long.wait(LONG))
        await asyncio.sleep(0)
        one.topic(name).notify()
        assert await waiting
        assert short.generation == seen


async def test_waiting_ends_without_a_hint(dsn: str) -> None:
    async with Signals(dsn) as signals:
        signal = signals.topic("runs")
        assert not await signal.wait(0.01)
        assert not await signal.changed(signal.generation, 0.01)
        assert await signal.changed(signal.generation - 1, LONG)


async def test_a_burst_is_one_hint(dsn: str) -> None:
    async with Signals(dsn) as one, Signals(dsn) as other, overheard(dsn) as topics:
        burst, after = one.topic("burst"), one.topic("after")
        heard = other.topic("burst"), other.topic("after")
        seen = [signal.generation for signal in (burst, *heard)]
        for _ in range(1000):
            burst.notify()
        assert await heard[0].changed(seen[1], LONG)
        after.notify()
        assert await heard[1].changed(seen[2], LONG)
        assert await burst.changed(seen[0], LONG)
        assert [burst.generation, heard[0].generation] == [seen[0] + 1, seen[1] + 1]
        await until(lambda: len(topics) >= 2)
        assert topics == ["burst", "after"]


async def test_no_wake_up_is_missed(dsn: str) -> None:
    """The reader looks and then waits; hints come at any moment between, from another process."""
    written = 0
    total = 150

    async def write(signals: Signals) -> None:
        nonlocal written
        dice = random.Random(1)  # noqa: S311
        for _ in range(total):
            written += 1
            signals.topic("rows").notify()
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.02, 0.03]))

    async with Signals(dsn) as writer, Signals(dsn) as reader, asyncio.TaskGroup() as group:
        signal = reader.topic("rows")
        group.create_task(write(writer))
        while True:
            seen = signal.generation
            if written == total:
                break
            await asyncio.sleep(0.001)  # time in which a hint may come
            assert await signal.changed(seen, LONG)


async def test_a_lost_connection_is_made_anew_and_what_came_meanwhile_is_hinted(dsn: str) -> None:
    async with Signals(dsn) as one, Signals(dsn) as other:
        mine, theirs = one.topic("runs"), other.topic("runs")
        for _ in range(2):
            seen = mine.generation, theirs.generation
            assert await cut(dsn) == 2
            assert await mine.changed(seen[0], LONG)
            assert await theirs.changed(seen[1], LONG)
        seen = mine.generation, theirs.generation
        mine.notify()
        assert await theirs.changed(seen[1], LONG)


async def test_a_hint_given_without_a_connection_is_sent_later(dsn: str) -> None:
    async with Signals(dsn) as one, overheard(dsn) as topics:
        assert await cut(dsn) == 1
        one.topic("runs").notify()
        await until(lambda: "runs" in topics)


async def test_without_a_server_hints_stay_in_the_process(tmp_path: Path) -> None:
    async with Signals(f"postgresql://u@/d?host={tmp_path}") as signals:
        signal = signals.topic("runs")
        seen = signal.generation
        signal.notify()
        assert await signal.changed(seen, LONG)


async def test_notify_never_raises_whatever_the_state(dsn: str) -> None:
    signals = Signals(dsn)
    signal = signals.topic("runs")
    signal.notify()
    async with signals:
        pass
    signal.notify()


async def test_a_topic_is_one_object_while_it_is_held(dsn: str) -> None:
    signals = Signals(dsn)
    signal = signals.topic("runs")
    assert signals.topic("runs") is signal
    assert len(signals._topics) == 1
    del signal
    gc.collect()
    assert len(signals._topics) == 0
