"""What every store of figures promises: the rows of ended runs, as they were and in the order of their commits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from opsplane_server.errors import OutOfRange
from opsplane_server.loadtesting.history.port import POSITION_UNKNOWN
from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES
from opsplane_server.loadtesting.metrics.packing import pack
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.storage.followers import Position

from tests.contract.loadtesting.stored_runs import Kept, StoredRuns, all_of, kept_in_influxdb, kept_in_postgres
from tests.contract.loadtesting.stored_runs import stored as stored
from tests.influxd import Influxd
from tests.unit.loadtesting.metrics.samples import histogram_of, row

STRANGE = [
    "GET /pets",
    "GET /pets/{id}?q=a,b=c d",
    'quoted "name" \\',
    "line\nbreak\ttab\rreturn\x01",
    "끝 ☃ 𝔘",
    "backslash\\, comma",
    "",
    " ",
    "#comment",
    "n" * 3000,
]


@pytest.fixture(params=["postgres", "influxdb"])
async def kept(request: pytest.FixtureRequest, stored: StoredRuns) -> AsyncIterator[Kept]:
    if request.param == "postgres":
        async with kept_in_postgres(stored) as found:
            yield found
    else:
        server: Influxd = request.getfixturevalue("influxdb")
        async with kept_in_influxdb(stored, server.new_bucket()) as found:
            yield found


def seconds(count: int, **fields: object) -> list[ExportRow]:
    """A row a second, no two alike."""
    return [
        row(i, i + 1, requests=i + 1, response_time=histogram_of([1.0 + i, 5.0], 3), **fields)  # type: ignore[arg-type]
        for i in range(count)
    ]


async def test_rows_come_back_as_they_were(kept: Kept) -> None:
    rows = seconds(450)  # more than a batch
    run = await kept.stored.ended("r1", rows)
    await kept.settle()
    found = await all_of(kept.store, run)
    assert [one for _, one in found] == rows
    assert found == await all_of(kept.stored.history, run), "positions differ from those that watchers have"


async def test_reading_goes_on_behind_any_position(kept: Kept) -> None:
    run = await kept.stored.ended("r1", seconds(12))
    await kept.settle()
    everything = await all_of(kept.store, run)
    for at, (position, _) in enumerate(everything, 1):
        assert await all_of(kept.store, run, position) == everything[at:]


async def test_order_is_that_of_commits(kept: Kept) -> None:
    rows = seconds(6, instance="0") + seconds(6, instance="1")
    random.Random(7).shuffle(rows)  # noqa: S311
    run = await kept.stored.ended("r1", rows, generators=2)
    await kept.settle()
    assert [one for _, one in await all_of(kept.store, run)] == rows


async def test_runs_are_apart(kept: Kept) -> None:
    first = await kept.stored.ended("r1", seconds(3))
    second = await kept.stored.ended("r2", seconds(5, scenario="other"))
    await kept.settle()
    assert [one for _, one in await all_of(kept.store, first)] == seconds(3)
    assert [one for _, one in await all_of(kept.store, second)] == seconds(5, scenario="other")


async def test_run_without_figures_has_no_rows(kept: Kept) -> None:
    run = await kept.stored.ended("r1", [])
    await kept.settle()
    assert await all_of(kept.store, run) == []


async def test_strange_and_extreme_rows(kept: Kept) -> None:
    wide = Histogram.of(-3, -100, [1, *[0] * 150, 2**40], zero_count=3, total=1e300, min=0.0, max=1e300)
    series = tuple(Series(scenario, name, 1, 0, wide) for scenario in STRANGE[:3] for name in STRANGE)
    rows = [
        row(0, 1, requests=5, vus=None, response_time=EMPTY),
        ExportRow("a", rows_at(2), rows_at(2)),
        ExportRow("a", rows_at(2), rows_at(3), series, 2**62, 2**62, 2**62, 2**62, 7, 8, 2**31),
        row(3, 4, requests=0, failed=1),
    ]
    run = await kept.stored.ended("r1", rows)
    await kept.settle()
    assert [one for _, one in await all_of(kept.store, run)] == rows


async def test_largest_rows(kept: Kept) -> None:
    noise = random.Random(1)  # noqa: S311
    series = tuple(
        Series("load", f"GET /{i}", 700, 0, histogram_of([noise.lognormvariate(3, 2) for _ in range(700)], 5))
        for i in range(MAX_SERIES)
    )
    large = ExportRow("a", rows_at(0), rows_at(1), series, vus=700)
    assert len(pack(large)) > 100_000, "no larger than what fits in one field"
    run = await kept.stored.ended("r1", [large])
    await kept.settle()
    assert [one for _, one in await all_of(kept.store, run)] == [large]


async def test_unknown_position_is_refused(kept: Kept) -> None:
    run = await kept.stored.ended("r1", seconds(3))
    await kept.settle()
    [*_, (last, _)] = await all_of(kept.store, run)
    for position in (Position(last.xid + 1, last.id), Position(last.xid, last.id + 1)):
        with pytest.raises(OutOfRange) as refused:
            await all_of(kept.store, run, position)
        assert refused.value.reason == POSITION_UNKNOWN


async def test_reading_can_be_given_up(kept: Kept) -> None:
    run = await kept.stored.ended("r1", seconds(450))
    await kept.settle()
    batches = kept.store.read(run)
    assert await anext(batches)
    await batches.aclose()
    reading = asyncio.create_task(all_of(kept.store, run))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert len(await all_of(kept.store, run)) == 450


def rows_at(second: int) -> int:
    return row(second, second + 1).start_unix_nano
