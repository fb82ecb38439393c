"""Runs: what is asked for becomes a plan and a script, and an operation that sees to it (`supervise`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.datasets.preparing import RowSource
from opsplane_server.loadtesting.k6.loads import planned_duration
from opsplane_server.loadtesting.k6.script import generate
from opsplane_server.loadtesting.model import Run, RunPlan
from opsplane_server.loadtesting.ports import RunStore, SpecStore
from opsplane_server.loadtesting.secrets import seal_credentials
from opsplane_server.loadtesting.users import planning
from opsplane_server.loadtesting.users.planning import Inspect, UserScripts
from opsplane_server.platform.operations import Operations
from opsplane_server.rpc.calls import current_call
from opsplane_server.storage.secrets import SecretBox

RUN_KIND = "loadtesting.run"


class Runs:
    """Plans, creates and cancels runs. Methods join the caller's transaction where there is one.

    `node` is this machine where load generators are processes of it, empty where any machine can supervise them.
    """

    def __init__(
        self,
        store: RunStore,
        specs: SpecStore,
        operations: Operations,
        secrets: SecretBox,
        rows: RowSource,
        *,
        node: str,
        job_timeout: timedelta,
        inspect: Inspect,
        allow_scripts: bool,
    ) -> None:
        self._store = store
        self._specs = specs
        self._operations = operations
        self._secrets = secrets
        self._node = node
        self._job_timeout = job_timeout
        self._inspect = inspect
        self._allow_scripts = allow_scripts
        self._user_scripts = UserScripts(rows, inspect, allow_scripts=allow_scripts)

    async def endpoints(self, parent: str, wanted: Mapping[str, str]) -> dict[str, tuple[definitions.Endpoint, str]]:
        """The endpoints that are `wanted`, by the fields that name them, each with the base URL of its specification.

        Raises InvalidArgument for those that are not there or belong to another project.
        """
        of_project = {name for name in wanted.values() if name.startswith(f"{parent}/")}
        found = await self._specs.get_endpoints(sorted(of_project))
        missing = [
            FieldViolation(field, f"{name} does not exist in {parent}")
            for field, name in wanted.items()
            if name not in found
        ]
        if missing:
            raise InvalidArgument(missing[0].description, missing, reason="ENDPOINT_NOT_FOUND")
        return {name: (endpoint.definition, base_url) for name, (endpoint, base_url) in found.items()}

    async def plan(self, parent: str, plan: RunPlan) -> tuple[RunPlan, str]:
        """The plan of a run in a project with what follows from it, and the script that it executes.

        Raises InvalidArgument, FailedPrecondition where there is no k6 to try a user's script with.
        """
        if plan.script:
            if not self._allow_scripts:
                raise InvalidArgument.of("run.script", "this server takes no scripts", reason="SCRIPTS_FORBIDDEN")
            found = await self._inspect(plan.script)
            return replace(plan, teardown_timeout=found.teardown_timeout), plan.script
        if plan.users:
            script = await self._user_scripts.generate(parent, plan.test, plan.users)
            return self._with_duration(plan, planning.planned_duration(plan.users)), script
        if not plan.test.base_url:
            raise InvalidArgument.of(
                "run.base_url", "is required: the specification names no server", reason="BASE_URL_MISSING"
            )
        return self._with_duration(plan, planned_duration(plan.test)), generate(plan.test)

    def _with_duration(self, plan: RunPlan, duration: timedelta | None) -> RunPlan:
        """The plan, knowing how long its load lasts. Raises InvalidArgument when the run would be ended before."""
        timeout = plan.timeout or self._job_timeout
        if duration is not None and duration >= timeout:
            raise InvalidArgument.of(
                "run.timeout", f"ends the run after {timeout}, but its load lasts {duration}", reason="TIMEOUT_SHORT"
            )
        return replace(plan, planned_duration=duration)

    def describe(self, name: str, title: str, description: str, plan: RunPlan) -> Run:
        """A run as it would be created."""
        call = current_call()
        notes = planning.notes(plan.users) if plan.users else ()
        return Run(name, title, description, plan, call.principal.name, call.trace_id, notes=notes)

    async def create(self, run: Run, script: str) -> Run:
        """Stores the run and submits the operation that supervises it. Raises NotFound, AlreadyExists."""
        credentials = run.plan.test.credentials
        sealed = seal_credentials(self._secrets, run.name, credentials) if credentials else None
        operation = await self._operations.submit(
            kind=RUN_KIND, verb="CreateRun", target=run.name, node=self._node, hidden=True
        )
        return await self._store.insert_run(replace(run, operation=operation.name), script, sealed)

    async def cancel(self, name: str) -> Run:
        """Asks the supervisor to end the run; an ended one stays as it is. Raises NotFound."""
        run = await self._store.get_run(name)
        if not run.state.ended:
            await self._operations.cancel(run.operation)
        return run
