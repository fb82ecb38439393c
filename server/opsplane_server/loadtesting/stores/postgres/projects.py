"""Projects in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import asyncpg

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.model import Project
from opsplane_server.loadtesting.stores.postgres.listing import page_of
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database

COLUMNS = {"title": "p.title", "summary": "p.summary", "create_time": "p.create_time"}

SELECT = """
SELECT p.*,
       (SELECT count(*) FROM loadtesting.specs s WHERE s.project_id = p.id) AS spec_count,
       (SELECT count(*) FROM loadtesting.runs r WHERE r.project_id = p.id) AS run_count,
       (SELECT count(*) FROM loadtesting.data_sets d WHERE d.project_id = p.id) AS data_set_count
FROM loadtesting.projects p
"""


def _project(row: asyncpg.Record) -> Project:
    return Project(
        name=names.project(row["id"]),
        title=row["title"],
        summary=row["summary"],
        description=row["description"],
        key=row["key"],
        revision=row["revision"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        spec_count=row["spec_count"],
        run_count=row["run_count"],
        data_set_count=row["data_set_count"],
    )


class PostgresProjectStore:
    """`ports.ProjectStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_project(self, project: Project) -> Project:
        """See the port."""
        (project_id,) = names.ids(project.name)
        async with self._database.connection() as connection:
            try:
                row = await connection.fetchrow(
                    """INSERT INTO loadtesting.projects (id, title, summary, description) VALUES ($1, $2, $3, $4)
                       RETURNING key, revision, create_time, update_time""",
                    project_id,
                    project.title,
                    project.summary,
                    project.description,
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(project.name) from None
        assert row is not None
        return replace(
            project,
            key=row["key"],
            revision=row["revision"],
            create_time=row["create_time"],
            update_time=row["update_time"],
        )

    async def get_project(self, name: str) -> Project:
        """See the port."""
        return await self._one(f"{SELECT} WHERE p.id = $1", name)

    async def lock_project(self, name: str) -> Project:
        """See the port."""
        return await self._one(f"{SELECT} WHERE p.id = $1 FOR UPDATE OF p", name)

    async def list_projects(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Project]:
        """See the port."""
        query, args = page_of(SELECT, key="p.key", page=page, conditions=conditions, columns=COLUMNS)
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [_project(row) for row in rows]

    async def update_project(self, project: Project) -> Project:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """UPDATE loadtesting.projects
                   SET title = $2, summary = $3, description = $4, revision = revision + 1, update_time = now()
                   WHERE id = $1 RETURNING revision, update_time""",
                *names.ids(project.name),
                project.title,
                project.summary,
                project.description,
            )
        if row is None:
            raise NotFound.resource(project.name)
        return replace(project, revision=row["revision"], update_time=row["update_time"])

    async def count_active_runs(self, name: str) -> int:
        """See the port."""
        async with self._database.connection() as connection:
            count: int = await connection.fetchval(
                """SELECT count(*) FROM loadtesting.runs
                   WHERE project_id = $1 AND state IN ('PENDING', 'RUNNING', 'STOPPING')""",
                *names.ids(name),
            )
        return count

    async def delete_project(self, name: str) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            for table, column in (
                ("runs", "project_id"),
                ("specs", "project_id"),
                ("data_sets", "project_id"),
                ("projects", "id"),
            ):
                await connection.execute(f"DELETE FROM loadtesting.{table} WHERE {column} = $1", *names.ids(name))

    async def _one(self, query: str, name: str) -> Project:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(query, *names.ids(name))
        if row is None:
            raise NotFound.resource(name)
        return _project(row)
