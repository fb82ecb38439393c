"""Specifications and endpoints in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import asyncpg
from pydantic import TypeAdapter

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.loadtesting import definitions, names
from opsplane_server.loadtesting.model import Endpoint, Spec
from opsplane_server.loadtesting.stores.postgres.listing import page_of
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database

SPEC_COLUMNS = {"title": "s.title", "version": "s.version", "create_time": "s.create_time"}
ENDPOINT_COLUMNS = {
    "method": "e.method",
    "path": "e.path",
    "operation_id": "e.operation_id",
    "summary": "e.summary",
}

ENDPOINT_ROW = ("project_id", "spec_id", "id", "method", "path", "operation_id", "summary", "tags", "definition")

_specification = TypeAdapter(definitions.Specification)
_endpoint = TypeAdapter(definitions.Endpoint)


def _spec(row: asyncpg.Record) -> Spec:
    return Spec(
        name=names.spec(row["project_id"], row["id"]),
        specification=_specification.validate_json(row["document"]),
        endpoint_count=row["endpoint_count"],
        key=row["key"],
        tag_counts=dict(zip(row["tag_names"] or (), row["tag_counts"] or (), strict=True)),
        create_time=row["create_time"],
    )


def _stored_endpoint(row: asyncpg.Record) -> Endpoint:
    return Endpoint(
        name=names.endpoint(row["project_id"], row["spec_id"], row["id"]),
        definition=_endpoint.validate_json(row["definition"]),
        key=row["key"],
    )


SELECT = """
SELECT s.*, t.tag_names, t.tag_counts
FROM loadtesting.specs s
LEFT JOIN LATERAL (
    SELECT array_agg(tag) AS tag_names, array_agg(n) AS tag_counts
    FROM (
        SELECT tag, count(*) AS n
        FROM loadtesting.endpoints e, unnest(e.tags) AS tag
        WHERE e.project_id = s.project_id AND e.spec_id = s.id
        GROUP BY tag
    ) counted
) t ON true
"""


class PostgresSpecStore:
    """`ports.SpecStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_spec(self, spec: Spec, endpoints: Sequence[Endpoint]) -> Spec:
        """See the port."""
        project_id, spec_id = names.ids(spec.name)
        about = spec.specification
        async with self._database.transaction() as connection:
            try:
                row = await connection.fetchrow(
                    """INSERT INTO loadtesting.specs
                           (project_id, id, title, version, base_url, source_url, size_bytes, endpoint_count, document)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING key, create_time""",
                    project_id,
                    spec_id,
                    about.title,
                    about.version,
                    about.base_url,
                    about.source_url,
                    about.size_bytes,
                    len(endpoints),
                    _specification.dump_json(about).decode(),
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(spec.name) from None
            except asyncpg.ForeignKeyViolationError:
                raise NotFound.resource(names.project(project_id)) from None
            await connection.copy_records_to_table(
                "endpoints",
                schema_name="loadtesting",
                columns=ENDPOINT_ROW,
                records=[
                    (
                        project_id,
                        spec_id,
                        names.ids(endpoint.name)[2],
                        endpoint.definition.method,
                        endpoint.definition.path,
                        endpoint.definition.operation_id,
                        endpoint.definition.summary,
                        list(endpoint.definition.tags),
                        _endpoint.dump_json(endpoint.definition).decode(),
                    )
                    for endpoint in endpoints
                ],
            )
        assert row is not None
        return replace(spec, key=row["key"], create_time=row["create_time"])

    async def get_spec(self, name: str) -> Spec:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{SELECT} WHERE s.project_id = $1 AND s.id = $2", *names.ids(name))
        if row is None:
            raise NotFound.resource(name)
        return _spec(row)

    async def list_specs(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Spec]:
        """See the port."""
        (project_id,) = names.ids(parent)
        query, args = page_of(
            SELECT,
            key="s.key",
            page=page,
            conditions=conditions,
            columns=SPEC_COLUMNS,
            parents={"s.project_id": project_id},
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_spec(row) for row in rows]

    async def delete_spec(self, name: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            result = await connection.execute(
                "DELETE FROM loadtesting.specs WHERE project_id = $1 AND id = $2", *names.ids(name)
            )
        if result == "DELETE 0":
            raise NotFound.resource(name)

    async def list_endpoints(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Endpoint]:
        """See the port."""
        project_id, spec_id = names.ids(parent)
        query, args = page_of(
            "SELECT e.key, e.project_id, e.spec_id, e.id, e.definition FROM loadtesting.endpoints e",
            key="e.key",
            page=page,
            conditions=conditions,
            columns=ENDPOINT_COLUMNS,
            arrays={"tag": "e.tags"},
            parents={"e.project_id": project_id, "e.spec_id": spec_id},
            newest_first=False,
        )
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_stored_endpoint(row) for row in rows]

    async def get_endpoints(self, wanted: Sequence[str]) -> dict[str, tuple[Endpoint, str]]:
        """See the port."""
        ids = [names.ids(name) for name in wanted]
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT e.key, e.project_id, e.spec_id, e.id, e.definition, s.base_url
                   FROM loadtesting.endpoints e
                   JOIN loadtesting.specs s ON (s.project_id, s.id) = (e.project_id, e.spec_id)
                   JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (project_id, spec_id, id)
                     ON (wanted.project_id, wanted.spec_id, wanted.id) = (e.project_id, e.spec_id, e.id)""",
                *([part[i] for part in ids] for i in range(3)),
            )
        return {(found := _stored_endpoint(row)).name: (found, row["base_url"]) for row in rows}
