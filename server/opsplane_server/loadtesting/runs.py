"""Runs: what is asked for becomes a plan and a script, and an operation that sees to it (`supervise`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.k6.inspect import Inspection
from opsplane_server.loadtesting.k6.loads import planned_duration
from opsplane_server.loadtesting.k6.script import generate
from opsplane_server.loadtesting.model import Run, RunPlan
from opsplane_server.loadtesting.ports import RunStore, SpecStore
from opsplane_server.loadtesting.secrets import seal_credentials
from opsplane_server.platform.operations import Operations
from opsplane_server.rpc.calls import current_call
from opsplane_server.storage.secrets import SecretBox

RUN_KIND = "loadtesting.run"

# Has k6 read a script without running it; raises InvalidArgument on `run.script` with what k6 says.
Inspect = Callable[[str], Awaitable[Inspection]]


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

    async def endpoints(self, parent: str, wanted: Sequence[str]) -> dict[str, tuple[definitions.Endpoint, str]]:
        """The named endpoints, each with the base URL of its specification.

        Raises InvalidArgument for those that are not there or belong to another project.
        """
        found = await self._specs.get_endpoints([name for name in wanted if name.startswith(f"{parent}/")])
        missing = [
            FieldViolation(f"run.scenarios[{i}].endpoint", f"{name} does not exist in {parent}")
            for i, name in enumerate(wanted)
            if name not in found
        ]
        if missing:
            raise InvalidArgument(missing[0].description, missing, reason="ENDPOINT_NOT_FOUND")
        return {name: (endpoint.definition, base_url) for name, (endpoint, base_url) in found.items()}

    async def plan(self, plan: RunPlan) -> tuple[RunPlan, str]:
        """The plan with what follows from it, and the script that it executes.

        Raises InvalidArgument, FailedPrecondition where there is no k6 to try a user's script with.
        """
        if plan.script:
            if not self._allow_scripts:
                raise InvalidArgument.of("run.script", "this server takes no scripts", reason="SCRIPTS_FORBIDDEN")
            found = await self._inspect(plan.script)
            return replace(plan, teardown_timeout=found.teardown_timeout), plan.script
        if not plan.test.base_url:
            raise InvalidArgument.of(
                "run.base_url", "is required: the specification names no server", reason="BASE_URL_MISSING"
            )
        duration = planned_duration(plan.test)
        timeout = plan.timeout or self._job_timeout
        if duration is not None and duration >= timeout:
            raise InvalidArgument.of(
                "run.timeout", f"ends the run after {timeout}, but its load lasts {duration}", reason="TIMEOUT_SHORT"
            )
        return replace(plan, planned_duration=duration), generate(plan.test)

    def describe(self, name: str, title: str, description: str, plan: RunPlan) -> Run:
        """A run as it would be created."""
        call = current_call()
        return Run(name, title, description, plan, creator=call.principal.name, trace_id=call.trace_id)

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
