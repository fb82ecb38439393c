"""Keeping a copy of figures in InfluxDB: what it holds, what it must survive, and reading from it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from opsplane_server.errors import OutOfRange, Unavailable
from opsplane_server.loadtesting.history.port import MetricStore, Placed
from opsplane_server.loadtesting.history.reading import CopyFirst
from opsplane_server.loadtesting.history.series import MAX_CHARACTERS
from opsplane_server.loadtesting.metrics.figures import SECOND, response_times
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES
from opsplane_server.loadtesting.metrics.results import RunFold
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.stores.influx import InfluxClient, InfluxTarget
from opsplane_server.loadtesting.stores.influx.client import literal
from opsplane_server.loadtesting.stores.postgres import PostgresWindowCompaction
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.followers import Position

from tests.contract.loadtesting.stored_runs import StoredRuns, all_of, copying
from tests.contract.loadtesting.stored_runs import stored as stored
from tests.contract.loadtesting.test_metric_stores import STRANGE, seconds
from tests.influxd import Influxd
from tests.unit.loadtesting.metrics.samples import histogram_of, row


@pytest.fixture
def target(influxdb: Influxd) -> InfluxTarget:
    return influxdb.new_bucket()


async def points(target: InfluxTarget, measurement: str, more: str = "") -> list[dict[str, Any]]:
    """All points of a measurement, with their tags and fields, as a user finds them."""
    query = f"""from(bucket: {literal(target.bucket)}) |> range(start: 1970-01-01T00:00:00Z, stop: 2100-01-01T00:00:00Z)
        |> filter(fn: (r) => r._measurement == {literal(measurement)})
        |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value") |> group() {more}"""
    async with InfluxClient(target) as client:
        return [record.values for record in await client.query(query)]


async def requests(target: InfluxTarget) -> int:
    return sum(point["requests"] for point in await points(target, "opsplane_calls"))


async def test_copy_follows_a_run_and_can_be_read_once_it_has_ended(stored: StoredRuns, target: InfluxTarget) -> None:
    run = await stored.active("r1")
    async with copying(target) as copy:
        writer = stored.writer(copy)
        rows = seconds(130)
        for some in (rows[:10], rows[10:120], rows[120:]):
            await stored.append(run, some)
            assert await writer.catch_up() == len(some)
        assert len(await points(target, "opsplane_run")) == 130
        with pytest.raises(OutOfRange):
            await all_of(copy, run)
        run = await stored.end(run)
        assert await writer.catch_up() == 0
        assert await all_of(copy, run) == await all_of(stored.history, run)


async def test_runs_that_wait_to_start_are_in_nobodys_way(stored: StoredRuns) -> None:
    at_work = await stored.active("r1")
    for number in range(3):
        waiting = replace(at_work, name=f"projects/shop/runs/waiting-{number}")
        await stored.runs.insert_run(waiting, "//", None)
    assert [one.name for one in await stored.ledger.pending(1)] == [at_work.name]


async def test_row_that_is_committed_late_is_not_passed_by(stored: StoredRuns, target: InfluxTarget) -> None:
    run = await stored.active("r1")
    first, second = seconds(2)
    written, go_on = asyncio.Event(), asyncio.Event()

    async def write_slowly() -> None:
        async with stored.database.transaction():
            await stored.append(run, [first])
            written.set()
            await go_on.wait()

    writing = asyncio.create_task(write_slowly())
    await written.wait()
    await stored.append(run, [second])
    async with copying(target) as copy:
        assert await stored.writer(copy).catch_up() == 0
        go_on.set()
        await writing
        run = await stored.end(run)
        assert await stored.writer(copy).catch_up() == 2
        assert [one for _, one in await all_of(copy, run)] == [first, second]


async def test_figures_are_there_for_people(stored: StoredRuns, target: InfluxTarget) -> None:
    times = histogram_of([3.0, 4.0, 5.0, 100.0], 5)
    series = (
        Series("browse", "GET /pets", 4, 1, times),
        Series("browse", "GET /pets/{id}", 2, 0, histogram_of([1.0, 2.0], 5)),
    )
    start = row(0, 1).start_unix_nano
    await stored.ended("r1", [ExportRow("0", start, start + 2 * SECOND, series, 6, 1, 2000, 1000, 8, 7, vus=3)])
    async with copying(target) as copy:
        await stored.writer(copy).catch_up()
    [call] = [point for point in await points(target, "opsplane_calls") if point["endpoint"] == "GET /pets"]
    expected = response_times(times)
    assert expected is not None
    assert (call["project"], call["run"], call["scenario"], call["generator"]) == ("shop", "r1", "browse", "0")
    assert (call["requests"], call["failed"], call["rate"]) == (4, 1, 2.0)
    for figure in ("min_ms", "avg_ms", "max_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"):
        assert call[figure] == pytest.approx(getattr(expected, figure))
    assert call["_time"].timestamp() == pytest.approx((start + 2 * SECOND) / SECOND)
    [whole] = await points(target, "opsplane_run")
    assert (whole["requests"], whole["failed"], whole["rate"], whole["vus"]) == (6, 1, 3.0, 3)
    assert (whole["iterations"], whole["dropped_iterations"]) == (6, 1)
    assert (whole["received_bytes"], whole["sent_bytes"], whole["checks"], whole["checks_passed"]) == (2000, 1000, 8, 7)
    assert (whole["min_ms"], whole["max_ms"]) == (1.0, 100.0)
    [results] = await points(target, "opsplane_results")
    assert (results["state"], results["verdict"], results["title"]) == ("COMPLETED", "PASSED", "Nightly")
    assert (results["requests"], results["failed"]) == (6, 1)


