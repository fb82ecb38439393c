"""Shipping a file so that each of its records is stored once, whenever this program or the server dies.

Not by the shipper of applications (`opsplane.logs`): that one has to spool what it can not send, while a file is its
own spool, and its batches can be made again of the same bytes.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc

from opsplane.cli.logs_files import LogFile, find
from opsplane.cli.logs_lines import Group, Joiner, parse
from opsplane.cli.logs_places import Batch, Place, PlaceFile
from opsplane.cli.output import clean
from opsplane.cli.session import call, explain
from opsplane.client import Client, details
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs.encoding import Encoder

# Never another one: a batch that is sent again by a later run must come from the same sender. Its ids are random.
_CLIENT_ID = "opsplane-logs-ship"
MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 1024 * 1024
_BATCHES_UNDER_WAY = 4
_POLL_SECONDS = 0.2
_AWAY_POLLS = 5
# A record may still get lines (of a stack trace, mostly) for so long.
_LINGER_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_GIVE_UP_SECONDS = 120.0
_TOLD_REJECTIONS = 10
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
)


@dataclass(slots=True)
class Counts:
    """What became of all records. `repeated` were stored before, by a program that died before it knew."""

    stored: int = 0
    repeated: int = 0
    rejected: int = 0
    read_bytes: int = 0

    def reject(self, where: str, why: str) -> None:
        """Tells of the first rejections, and counts all."""
        self.rejected += 1
        if self.rejected <= _TOLD_REJECTIONS:
            click.echo(f"{where}: rejected: {clean(why)}", err=True)


@dataclass(frozen=True, slots=True)
class Options:
    """How lines become records, and whether to go on at the end of a file. `level` is for lines that do not tell."""

    encoder: Encoder
    level: int
    follow: bool


@dataclass(slots=True)
class _Open:
    """Records that become the next batch."""

    records: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    size: int = 0

    def add(self, group: Group, record: bytes) -> None:
        self.records.append(record)
        self.starts.append(group.start)
        self.size += len(record)

    @property
    def full(self) -> bool:
        return len(self.records) == MAX_BATCH_RECORDS or self.size >= MAX_BATCH_BYTES


class FileShipment:
    """Ships one path: the file that it names, and with `follow` those that it comes to name."""

    def __init__(
        self,
        client: Client,
        path: Path,
        places: PlaceFile,
        options: Options,
        counts: Counts,
        stopped: asyncio.Event,
        note: Callable[[str], None],
    ) -> None:
        self._client = client
        self._path = path
        self._places = places
        self._options = options
        self._counts = counts
        self._stopped = stopped
        self._note = note
        self._room = asyncio.Semaphore(_BATCHES_UNDER_WAY)

    async def run(self) -> None:
        """Returns when the file is shipped to its end; with `follow`, when it is stopped.

        Raises AioRpcError when the server refuses, or can not be reached for two minutes without `follow`.
        """
        place = self._places.load()
        if place is not None:
            file = find(self._path, place.identity)
            if file is not None and file.size < place.end:  # it was cut off
                file.close()
                file = None
            if file is None:
                self._note(
                    f"{self._path}: the file that was shipped up to byte {place.end} is not there any more; "
                    "what may have been written to it later is not shipped"
                )
            else:
                with file:
                    await self._ship(file, place)
                    if file.is_at(self._path) and not self._options.follow:
                        return
        while not self._stopped.is_set():
            opened = await self._open()
            if opened is None:
                return
            with opened:
                place = Place(opened.identity())
                self._places.save(place)
                await self._ship(opened, place)
            if not self._options.follow:
                return

    async def _open(self) -> LogFile | None:
        """Opens the path; with `follow` as soon as there is a file. None when stopped."""
        while True:
            try:
                return LogFile(self._path)
            except FileNotFoundError:
                if not self._options.follow or not await self._pause():
                    return None

    async def _pause(self) -> bool:
        """Waits for something new; False when stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), _POLL_SECONDS)
        return not self._stopped.is_set()

    async def _ship(self, file: LogFile, place: Place) -> None:
        """Ships a file from its place on, until it has ended or the path names another one."""
        async with asyncio.TaskGroup() as batches:
            for batch in list(place.batches):
                await self._repeat(file, place, batch, batches)
            file.seek(place.end)
            await self._read(file, place, batches)
        self._places.save(place)

    async def _repeat(self, file: LogFile, place: Place, batch: Batch, batches: asyncio.TaskGroup) -> None:
        """Sends a batch again whose answer is not known."""
        if batch.done:
            return
        file.seek(batch.start)
        joiner, opened = Joiner(), _Open()
        for start, line in file.lines(end=batch.end, partial=True):
            self._add(joiner.add(line, start), opened)
        self._add(joiner.finish(), opened)
        await self._room.acquire()
        batches.create_task(self._deliver(place, batch, opened))

    async def _read(self, file: LogFile, place: Place, batches: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        joiner, opened = Joiner(), _Open()
        begin = file.position  # of the batch that is being gathered
        quiet_since = loop.time()
        away = 0

        async def send() -> None:
            nonlocal opened, begin
            end = file.position if joiner.start is None else joiner.start
            if opened.records:
                batch = Batch(begin, end, uuid.uuid4().hex)
                await self._room.acquire()
                place.batches.append(batch)
                if file.is_same(place.identity):  # it is known by more of its first bytes now
                    place.identity = file.identity()
                self._places.save(place)
                batches.create_task(self._deliver(place, batch, opened))
                opened = _Open()
            begin = end

        while True:
            # Whoever writes may do so for a moment after the file got another name.
            away = 0 if file.is_at(self._path) else away + 1
            ended = not self._options.follow or away > _AWAY_POLLS or file.is_cut_off(place.identity)
            for start, line in file.lines(partial=ended):
                self._counts.read_bytes += len(line) + 1
                quiet_since = loop.time()
                self._add(joiner.add(line, start), opened)
                if opened.full:
                    await send()
                if self._stopped.is_set():
                    return await send()
            if ended or self._stopped.is_set() or loop.time() - quiet_since > _LINGER_SECONDS:
                self._add(joiner.finish(), opened)
            await send()
            if ended or not await self._pause():
                return None

    def _add(self, group: Group | None, opened: _Open) -> None:
        if group is not None:
            entry = parse(group, self._options.level)
            opened.add(group, self._options.encoder.values(entry.level, entry.message, entry.fields))

    async def _deliver(self, place: Place, batch: Batch, opened: _Open) -> None:
        try:
            # Each record is encoded as a batch of one: joined they are a batch.
            content = records_pb2.LogBatch.FromString(b"".join(opened.records))
            content.batch_id = batch.batch_id
            result = await self._write(content)
        finally:
            self._room.release()
        place.finish(batch)
        if result.duplicate:
            self._counts.repeated += result.stored_count
        else:
            self._counts.stored += result.stored_count
        for one in result.rejected_records:
            self._counts.reject(
                f"{self._path} at byte {opened.starts[one.index]}", f"{one.field} {one.message}".strip()
            )

    async def _write(self, content: records_pb2.LogBatch) -> records_pb2.BatchResult:
        """Sends a batch until there is an answer."""
        loop = asyncio.get_running_loop()
        request = logingest_pb2.WriteLogsRequest(batch=content)
        request.settings.client_id = _CLIENT_ID
        pause, since = _FIRST_PAUSE_SECONDS, loop.time()
        told = False
        while True:
            try:
                response = await call(self._client.log_ingest.WriteLogs, request, logingest_pb2.WriteLogsResponse)
            except grpc.aio.AioRpcError as error:
                asked = details(error).retry_after
                passing = error.code() in _PASSING or asked is not None
                lasting = not self._options.follow and loop.time() - since > _GIVE_UP_SECONDS
                if not passing or lasting or self._stopped.is_set():
                    raise
                if not told:
                    told = True
                    self._note(f"waiting: {explain(error, self._client.address)}")
                await asyncio.sleep(max(pause, asked.total_seconds() if asked else 0.0))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                return response.result
