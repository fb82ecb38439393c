"""Projects: what specifications, data sets and runs belong to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.model import Project
from opsplane_server.loadtesting.ports import ProjectStore
from opsplane_server.rpc import etags


class Projects:
    """Creates, changes and deletes projects. Every method joins the caller's transaction where there is one."""

    def __init__(self, store: ProjectStore) -> None:
        self._store = store

    async def create(self, project: Project) -> Project:
        """Raises AlreadyExists."""
        return await self._store.insert_project(project)

    async def update(self, wanted: Project, fields: Collection[str], etag: str) -> Project:
        """Sets `fields` of the project to those of `wanted`. Raises NotFound, Aborted for an old `etag`."""
        current = await self._store.lock_project(wanted.name)
        etags.check(etag, current.name, current.revision)
        if "title" in fields and not wanted.title:
            raise InvalidArgument.of("project.title", "must not be empty")
        changed = replace(
            current,
            title=wanted.title if "title" in fields else current.title,
            summary=wanted.summary if "summary" in fields else current.summary,
            description=wanted.description if "description" in fields else current.description,
        )
        return await self._store.update_project(changed)

    async def delete(self, name: str, *, force: bool, etag: str) -> None:
        """Deletes the project, with `force` also what it holds. Raises NotFound, Aborted, FailedPrecondition."""
        project = await self._store.lock_project(name)
        etags.check(etag, project.name, project.revision)
        if await self._store.count_active_runs(name):
            raise FailedPrecondition(f"{name} has active runs; cancel them first", reason="PROJECT_HAS_ACTIVE_RUNS")
        if (project.spec_count or project.run_count or project.data_set_count) and not force:
            raise FailedPrecondition(
                f"{name} holds {project.spec_count} specifications, {project.run_count} runs "
                f"and {project.data_set_count} data sets; use force",
                reason="PROJECT_NOT_EMPTY",
            )
        await self._store.delete_project(name)
