"""What is done in the background for stored records, over a real database."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from opsplane.logingest.v1 import logingest_pb2
from opsplane_server.errors import Aborted, DataLoss, Unavailable
from opsplane_server.logingest.archive import ArchiveFile
from opsplane_server.logingest.stores.postgres import (
    PostgresDays,
    PostgresIndexes,
    PostgresPartitions,
    PostgresPruning,
    PostgresRollups,
)
from opsplane_server.logingest.upkeep import Upkeep
from opsplane_server.storage.database import Database
from opsplane_server.storage.leadership import PostgresLeadership

from tests import logingest_reading
from tests.logingest_reading import NOON, Reading, reading, record
from tests.waiting import until

OLD = NOON - timedelta(days=40)
LONG = random.Random(1).randbytes(900).hex()  # noqa: S311 # what does not compress


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[Reading]:
    async with reading(dsn) as opened:
        yield opened


def upkeep(reader: Reading, *, archive: Path | None = None, interval: float = 60.0, now: datetime = NOON) -> Upkeep:
    database = reader.database
    return Upkeep(
        PostgresLeadership(database, "logingest.upkeep"),
        PostgresRollups(database),
        PostgresDays(database, PostgresPartitions(database)),
        PostgresIndexes(database),
        PostgresPruning(database),
        reader.signals.topic("logingest_groups"),
        archive=archive,
        interval=timedelta(seconds=interval),
        now=lambda: now,
    )


async def tables(reader: Reading) -> list[str]:
    names = await reader.value(
        """SELECT array_agg(relname ORDER BY relname) FROM pg_class
           WHERE relnamespace = 'logingest'::regnamespace AND relkind = 'r' AND relname ~ '_[0-9]{8}$'"""
    )
    return list(names or ())


async def messages(reader: Reading) -> list[str]:
    page = await reader.stub.SearchLogs(logingest_pb2.SearchLogsRequest(page_size=1000))
    return [entry.record.message for entry in page.entries]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def lines(files: Sequence[Path]) -> list[dict[str, Any]]:
    [file] = files
    with gzip.open(file, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


# --- days


async def test_days_are_created_by_many_at_once_while_records_are_written(reader: Reading) -> None:
    await reader.partitions.ensure_days([NOON.date()])
    days = [NOON.date() + timedelta(days=ahead) for ahead in range(6)]
    async with Database(reader.dsn) as other, other.transaction() as writing:
        await logingest_reading.store(writing, [record()])  # a COPY whose transaction stays open
        async with asyncio.timeout(30):
            await asyncio.gather(*(PostgresPartitions(reader.database).ensure_days(days) for _ in range(5)))
    assert await tables(reader) == [f"records_{day:%Y%m%d}" for day in days]
    indexes = await reader.value("SELECT count(*) FROM pg_indexes WHERE tablename ~ '^records_' AND indexdef ~ 'brin'")
    assert indexes == 2 * len(days)
    assert await messages(reader) == ["hello"]


async def test_days_are_ready_before_they_are_needed(reader: Reading) -> None:
    await upkeep(reader).ensure_days()
    assert f"records_{NOON + timedelta(days=2):%Y%m%d}" in await tables(reader)


# --- retention


async def test_old_days_go_with_their_figures(reader: Reading) -> None:
    await reader.store(record("old", timestamp=OLD), record("new"))
    await reader.store(record("edge", timestamp=NOON - timedelta(days=30)))
    assert await upkeep(reader).retain() == [OLD.date()]
    assert await messages(reader) == ["new", "edge"]
    stats = await reader.stub.GetStats(logingest_pb2.GetStatsRequest())
    assert stats.total_count == 2
    assert await upkeep(reader).retain() == []
    assert await tables(reader) == ["records_20261021", "records_20261120"]


async def test_a_day_is_kept_until_none_of_its_records_can_be_on_the_way(reader: Reading) -> None:
    await reader.store(record("last", timestamp=datetime(2026, 10, 20, 23, 59, 59, tzinfo=UTC)))
    limit = datetime(2026, 11, 20, tzinfo=UTC)  # its last moment is 30 days old
    assert await upkeep(reader, now=limit + timedelta(minutes=59)).retain() == []
    assert await upkeep(reader, now=limit + timedelta(hours=1)).retain() == [date(2026, 10, 20)]


async def test_writers_and_readers_do_not_wait_for_a_day_that_goes(reader: Reading) -> None:
    await reader.store(record("old", timestamp=OLD), record("new"))
    reader_connection = await asyncpg.connect(reader.dsn)
    transaction = reader_connection.transaction()
    await transaction.start()
    await reader_connection.fetch("SELECT * FROM logingest.records")  # a slow reader, for whom the removal waits
    removing = asyncio.create_task(upkeep(reader).retain())
    await until(
        lambda: reader.value(
            """SELECT count(*) > 0 FROM pg_stat_activity
               WHERE query ~ '^ALTER.*CONCURRENTLY' AND wait_event_type = 'Lock'"""
        )
    )
    async with asyncio.timeout(20):
        async with reader.database.connection() as connection:
            await logingest_reading.store(connection, [record("meanwhile")])
        assert "meanwhile" in await messages(reader)
    await transaction.commit()
    await reader_connection.close()
    assert await removing == [OLD.date()]


async def test_goes_on_where_a_removal_was_cut_off(reader: Reading) -> None:
    await reader.store(record("a", timestamp=OLD), record("b", timestamp=OLD + timedelta(days=1)), record("new"))
    await reader.value("ALTER TABLE logingest.records DETACH PARTITION logingest.records_20261012")  # and died
    holder = await asyncpg.connect(reader.dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.fetch("SELECT * FROM logingest.records_20261011")
    cut_off = await asyncpg.connect(reader.dsn, server_settings={"statement_timeout": "300ms"})
    with pytest.raises(asyncpg.QueryCanceledError):
        await cut_off.execute("ALTER TABLE logingest.records DETACH PARTITION logingest.records_20261011 CONCURRENTLY")
    await cut_off.close()
    await transaction.commit()
    await holder.close()
    with pytest.raises(Unavailable):
        await reader.partitions.ensure_days([date(2026, 10, 12)])
    assert await upkeep(reader).retain() == [date(2026, 10, 11), date(2026, 10, 12)]
    assert await tables(reader) == ["records_20261120"]


# --- archive


async def test_an_archived_day_can_be_loaded_again(reader: Reading, tmp_path: Path) -> None:
    old = [
        record('quo"te, \\ and\nline', timestamp=OLD, metadata={"a": [1, None, "\x02ü"]}, duration_ms=1.1),
        record("plain", timestamp=OLD + timedelta(microseconds=1), http_status=404, stack_trace="\x01\x02"),
    ]
    group = await reader.store(*old)
    before = await reader.value("SELECT json_agg(r ORDER BY id)::text FROM logingest.records AS r")
    assert await upkeep(reader, archive=tmp_path).retain() == [OLD.date()]
    [file] = files_of(tmp_path)
    assert file.name.startswith("logs-2026-10-11-")
    assert [line["id"] for line in lines([file])] == [group, group + 1]
    assert await tables(reader) == []
    # As docs/logs-search.md says:
    await reader.partitions.ensure_days([OLD.date()])
    async with reader.database.transaction() as connection:
        await connection.execute("CREATE TEMPORARY TABLE archived (line text) ON COMMIT DROP")
        source = tmp_path / "plain"
        source.write_bytes(gzip.decompress(file.read_bytes()))
        await connection.copy_to_table("archived", source=source, format="csv", quote="\x01", delimiter="\x02")
        await connection.execute(
            """INSERT INTO logingest.records
               SELECT (json_populate_record(NULL::logingest.records, line::json)).* FROM archived"""
        )
    assert await reader.value("SELECT json_agg(r ORDER BY id)::text FROM logingest.records AS r") == before


CRASH = """
import asyncio, os, sys
from datetime import date
from pathlib import Path
from opsplane_server.logingest import archive
from opsplane_server.logingest.archive import ArchiveFile
from opsplane_server.logingest.stores.postgres import PostgresDays, PostgresPartitions
from opsplane_server.storage.database import Database

