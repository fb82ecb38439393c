"""Rows are read in processes of their own, within limits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.datasets.generating import generate
from opsplane_server.loadtesting.datasets.model import RowFormat
from opsplane_server.loadtesting.datasets.parsing import parse
from opsplane_server.loadtesting.datasets.reading import ReadingLimits, RowReader
from opsplane_server.loadtesting.users.model import (
    Choice,
    GeneratedField,
    Generator,
    Hex,
    IntegerRange,
    Made,
    Sequence,
    Template,
    TimestampRange,
)

from tests.integration.loadtesting.datasets.workers import workers
from tests.waiting import until

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, UTC)
DAY = timedelta(days=1)
MIB = 1024 * 1024


async def test_files_are_read_as_here() -> None:
    content = "id,name\n1,Größe\n2,\n".encode()
    async with RowReader() as reader:
        assert await reader.parse(RowFormat.CSV, content) == parse(RowFormat.CSV, content)
        with pytest.raises(InvalidArgument) as refusal:
            await reader.parse(RowFormat.JSON, content)
    assert [violation.field for violation in refusal.value.violations] == ["data_set.upload.content"]
    assert not workers()


async def test_every_kind_of_field_is_made_up_as_here() -> None:
    kinds: tuple[Any, ...] = (
        IntegerRange(1, 9),
        Sequence(5),
        Made.UUID,
        Made.PRIVATE_IP,
        Hex(7),
        TimestampRange(2 * DAY, DAY),
        Choice(("a", "b"), (1.0, 2.0)),
        Template("{{row.f0}} {{now}}"),
    )
    generator = Generator(20, tuple(GeneratedField(f"f{number}", kind) for number, kind in enumerate(kinds)))
    async with RowReader() as reader:
        made = await reader.generate(generator, pool="p", seed=7, now=NOW)
    assert made == generate(generator, pool="p", seed=7, now=NOW)


async def test_many_short_rows_need_little_memory() -> None:
    content = b"id\n" + b"".join(b"%d\n" % number for number in range(300_000))
    async with RowReader(ReadingLimits(memory_bytes=256 * MIB)) as reader:
        rows = await reader.parse(RowFormat.CSV, content)
    assert rows.row_count == 300_000
    assert rows.lines.endswith(b'\n{"id":299999}')


async def test_file_beyond_the_memory_of_its_process_is_refused() -> None:
    content = b"[" + b"{}," * 3_000_000 + b"{}]"
    async with RowReader(ReadingLimits(memory_bytes=256 * MIB)) as reader:
        with pytest.raises(InvalidArgument, match="more memory"):
            await reader.parse(RowFormat.JSON, content)
    assert not workers()


async def test_rows_beyond_their_time_are_refused() -> None:
    endless = Generator(1_000_000, tuple(GeneratedField(f"f{number}", Hex(1)) for number in range(50)))
    async with RowReader(ReadingLimits(timeout=timedelta(seconds=0.5))) as reader:
        with pytest.raises(FailedPrecondition, match=r"was not done after 0\.5 s"):
            await reader.generate(endless, pool="p", seed=1, now=NOW)
    assert not workers()


async def test_cancelled_and_left_processes_end() -> None:
    endless = Generator(1_000_000, tuple(GeneratedField(f"f{number}", Hex(1)) for number in range(50)))
    async with RowReader() as reader:
        making = [asyncio.create_task(reader.generate(endless, pool="p", seed=1, now=NOW)) for _ in range(3)]
        await until(lambda: len(workers()) == 2)  # the third has no place yet
        making[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await making[0]
    with pytest.raises(FailedPrecondition, match="more memory or time"):
        await making[1]
    making[2].cancel()
    await asyncio.gather(*making, return_exceptions=True)
    assert not workers()