async def test_any_name_becomes_a_tag_of_its_own_point(stored: StoredRuns, target: InfluxTarget) -> None:
    draw = random.Random(11)  # noqa: S311
    odd = [chr(code) for code in (*range(1, 160), 0x2028, 0x1F600, 0xFFFD)]
    names = [*STRANGE, *("".join(draw.choices(odd, k=draw.randint(1, 12))) for _ in range(300))]
    series = tuple(Series("load", name, 1, 0) for name in dict.fromkeys(names))
    start = row(0, 1).start_unix_nano
    await stored.ended("r1", [ExportRow("0", start, start + SECOND, series)])
    async with copying(target) as copy:
        await stored.writer(copy).catch_up()
    found = await points(target, "opsplane_calls")
    assert sum(point["requests"] for point in found) == len(series)
    shown = {
        "".join(char if char.isprintable() else " " for char in one.name)[:MAX_CHARACTERS].replace("\\", "/").rstrip()
        for one in series
    }
    assert {point.get("endpoint") or "" for point in found} == shown
    assert {(point["project"], point["run"], point["scenario"], point["generator"]) for point in found} == {
        ("shop", "r1", "load", "0")
    }


async def test_series_of_a_run_are_limited_and_nothing_is_lost(stored: StoredRuns, target: InfluxTarget) -> None:
    start = row(0, 1).start_unix_nano

    def many(number: int) -> ExportRow:
        series = tuple(Series("load", f"GET /{number}-{i}", 2, 0) for i in range(MAX_SERIES // 2))
        return ExportRow("0", start + number * SECOND, start + (number + 1) * SECOND, series)

    run = await stored.active("r1")
    async with copying(target) as copy:
        for number in range(4):
            await stored.append(run, [many(number)])
            # Each by a writer that has just been started.
            await stored.writer(copy).catch_up()
        run = await stored.end(run)
        await stored.writer(copy).catch_up()
        assert [one for _, one in await all_of(copy, run)] == [many(number) for number in range(4)]
    found = await points(target, "opsplane_calls")
    assert len({point["endpoint"] for point in found}) == MAX_SERIES + 1
    assert sum(point["requests"] for point in found) == 4 * MAX_SERIES


async def test_writing_again_changes_nothing(stored: StoredRuns, target: InfluxTarget) -> None:
    run = await stored.ended("r1", seconds(60))
    async with copying(target) as copy:
        await stored.writer(copy).catch_up()
        before = await points(target, "opsplane_calls")
        # As after a crash between writing and noting it.
        async with stored.database.connection() as connection:
            await connection.execute("UPDATE loadtesting.copied_runs SET xid = '0', id = 0, rows = 0, names = '[]'")
            await connection.execute("UPDATE loadtesting.runs SET copied = false")
        assert await stored.writer(copy).catch_up() == 60
        assert await points(target, "opsplane_calls") == before
        assert await all_of(copy, run) == await all_of(stored.history, run)


async def test_run_that_is_compacted_before_it_is_copied_whole(stored: StoredRuns, target: InfluxTarget) -> None:
    rows = seconds(400)
    run = await stored.active("r1")
    await stored.append(run, rows[:100])
    async with copying(target) as copy:
        writer = stored.writer(copy)
        await writer.catch_up()
        assert len(await points(target, "opsplane_run")) == 100
        await stored.append(run, rows[100:])
        run = await stored.end(run)
        assert await PostgresWindowCompaction(stored.database).compact_next(timedelta(0)) == run.name
        await writer.catch_up()
        found = await all_of(copy, run)
        assert found == await all_of(stored.history, run)
        assert len(found) < 100
        assert await requests(target) == sum(one.series[0].requests for one in rows)


async def test_history_stays_fine_when_postgres_compacts_and_the_figures_agree(
    stored: StoredRuns, target: InfluxTarget
) -> None:
    run = await stored.ended("r1", seconds(400))
    async with copying(target) as copy:
        await stored.writer(copy).catch_up()
        assert await PostgresWindowCompaction(stored.database).compact_next(timedelta(0)) == run.name
        assert await stored.writer(copy).catch_up() == 0
        fine, joined = await all_of(copy, run), await all_of(stored.history, run)
    assert (len(fine), len(joined)) == (400, 40)
    of_copy, of_postgres = (folded(run, rows) for rows in (fine, joined))
    assert of_copy.requests == of_postgres.requests
    assert of_copy.response_time is not None
    assert of_copy.response_time == of_postgres.response_time


async def test_deleted_run_is_removed_and_its_name_can_be_used_again(stored: StoredRuns, target: InfluxTarget) -> None:
    kept = await stored.ended("r2", seconds(3))
    run = await stored.ended("r1", seconds(5))
    async with copying(target) as copy:
        await stored.writer(copy).catch_up()
        await stored.runs.delete_run(run.name)
        again = await stored.ended("r1", seconds(2))
        assert await stored.ledger.pending(10) == [], "what is left of the old run would be taken for the new one"
        await stored.writer(copy).catch_up()
        assert len([p for p in await points(target, "opsplane_run") if p["run"] == "r1"]) == 2
        assert await all_of(copy, again) == await all_of(stored.history, again)
        assert await all_of(copy, kept) == await all_of(stored.history, kept)
        for one in (again, kept):
            await stored.runs.delete_run(one.name)
        await stored.writer(copy).catch_up()
        for measurement in ("opsplane_calls", "opsplane_run", "opsplane_results", "opsplane_history"):
            assert await points(target, measurement) == []
        async with stored.database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM loadtesting.copied_runs") == 0


async def test_another_bucket_gets_everything_again(
    stored: StoredRuns, target: InfluxTarget, influxdb: Influxd
) -> None:
    runs = [await stored.ended(f"r{i}", seconds(3 + i)) for i in range(3)]
    async with copying(target) as copy:
        assert await stored.writer(copy).catch_up() == 12
    target = influxdb.replace_bucket(target)
    async with copying(target) as copy:
        assert await stored.writer(copy).catch_up() == 12
        assert await stored.writer(copy).catch_up() == 0
        for run in runs:
            assert await all_of(copy, run) == await all_of(stored.history, run)


async def test_figures_older_than_the_bucket_keeps_hold_nothing_up(stored: StoredRuns, influxdb: Influxd) -> None:
    old = await stored.ended("old", seconds(60))
    target = influxdb.new_bucket(keep_seconds=3600)
    async with copying(target) as copy:
        assert await stored.writer(copy).catch_up() == 60
        assert await stored.writer(copy).catch_up() == 0
        now = await stored.active("now")
        recent = [
            replace(one, start_unix_nano=origin(now) + i * SECOND, time_unix_nano=origin(now) + (i + 1) * SECOND)
            for i, one in enumerate(seconds(3))
        ]
        await stored.append(now, recent)
        now = await stored.end(now)
        await stored.writer(copy).catch_up()
        assert await all_of(copy, now) == await all_of(stored.history, now)
        with pytest.raises(OutOfRange):
            await all_of(copy, old)
        history = CopyFirst(copy, stored.history)
        assert [one for _, one in await all_of(history, old)] == seconds(60)


async def test_damaged_run_does_not_keep_others_from_being_copied(stored: StoredRuns, target: InfluxTarget) -> None:
    fine = await stored.ended("r1", seconds(3))
    damaged = await stored.ended("r2", seconds(3))
    async with stored.database.connection() as connection:
        await connection.execute("UPDATE loadtesting.windows SET data = '\\x01ff' WHERE run_key = $1", damaged.key)
    async with copying(target) as copy:
        assert await stored.writer(copy).catch_up() == 3
        assert await all_of(copy, fine) == await all_of(stored.history, fine)
        with pytest.raises(OutOfRange):
            await all_of(copy, damaged)


async def test_copy_that_is_away_keeps_nobody_from_reading(stored: StoredRuns, target: InfluxTarget) -> None:
    run = await stored.ended("r1", seconds(5))
    everything = await all_of(stored.history, run)
    for wrong in (
        replace(target, url="http://127.0.0.1:1"),
        replace(target, token="wrong"),
        replace(target, bucket="missing"),
        target,  # nothing was copied
    ):
        async with copying(wrong) as copy:
            history = CopyFirst(copy, stored.history)
            assert await all_of(history, run) == everything
            assert await all_of(history, run, everything[1][0]) == everything[2:]


@dataclass(frozen=True, slots=True)
class Breaking:
    """A store that goes away after its first batch."""

    store: MetricStore

    async def read(self, run: Run, after: Position = Position.START) -> AsyncGenerator[list[Placed], None]:
        async for batch in self.store.read(run, after):
            yield batch
            raise Unavailable("gone")


async def test_reading_never_changes_from_one_store_to_the_other(stored: StoredRuns) -> None:
    run = await stored.ended("r1", seconds(5))
    history = CopyFirst(Breaking(stored.history), stored.history)
    with pytest.raises(Unavailable):
        await all_of(history, run)


@dataclass(frozen=True, slots=True)
class Sums:
    requests: int
    response_time: object


def folded(run: Run, rows: Sequence[Placed]) -> Sums:
    fold = RunFold(origin(run))
    for _, one in rows:
        fold.add(one)
    total = fold.results().total
    times = total.response_time
    assert times is not None
    return Sums(total.requests, [round(getattr(times, name), 6) for name in ("min_ms", "avg_ms", "p50_ms", "p99_ms")])
