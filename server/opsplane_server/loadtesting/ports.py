"""What load testing needs from outside: stores for its resources and figures, and a runner (`runners.port`).

Stores join the ambient transaction of their caller. Names are full resource names; a missing resource raises
NotFound, a taken name AlreadyExists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.model import Endpoint, LogLine, Project, Run, RunEnd, RunState, Spec
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.followers import Position


class ProjectStore(Protocol):
    """Keeps projects."""

    async def insert_project(self, project: Project) -> Project:
        """Stores a new project and returns it with its times."""
        ...

    async def get_project(self, name: str) -> Project:
        """Returns the project."""
        ...

    async def lock_project(self, name: str) -> Project:
        """Returns the project and keeps others from changing it until the transaction ends."""
        ...

    async def list_projects(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Project]:
        """Up to `page.size + 1` projects, newest first."""
        ...

    async def update_project(self, project: Project) -> Project:
        """Stores title, summary and description, counts the revision up and returns the project."""
        ...

    async def count_active_runs(self, name: str) -> int:
        """How many runs of the project have not ended."""
        ...

    async def delete_project(self, name: str) -> None:
        """Deletes the project and all that it holds."""
        ...


class SpecStore(Protocol):
    """Keeps specifications and their endpoints."""

    async def insert_spec(self, spec: Spec, endpoints: Sequence[Endpoint]) -> Spec:
        """Stores a specification with its endpoints in order. NotFound when the project is not there."""
        ...

    async def get_spec(self, name: str) -> Spec:
        """Returns the specification."""
        ...

    async def list_specs(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Spec]:
        """Up to `page.size + 1` specifications, newest first; `projects/-` lists those of all projects."""
        ...

    async def delete_spec(self, name: str) -> None:
        """Deletes the specification and its endpoints."""
        ...

    async def list_endpoints(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Endpoint]:
        """Up to `page.size + 1` endpoints in the document's order; `-` in place of an id lists those of all."""
        ...

    async def get_endpoints(self, names: Sequence[str]) -> dict[str, tuple[Endpoint, str]]:
        """The named endpoints with the base URL of their specification; those that are not there are left out."""
        ...


class RunStore(Protocol):
    """Keeps runs and what was measured in them."""

    async def insert_run(self, run: Run, script: str, credentials: bytes | None) -> Run:
        """Stores a new run with the script that it will execute. NotFound when the project is not there."""
        ...

    async def get_run(self, name: str) -> Run:
        """Returns the run."""
        ...

    async def list_runs(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Run]:
        """Up to `page.size + 1` runs, newest first; `projects/-` lists those of all projects."""
        ...

    async def list_active(self, page: PageRequest) -> list[Run]:
        """Up to `page.size + 1` runs of all projects that have not ended, oldest first."""
        ...

    async def get_script(self, name: str) -> str:
        """The script of the run, exactly as it is executed."""
        ...

    async def get_credentials(self, name: str) -> bytes | None:
        """The run's encrypted credentials."""
        ...

    async def keep_rows(self, name: str, rows: Mapping[str, bytes]) -> None:
        """Keeps the packed rows of an active run's pools, by pool, once. FailedPrecondition when it has ended."""
        ...

    async def get_rows(self, key: int) -> dict[str, bytes]:
        """The packed rows of a run's pools, by pool."""
        ...

    async def start_run(self, name: str, token_hash: bytes, generator_version: str) -> None:
        """Notes that figures may come now, from who has the token, and the version of the load generator."""
        ...

    async def set_state(self, name: str, state: RunState) -> None:
        """Sets the state of an active run; RUNNING also sets the start time, once."""
        ...

    async def add_note(self, name: str, note: str) -> None:
        """Adds a note for people, once."""
        ...

    async def end_run(self, name: str, end: RunEnd) -> None:
        """Ends the run: from here on no more figures are taken."""
        ...

    async def delete_run(self, name: str) -> None:
        """Deletes an ended run with its windows. FailedPrecondition when it is active."""
        ...

    async def append_log(self, key: int, lines: Sequence[LogLine]) -> None:
        """Adds lines to the log of a run."""
        ...

    async def list_log(self, key: int, page: PageRequest) -> list[LogLine]:
        """Up to `page.size + 1` lines of a run's log, oldest first."""
        ...

    async def find_run_by_token(self, token_hash: bytes) -> str | None:
        """Name of the active run that takes figures under this token."""
        ...

    async def append_windows(self, name: str, rows: Sequence[ExportRow]) -> int:
        """Stores rows of an active run, each once; returns how many were new. FailedPrecondition when it has ended."""
        ...

    async def read_windows(
        self, key: int, after: Position, limit: int, *, settled_only: bool
    ) -> list[tuple[Position, ExportRow]]:
        """Rows of a run in commit-safe order. An ended run takes none any more, so all its rows are settled."""
        ...


class WindowCompaction(Protocol):
    """Makes the windows of finished runs smaller."""

    async def compact_next(self, age: timedelta) -> str:
        """Compacts the windows of one run that ended longer than `age` ago; its name, or empty when there is none."""
        ...
