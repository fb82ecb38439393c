"""Storing a group: duplicates answered as before, and nothing lost because of one record that PostgreSQL refuses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog
from opsplane.logingest.v1 import records_pb2

from opsplane_server.errors import InvalidArgument, OpsplaneError
from opsplane_server.logingest.acceptance import Acceptance
from opsplane_server.logingest.group import Batch, Prepared, Refusal, prepare, refusal
from opsplane_server.logingest.model import Durability
from opsplane_server.logingest.rules import Reason, Violation
from opsplane_server.logingest.write_ports import Answer, BatchKey, RecordsRefused, RecordWriter

log = structlog.get_logger(__name__)

Outcome: TypeAlias = records_pb2.BatchResult | OpsplaneError
"""The answer to a batch, or what is wrong with its stream."""

_NOT_STORABLE: Final = Violation("", Reason.REASON_STORAGE, "the database refuses this record")


@dataclass(slots=True)
class _Part:
    """What one transaction stores: batches by index, under one identity however often it is tried."""

    batches: list[int]
    group_id: int | None = None


class GroupWork:
    """A group on its way into the database.

    It outlives the connection: after a lost one `run` goes on with another, where a transaction whose outcome nobody
    knows is tried again under the same identity and stored once.
    """

    def __init__(self, submitted: Sequence[tuple[str, bytes]], acceptance: Acceptance, durability: Durability) -> None:
        """`submitted`: the sender of each batch, and its message."""
        self._durability = durability
        self._prepared: Prepared = prepare(
            [message for _, message in submitted], acceptance.window(), time.time_ns() // 1000
        )
        self._keys = [
            BatchKey(sender, batch.batch_id) if batch.batch_id else None
            for (sender, _), batch in zip(submitted, self._prepared.batches, strict=True)
        ]
        self._outcomes: dict[int, Outcome] = {}
        self._parts = self._divide()
        self.stored_count = 0

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """What became of each batch, when `run` has returned."""
        return [self._outcomes[index] for index in range(len(self._keys))]

    async def run(self, writer: RecordWriter) -> None:
        """Stores what is not stored yet. Raises Unavailable, after which it can be called again."""
        while self._parts:
            part = self._parts[0]
            try:
                await self._store(writer, part)
            except RecordsRefused as error:
                log.warning("the database refused records", batches=len(part.batches), detail=str(error))
                if len(part.batches) > 1:
                    self._parts[0:1] = [_Part([index]) for index in part.batches]
                else:
                    await self._find_refused(writer, self._batch(part.batches[0]))
                continue
            self._parts.pop(0)

    def _batch(self, index: int) -> Batch:
        return self._prepared.batches[index]

    def _divide(self) -> list[_Part]:
        """All in one transaction, but for batches with the id of another one among them: those come after it."""
        parts: list[_Part] = []
        seen: dict[BatchKey, int] = {}
        for index, key in enumerate(self._keys):
            batch = self._batch(index)
            if batch.with_settings:
                self._outcomes[index] = InvalidArgument.of("settings", "are in the first message of a stream alone")
            elif batch.refusal is not None:
                self._outcomes[index] = batch.result()
            else:
                turn = 0 if key is None else seen.get(key, 0)
                if key is not None:
                    seen[key] = turn + 1
                while len(parts) <= turn:
                    parts.append(_Part([]))
                parts[turn].batches.append(index)
        return parts

    async def _store(self, writer: RecordWriter, part: _Part) -> None:
        while part.batches:
            if part.group_id is None:
                part.group_id = await writer.reserve()
            batches = [self._batch(index) for index in part.batches]
            encoded = self._prepared.encode(part.group_id, batches)
            results = {index: self._batch(index).result() for index in part.batches}
            answers = {
                key: Answer(self._batch(index).record_count, result.SerializeToString())
                for index, result in results.items()
                if (key := self._keys[index]) is not None
            }
            known = await writer.store(part.group_id, encoded, answers, self._durability)
            if not known:
                self._outcomes.update(results)
                self.stored_count += 0 if encoded is None else encoded.record_count
                return
            for index in part.batches.copy():
                key = self._keys[index]
                if key is not None and key in known:
                    self._outcomes[index] = _again(self._batch(index), known[key])
                    part.batches.remove(index)

    async def _find_refused(self, writer: RecordWriter, batch: Batch) -> None:
        """Marks the records of a batch that PostgreSQL does not take, found by halves."""
        rows = [row for row in range(batch.start, batch.stop) if row - batch.start not in batch.rejected]
        waiting = [rows]
        while waiting:
            some = waiting.pop()
            encoded = self._prepared.encode_rows(0, some)
            if encoded is None or await writer.accepts(encoded):
                continue
            if len(some) == 1:
                batch.rejected[some[0] - batch.start] = _NOT_STORABLE
                continue
            middle = len(some) // 2
            waiting += [some[:middle], some[middle:]]


def _again(batch: Batch, first: Answer) -> records_pb2.BatchResult:
    """The answer to a batch whose id was used before."""
    if batch.record_count != first.record_count:
        batch.refusal = refusal(
            Refusal.REASON_BATCH_ID_REUSED, f"batch_id: was used for a batch of {first.record_count} records"
        )
        return batch.result()
    result = records_pb2.BatchResult.FromString(first.result)
    result.duplicate = True
    return result
