"""Runs and their windows in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import asyncpg
from pydantic import TypeAdapter

from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.metrics.packing import pack, unpack
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.model import LogLine, Outcome, Run, RunEnd, RunPlan, RunState
from opsplane_server.loadtesting.stores.postgres.listing import page_of
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import SETTLED, Position

COLUMNS = {
    "state": "r.state",
    "verdict": "r.verdict",
    "title": "r.title",
    "creator": "r.creator",
    "create_time": "r.create_time",
}
ACTIVE = "state IN ('PENDING', 'RUNNING', 'STOPPING')"

# The script may be large and is read by itself.
SELECT = """
SELECT r.key, r.project_id, r.id, r.title, r.description, r.creator, r.trace_id, r.plan, r.state, r.verdict,
       r.failure_reason, r.failure_message, r.notes, r.generator_version, r.outcome, r.operation,
       r.create_time, r.start_time, r.end_time
FROM loadtesting.runs r
"""

_plan = TypeAdapter(RunPlan)
_outcome = TypeAdapter(Outcome)


def _run(row: asyncpg.Record) -> Run:
    return Run(
        name=names.run(row["project_id"], row["id"]),
        title=row["title"],
        description=row["description"],
        plan=_plan.validate_json(row["plan"]),
        creator=row["creator"],
        trace_id=row["trace_id"],
        operation=row["operation"],
        key=row["key"],
        state=RunState(row["state"]),
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        failure_reason=row["failure_reason"],
        failure_message=row["failure_message"],
        notes=tuple(row["notes"]),
        generator_version=row["generator_version"],
        outcome=_outcome.validate_json(row["outcome"]) if row["outcome"] else None,
        create_time=row["create_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
    )


class PostgresRunStore:
    """`ports.RunStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_run(self, run: Run, script: str, credentials: bytes | None) -> Run:
        """See the port."""
        project_id, run_id = names.ids(run.name)
        plan = replace(run.plan, test=replace(run.plan.test, credentials=None))
        async with self._database.connection() as connection:
            try:
                row = await connection.fetchrow(
                    """INSERT INTO loadtesting.runs
                           (project_id, id, title, description, creator, trace_id, operation, plan, script,
                            credentials, state, notes)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING key, create_time""",
                    project_id,
                    run_id,
                    run.title,
                    run.description,
                    run.creator,
                    run.trace_id,
                    run.operation,
                    _plan.dump_json(plan).decode(),
                    script,
                    credentials,
                    RunState.PENDING.value,
                    list(run.notes),
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(run.name) from None
            except asyncpg.ForeignKeyViolationError:
                raise NotFound.resource(names.project(project_id)) from None
            except (asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError):
                raise InvalidArgument.of("run", "no text of it can hold the character U+0000") from None
        assert row is not None
        return replace(run, plan=plan, key=row["key"], state=RunState.PENDING, create_time=row["create_time"])

    async def get_run(self, name: str) -> Run:
        """See the port."""
        return _run(await self._row(f"{SELECT} WHERE r.project_id = $1 AND r.id = $2", name))

    async def list_runs(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Run]:
        """See the port."""
        (project_id,) = names.ids(parent)
        query, args = page_of(
            SELECT,
            key="r.key",
            page=page,
            conditions=conditions,
            columns=COLUMNS,
            parents={"r.project_id": project_id},
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_run(row) for row in rows]

    async def list_active(self, page: PageRequest) -> list[Run]:
        """See the port."""
        query, args = page_of(
            SELECT,
            key="r.key",
            page=page,
            conditions=[Condition("active", "=", True)],
            columns={"active": f"(r.{ACTIVE})"},
            newest_first=False,
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_run(row) for row in rows]

    async def get_script(self, name: str) -> str:
        """See the port."""
        row = await self._row("SELECT script FROM loadtesting.runs WHERE project_id = $1 AND id = $2", name)
        script: str = row["script"]
        return script

    async def get_credentials(self, name: str) -> bytes | None:
        """See the port."""
        row = await self._row("SELECT credentials FROM loadtesting.runs WHERE project_id = $1 AND id = $2", name)
        credentials: bytes | None = row["credentials"]
        return credentials

    async def keep_rows(self, name: str, rows: Mapping[str, bytes]) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            key = await connection.fetchval(
                f"SELECT key FROM loadtesting.runs WHERE project_id = $1 AND id = $2 AND {ACTIVE}", *names.ids(name)
            )
            if key is None:
                raise FailedPrecondition(f"{name} has ended", reason="RUN_ENDED")
            await connection.executemany(
                "INSERT INTO loadtesting.run_rows (run_key, pool, data) VALUES ($1, $2, $3)",
                [(key, pool, data) for pool, data in rows.items()],
            )

    async def get_rows(self, key: int) -> dict[str, bytes]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT pool, data FROM loadtesting.run_rows WHERE run_key = $1", key)
        return {row["pool"]: row["data"] for row in rows}

    async def start_run(self, name: str, token_hash: bytes, generator_version: str) -> None:
        """See the port."""
        await self._change(name, "token_hash = $3, generator_version = $4", token_hash, generator_version)

    async def set_state(self, name: str, state: RunState) -> None:
        """See the port."""
        await self._change(
            name,
            """state = $3::text,
               start_time = CASE WHEN $3 = 'RUNNING' THEN coalesce(start_time, now()) ELSE start_time END""",
            state.value,
        )

    async def add_note(self, name: str, note: str) -> None:
        """See the port."""
        await self._change(name, "notes = CASE WHEN $3 = ANY (notes) THEN notes ELSE notes || $3::text END", note)

    async def end_run(self, name: str, end: RunEnd) -> None:
        """See the port."""
        await self._change(
            name,
            """state = $3, verdict = $4, outcome = $5, failure_reason = $6, failure_message = $7,
               notes = notes || $8::text[], end_time = now(), token_hash = NULL, credentials = NULL""",
            end.state.value,
            end.verdict.value,
            _outcome.dump_json(end.outcome).decode(),
            end.failure_reason,
            end.failure_message,
            list(end.notes),
        )

    async def delete_run(self, name: str) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            row = await self._row(
                "SELECT state FROM loadtesting.runs WHERE project_id = $1 AND id = $2 FOR UPDATE", name
            )
            if not RunState(row["state"]).ended:
                raise FailedPrecondition(f"{name} is active; cancel it first", reason="RUN_ACTIVE")
            await connection.execute("DELETE FROM loadtesting.runs WHERE project_id = $1 AND id = $2", *names.ids(name))

    async def append_log(self, key: int, lines: Sequence[LogLine]) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.executemany(
                """INSERT INTO loadtesting.run_log (run_key, log_time, source, level, message)
                   VALUES ($1, $2, $3, $4, $5)""",
                [(key, line.time, line.source, line.level, line.message) for line in lines],
            )

    async def list_log(self, key: int, page: PageRequest) -> list[LogLine]:
        """See the port."""
        query, args = page_of(
            "SELECT l.key, l.log_time, l.source, l.level, l.message FROM loadtesting.run_log l",
            key="l.key",
            page=page,
            conditions=(),
            columns={},
            parents={"l.run_key": key},
            newest_first=False,
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [LogLine(row["log_time"], row["source"], row["level"], row["message"], row["key"]) for row in rows]

    async def find_run_by_token(self, token_hash: bytes) -> str | None:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT project_id, id FROM loadtesting.runs WHERE token_hash = $1", token_hash
            )
        return names.run(row["project_id"], row["id"]) if row else None

    async def append_windows(self, name: str, rows: Sequence[ExportRow]) -> int:
        """See the port."""
        async with self._database.transaction() as connection:
            # The share lock makes the end of the run wait for this commit: after it no row can appear.
            key = await connection.fetchval(
                f"SELECT key FROM loadtesting.runs WHERE project_id = $1 AND id = $2 AND {ACTIVE} FOR SHARE",
                *names.ids(name),
            )
            if key is None:
                raise FailedPrecondition(f"{name} takes no more figures", reason="RUN_ENDED")
            stored = await connection.fetch(
                """INSERT INTO loadtesting.windows (run_key, instance, time_nano, data)
                   SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bytea[])
                   ON CONFLICT DO NOTHING RETURNING id""",
                key,
                [row.instance for row in rows],
                [row.time_unix_nano for row in rows],
                [pack(row) for row in rows],
            )
        return len(stored)

    async def read_windows(
        self, key: int, after: Position, limit: int, *, settled_only: bool
    ) -> list[tuple[Position, ExportRow]]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT xid::text::bigint AS xid, id, data FROM loadtesting.windows
                    WHERE run_key = $1 AND (xid, id) > ($2::text::xid8, $3) AND ({SETTLED} OR NOT $4)
                    ORDER BY windows.xid, windows.id LIMIT $5""",
                key,
                str(after.xid),
                after.id,
                settled_only,
                limit,
            )
        return [(Position(row["xid"], row["id"]), unpack(row["data"])) for row in rows]

    async def _row(self, query: str, name: str) -> asyncpg.Record:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(query, *names.ids(name))
        if row is None:
            raise NotFound.resource(name)
        return row

    async def _change(self, name: str, assignments: str, *values: object) -> None:
        """Changes an active run; raises FailedPrecondition when it has ended or is gone."""
        async with self._database.connection() as connection:
            result = await connection.execute(
                f"UPDATE loadtesting.runs SET {assignments} WHERE project_id = $1 AND id = $2 AND {ACTIVE}",
                *names.ids(name),
                *values,
            )
        if result == "UPDATE 0":
            raise FailedPrecondition(f"{name} has ended", reason="RUN_ENDED")