def die(*args, **kwargs):
    os.kill(os.getpid(), 9)

dsn, folder, point = sys.argv[1:]
if point == "writing":
    write = ArchiveFile._write = ArchiveFile.write
    async def some(self, data):
        await write(self, data)
        self._gzip.flush()
        die()
    ArchiveFile.write = some
elif point == "written":
    archive.os.rename = die
elif point == "renamed":
    rename = os.rename
    archive.os.rename = lambda *paths: (rename(*paths), die())
elif point == "dropping":
    finish = ArchiveFile.finish
    async def then_die(self, lines):
        await finish(self, lines)
        die()
    ArchiveFile.finish = then_die

async def main():
    async with Database(dsn) as database:
        days = PostgresDays(database, PostgresPartitions(database))
        await days.expire_before(date(2026, 11, 1))
        await days.remove(date(2026, 10, 11), Path(folder))

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["writing", "written", "renamed", "dropping"])
async def test_a_kill_leaves_the_day_or_the_whole_file(reader: Reading, tmp_path: Path, point: str) -> None:
    await reader.store(*(record(f"{number}", timestamp=OLD) for number in range(1000)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASH, reader.dsn, str(tmp_path), point, stderr=subprocess.PIPE
    )
    _, output = await process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    files = [file for file in files_of(tmp_path) if file.suffix == ".gz"]
    if files:
        assert len(lines(files)) == 1000
    assert await tables(reader) == ["expired_20261011"], "it is dropped last"
    await until(
        lambda: reader.value(
            "SELECT count(*) = 0 FROM pg_locks WHERE relation = 'logingest.expired_20261011'::regclass"
        )
    )
    assert await upkeep(reader, archive=tmp_path).retain() == [OLD.date()]
    assert [line["message"] for line in lines(files_of(tmp_path))] == [str(number) for number in range(1000)]
    assert await tables(reader) == []


async def test_a_day_that_can_not_be_archived_stays(reader: Reading, tmp_path: Path) -> None:
    await reader.store(record(timestamp=OLD), record("new"))
    blocked = tmp_path / "file"
    blocked.touch()
    assert await upkeep(reader, archive=blocked / "folder").retain() == []
    assert "expired_20261011" in await tables(reader)
    assert await upkeep(reader, archive=tmp_path / "folder").retain() == [OLD.date()]


async def test_an_incomplete_file_is_found_out(tmp_path: Path) -> None:
    async with ArchiveFile(tmp_path / "a.gz") as file:
        await file.write(b"1\n2\n")
        with pytest.raises(DataLoss):
            await file.finish(3)
    assert files_of(tmp_path) == []


# --- indexes and pruning


async def test_summaries_follow_what_is_written(reader: Reading) -> None:
    for group in range(12):
        await reader.store(*(record(LONG, trace_id=f"{group}-{n}") for n in range(700)))
    indexes = PostgresIndexes(reader.database)
    assert await indexes.summarize(10) == 10
    ranges = 10 + await indexes.summarize(1000)
    pages = await reader.value("SELECT pg_relation_size('logingest.records_20261120') / 8192")
    assert ranges == (pages - 512) // 64
    assert await indexes.summarize(1000) == 0
    assert await indexes.summarize_filters(1000) == (pages - 1024) // 64
    assert await PostgresIndexes(reader.database).summarize(1000) == 0, "what others did is found done"


async def test_a_full_range_of_different_ids_has_room_in_its_summary(reader: Reading) -> None:
    for group in range(40):
        names = [f"{group}-{number}" for number in range(1000)]
        await reader.store(*(record("x", trace_id=name, user_id=name, request_id=name) for name in names))
    summarized = await reader.value("SELECT brin_summarize_new_values('logingest.records_20261120_bloom')")
    assert summarized > 5


async def test_past_days_get_their_indexes_even_after_a_broken_attempt(reader: Reading) -> None:
    await reader.store(record("yesterday", timestamp=NOON - timedelta(days=1)), record("today"))
    with pytest.raises(asyncpg.PostgresError):
        await reader.value(
            "CREATE INDEX CONCURRENTLY records_20261119_words ON logingest.records_20261119 ((1 / (level - 3)))"
        )
    assert await upkeep(reader).index() == [date(2026, 11, 19)]
    assert await upkeep(reader).index() == []
    names = await reader.value(
        "SELECT array_agg(indexname ORDER BY 1) FROM pg_indexes WHERE indexdef LIKE '%USING gin%'"
    )
    assert names == ["records_20261119_metadata", "records_20261119_words"]


async def test_answers_to_batches_are_forgotten_in_steps(reader: Reading) -> None:
    await reader.value(
        """INSERT INTO logingest.batches
           SELECT 's', n::text, 1, '', now() - n * interval '1 day' FROM generate_series(0, 29) AS n"""
    )
    pruning = PostgresPruning(reader.database)
    assert await pruning.prune_batches(timedelta(days=14), 10) == 10
    assert await pruning.prune_batches(timedelta(days=14), 10) == 6
    assert await reader.value("SELECT count(*) FROM logingest.batches") == 14


# --- one process of all


async def test_one_process_leads_until_it_is_cut_off(reader: Reading) -> None:
    first, second = (PostgresLeadership(reader.database, "test") for _ in range(2))
    async with first.leading() as leads:
        assert leads
        await first.check()
        async with second.leading() as leads_too:
            assert not leads_too
            with pytest.raises(Unavailable):
                await second.check()
        await reader.value(
            """SELECT count(pg_terminate_backend(pid)) FROM pg_locks
               WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"""
        )
        with pytest.raises(Unavailable):
            await first.check()
    async with second.leading() as leads:
        assert leads


async def test_does_it_all_by_itself(reader: Reading, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    await reader.store(record(timestamp=now - timedelta(days=40)), record(timestamp=now - timedelta(days=3)))
    async with upkeep(reader, archive=tmp_path, interval=0.1, now=now):
        await reader.store(record(timestamp=now))

        async def done() -> bool:
            counted = await reader.value("SELECT sum(count) FROM logingest.rollups WHERE width = 1440")
            indexed = await reader.value("SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%_words'")
            ready = f"records_{now + timedelta(days=2):%Y%m%d}" in await tables(reader)
            return counted == 2 and indexed >= 1 and ready and len(files_of(tmp_path)) == 1

        await until(done)


async def test_a_partition_that_is_being_indexed_does_not_keep_others_waiting(reader: Reading) -> None:
    for day in (0, 1):
        moment = NOON - timedelta(days=day)
        for _ in range(12):
            await reader.store(*(record(LONG, timestamp=moment) for _ in range(700)))
    indexes = PostgresIndexes(reader.database)
    async with reader.database.transaction() as connection:
        await connection.execute("LOCK TABLE logingest.records_20261120 IN SHARE UPDATE EXCLUSIVE MODE")
        summarizing = asyncio.create_task(indexes.summarize(1000))
        first = await summarizing
    assert first > 5
    assert await indexes.summarize(1000) == first


async def test_a_day_that_is_in_use_goes_later(reader: Reading) -> None:
    await reader.store(record(timestamp=OLD))
    holder = await asyncpg.connect(reader.dsn)
    transaction = holder.transaction()
    await transaction.start()
    days = PostgresDays(reader.database, reader.partitions)
    assert await days.expire_before(date(2026, 11, 1)) == [OLD.date()]
    await holder.fetch("SELECT * FROM logingest.expired_20261011")
    with pytest.raises(Aborted):
        await days.remove(OLD.date(), None)
    await transaction.commit()
    await holder.close()
    await days.remove(OLD.date(), None)
    assert await tables(reader) == []
