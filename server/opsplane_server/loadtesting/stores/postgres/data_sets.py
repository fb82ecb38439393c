"""Data sets in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
import zstandard
from pydantic import TypeAdapter

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.datasets.model import ClickHouseQuery, DataSet, RowFormat, Rows, UploadedRows
from opsplane_server.loadtesting.stores.postgres.listing import page_of
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database

COLUMNS = {"title": "d.title", "create_time": "d.create_time"}

SELECT = "SELECT d.* FROM loadtesting.data_sets d"

_query = TypeAdapter(ClickHouseQuery)


def _data_set(row: asyncpg.Record) -> DataSet:
    return DataSet(
        name=names.data_set(row["project_id"], row["id"]),
        title=row["title"],
        source=UploadedRows(RowFormat(row["format"])) if row["format"] else _query.validate_json(row["clickhouse"]),
        fields=tuple(row["fields"]),
        row_count=row["row_count"],
        sha256=row["sha256"],
        password=row["password"],
        key=row["key"],
        create_time=row["create_time"],
    )


class PostgresDataSetStore:
    """`datasets.ports.DataSetStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_data_set(self, data_set: DataSet, rows: Rows | None) -> DataSet:
        """See the port."""
        ids = names.ids(data_set.name)
        source = data_set.source
        packed = await asyncio.to_thread(zstandard.compress, rows.lines) if rows else b""
        async with self._database.transaction() as connection:
            try:
                row = await connection.fetchrow(
                    """INSERT INTO loadtesting.data_sets
                           (project_id, id, title, format, clickhouse, password, fields, row_count, sha256)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING key, create_time""",
                    *ids,
                    data_set.title,
                    source.format.value if isinstance(source, UploadedRows) else "",
                    _query.dump_json(source).decode() if isinstance(source, ClickHouseQuery) else None,
                    data_set.password,
                    list(data_set.fields),
                    data_set.row_count,
                    data_set.sha256,
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(data_set.name) from None
            except asyncpg.ForeignKeyViolationError:
                raise NotFound.resource(names.project(ids[0])) from None
            if rows is not None:
                await connection.execute(
                    "INSERT INTO loadtesting.data_set_rows (project_id, id, lines) VALUES ($1, $2, $3)", *ids, packed
                )
        assert row is not None
        return replace(data_set, key=row["key"], create_time=row["create_time"])

    async def get_data_set(self, name: str) -> DataSet:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{SELECT} WHERE d.project_id = $1 AND d.id = $2", *names.ids(name))
        if row is None:
            raise NotFound.resource(name)
        return _data_set(row)

    async def get_data_sets(self, wanted: Sequence[str]) -> dict[str, DataSet]:
        """See the port."""
        ids = [names.ids(name) for name in wanted]
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""{SELECT} JOIN unnest($1::text[], $2::text[]) AS wanted (project_id, id)
                      ON (wanted.project_id, wanted.id) = (d.project_id, d.id)""",
                *([part[i] for part in ids] for i in range(2)),
            )
        return {(found := _data_set(row)).name: found for row in rows}

    async def list_data_sets(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[DataSet]:
        """See the port."""
        (project_id,) = names.ids(parent)
        query, args = page_of(
            SELECT,
            key="d.key",
            page=page,
            conditions=conditions,
            columns=COLUMNS,
            parents={"d.project_id": project_id},
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_data_set(row) for row in rows]

    async def get_rows(self, name: str) -> Rows:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """SELECT d.fields, d.row_count, d.sha256, r.lines
                   FROM loadtesting.data_sets d
                   JOIN loadtesting.data_set_rows r ON (r.project_id, r.id) = (d.project_id, d.id)
                   WHERE d.project_id = $1 AND d.id = $2""",
                *names.ids(name),
            )
        if row is None:
            raise NotFound.resource(name)
        lines = await asyncio.to_thread(zstandard.decompress, row["lines"])
        return Rows(tuple(row["fields"]), row["row_count"], row["sha256"], lines)

    async def note_use(self, name: str, rows: Rows) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE loadtesting.data_sets SET fields = $3, row_count = $4, sha256 = $5
                   WHERE project_id = $1 AND id = $2""",
                *names.ids(name),
                list(rows.fields),
                rows.row_count,
                rows.sha256,
            )

    async def delete_data_set(self, name: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            result = await connection.execute(
                "DELETE FROM loadtesting.data_sets WHERE project_id = $1 AND id = $2", *names.ids(name)
            )
        if result == "DELETE 0":
            raise NotFound.resource(name)
