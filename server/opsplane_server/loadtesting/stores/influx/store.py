"""A copy of rows in InfluxDB 2; `points` says how they are kept there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from influxdb_client.client.flux_table import FluxRecord

from opsplane_server.errors import OutOfRange
from opsplane_server.loadtesting.history.port import POSITION_UNKNOWN, Placed
from opsplane_server.loadtesting.history.series import SeriesNames
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.stores.influx import points
from opsplane_server.loadtesting.stores.influx.client import InfluxClient, InfluxTarget, literal
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.followers import Position

# Of a request: InfluxDB advises 5000 points, and proxies before it often take a megabyte.
_LINES: Final = 5000
_CHARACTERS: Final = 500_000

_BATCH: Final = 200


class InfluxMetricStore:
    """`history.port.MetricCopy` on a bucket of InfluxDB 2."""

    def __init__(self, client: InfluxClient, target: InfluxTarget) -> None:
        self._client = client
        self._bucket = target.bucket

    async def check(self) -> str:
        """See the port."""
        return await self._client.identify()

    async def write(self, run: Run, first: int, rows: Sequence[Placed], names: SeriesNames) -> None:
        """See the port."""
        lines = points.of_rows(run, first, rows, names)
        refused: OutOfRange | None = None
        # Rendering takes a while where there are many series.
        while some := await asyncio.to_thread(_take, lines):
            try:
                await self._client.write(some)
            except OutOfRange as error:
                refused = error
        if refused is not None:
            raise refused

    async def finish(self, run: Run, rows: int) -> None:
        """See the port."""
        await self._client.write(list(points.of_end(run, rows)))

    async def forget(self, name: str) -> None:
        """See the port."""
        await self._client.delete(" AND ".join(f'{tag}="{value}"' for tag, value in points.tags(name).items()))

    async def read(self, run: Run, after: Position = Position.START) -> AsyncGenerator[list[Placed], None]:
        """See the port."""
        count = await self._count(run)
        number = 0 if after == Position.START else await self._number(run, after)
        while number < count:
            last = min(number + _BATCH, count)
            records = await self._client.query(f"{self._history(run, number + 1, last)} |> {_AS_ROWS}")
            found = await asyncio.to_thread(_unpacked, records)
            if sorted(found) != list(range(number + 1, last + 1)):
                raise _lacks(run)
            number = last
            yield [found[number] for number in sorted(found)]

    async def _count(self, run: Run) -> int:
        records = await self._client.query(self._history(run, 0, 0, fields=(points.ROWS,)))
        if not records:
            raise _lacks(run)
        return int(records[0].values["_value"])

    async def _number(self, run: Run, position: Position) -> int:
        """The number of the row at a position."""
        everything = self._history(run, 1, 2**40, fields=("number", "xid", "id"))
        found = await self._client.query(f"{everything} |> {_AS_ROWS} |> filter(fn: (r) => r.id == {position.id})")
        if not found or found[0].values["xid"] != position.xid:
            raise OutOfRange(f"InfluxDB has no such position of {run.name}", reason=POSITION_UNKNOWN)
        return int(found[0].values["number"])

    def _history(self, run: Run, first: int, last: int, *, fields: Iterable[str] = ()) -> str:
        """The query of the rows from one number to another, each field by itself; the number 0 has their count."""
        start, stop = (_time(origin(run) + number) for number in (first, last + 1))
        conditions = [f"r._measurement == {literal(points.HISTORY)}"]
        conditions += [f"r.{tag} == {literal(value)}" for tag, value in points.tags(run.name).items()]
        if fields:
            conditions.append("(" + " or ".join(f"r._field == {literal(field)}" for field in fields) + ")")
        return (
            f"from(bucket: {literal(self._bucket)}) |> range(start: {start}, stop: {stop})"
            f" |> filter(fn: (r) => {' and '.join(conditions)})"
        )


_AS_ROWS: Final = 'pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")'


def _unpacked(records: Iterable[FluxRecord]) -> dict[int, Placed]:
    """The rows by their numbers."""
    return {number: (position, row) for number, position, row in (points.packed_row(one.values) for one in records)}


def _take(lines: Iterator[str]) -> list[str]:
    """The next lines that make a request; none when there are no more."""
    taken, characters = [], 0
    for line in islice(lines, _LINES):
        taken.append(line)
        characters += len(line)
        if characters >= _CHARACTERS:
            break
    return taken


def _time(nanoseconds: int) -> str:
    """A time in Flux, which knows nanoseconds; datetimes do not."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _lacks(run: Run) -> OutOfRange:
    return OutOfRange(f"InfluxDB has not all rows of {run.name}", reason="HISTORY_INCOMPLETE")
