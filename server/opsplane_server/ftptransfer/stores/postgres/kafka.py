"""Messages of Kafka and results for it, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorCode
from opsplane_server.ftptransfer.model import Admission
from opsplane_server.ftptransfer.ports import TransferIntake
from opsplane_server.ftptransfer.queues.kafka.messages import Record, Rejected, Result, TaskMessage
from opsplane_server.ftptransfer.queues.kafka.ports import Admitted
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import SETTLED, Position
from opsplane_server.storage.signals import Signal

_REJECTED_DAYS: Final = 30


class PostgresInbox:
    """Tasks go the way of all transfers, through `intake`; here is what happens to messages that are none.

    `worker` counts them in its totals. Hints go to `work` when there are new tasks, and to `changes` always: something
    may be to publish.
    """

    def __init__(
        self, database: Database, intake: TransferIntake, *, work: Signal, changes: Signal, worker: str
    ) -> None:
        self._database = database
        self._intake = intake
        self._work = work
        self._changes = changes
        self._worker = worker

    async def admit(self, tasks: Sequence[TaskMessage], rejected: Sequence[Rejected]) -> Admitted:
        """Keeps all of them in one transaction."""
        new = 0
        refused = list(rejected)
        async with self._database.transaction():
            if tasks:
                admissions = await self._intake.admit([task.transfer for task in tasks])
                for task, (admission, _) in zip(tasks, admissions, strict=True):
                    if admission is Admission.CONFLICT:
                        why = "task_id: is that of another task, between other places"
                        refused.append(Rejected(task.record, why, task.transfer.message))
                new = sum(admission is Admission.NEW for admission, _ in admissions)
            count = await self._reject(refused) if refused else 0
        self._work.notify()
        self._changes.notify()
        return Admitted(new=new, known=len(tasks) + len(rejected) - new - count, rejected=count)

    async def backlog(self) -> int:
        """About how many transfers have not ended."""
        return await self._intake.backlog()

    async def _reject(self, rejected: Sequence[Rejected]) -> int:
        """How many of them are new."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                """
                WITH given AS (
                    SELECT *
                    FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[])
                        WITH ORDINALITY AS g (topic, "partition", "offset", time, content, why, raw, place)
                ), new AS (
                    INSERT INTO ftptransfer.rejected_messages (topic, "partition", "offset", time)
                    SELECT topic, "partition", "offset", time FROM given
                    ON CONFLICT DO NOTHING
                    RETURNING topic, "partition", "offset", time
                )
                INSERT INTO ftptransfer.outbox
                    (status, message, error_code, error_message, topic, "partition", "offset", raw)
                SELECT 'failed', nullif(content, '')::jsonb, $8, why, topic, "partition", "offset", raw
                FROM given JOIN new USING (topic, "partition", "offset", time) ORDER BY place
                RETURNING id
                """,
                [one.record.topic for one in rejected],
                [one.record.partition for one in rejected],
                [one.record.offset for one in rejected],
                [one.record.time for one in rejected],
                [one.content for one in rejected],
                [one.why for one in rejected],
                [one.record.text for one in rejected],
                ErrorCode.INVALID_CONFIG.value,
            )
            await connection.execute(
                """INSERT INTO ftptransfer.totals AS t (worker, malformed) VALUES ($1, $2)
                   ON CONFLICT (worker) DO UPDATE SET malformed = t.malformed + excluded.malformed""",
                self._worker,
                len(rows),
            )
            await connection.execute(
                "DELETE FROM ftptransfer.rejected_messages WHERE create_time < now() - $1::interval",
                timedelta(days=_REJECTED_DAYS),
            )
        return len(rows)


class PostgresOutbox:
    """The table to which the ends of transfers append."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lease(self, owner: str, seconds: float) -> str | None:
        """Makes `owner` the publisher, unless another one is; the outbox's name."""
        async with self._database.connection() as connection:
            name = await connection.fetchval(
                """UPDATE ftptransfer.publisher SET owner = $1, lease_end = now() + $2::interval
                   WHERE owner = $1 OR lease_end < now() RETURNING name::text""",
                owner,
                timedelta(seconds=seconds),
            )
        return str(name) if name is not None else None

    async def leave(self, owner: str) -> None:
        """Ends the lease at once."""
        async with self._database.connection() as connection:
            await connection.execute("UPDATE ftptransfer.publisher SET lease_end = '-infinity' WHERE owner = $1", owner)

    async def unpublished(self, after: Position, limit: int) -> Sequence[tuple[Position, Result]]:
        """The next results behind a position, in order; none that an open transaction can still precede."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT xid::text::bigint AS xid, id, status, message::text AS message, bytes_transferred, duration,
                           end_time, error_code, error_message, topic, "partition", "offset", raw
                    FROM ftptransfer.outbox WHERE (xid, id) > ($1::text::xid8, $2) AND {SETTLED}
                    ORDER BY xid, id LIMIT $3""",
                str(after.xid),
                after.id,
                limit,
            )
        return [
            (
                Position(row["xid"], row["id"]),
                Result(
                    status=row["status"],
                    content=row["message"] or "",
                    bytes_transferred=row["bytes_transferred"],
                    duration=row["duration"].total_seconds(),
                    end_time=row["end_time"],
                    error_code=row["error_code"] or "",
                    error_message=row["error_message"] or "",
                    record=None
                    if row["topic"] is None
                    else Record(row["topic"], row["partition"], row["offset"], 0, (row["raw"] or "").encode()),
                ),
            )
            for row in rows
        ]

    async def published(self, through: Position) -> None:
        """Forgets the results up to a position, and keeps the position."""
        async with self._database.transaction() as connection:
            xid = str(through.xid)
            await connection.execute(
                "DELETE FROM ftptransfer.outbox WHERE (xid, id) <= ($1::text::xid8, $2)", xid, through.id
            )
            await connection.execute(
                "UPDATE ftptransfer.publisher SET last_xid = $1::text::xid8, last_id = $2", xid, through.id
            )

    async def confirm(self, position: Position) -> bool:
        """Like `published`, if this database ever came to that position."""
        async with self._database.transaction() as connection:
            known = await connection.fetchval(
                """SELECT EXISTS (SELECT FROM ftptransfer.publisher WHERE (last_xid, last_id) = ($1::text::xid8, $2))
                       OR EXISTS (SELECT FROM ftptransfer.outbox WHERE (xid, id) = ($1::text::xid8, $2))""",
                str(position.xid),
                position.id,
            )
            if known:
                await self.published(position)
        return bool(known)

    async def rename(self, owner: str) -> None:
        """Gives the outbox another name, if `owner` still is the publisher."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE ftptransfer.publisher SET name = gen_random_uuid(), last_xid = '0', last_id = 0
                   WHERE owner = $1 AND lease_end > now()""",
                owner,
            )
