"""A small server that speaks LoadTesting over a real channel, and breaks its streams when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, metrics_pb2, projects_pb2, runs_pb2, specs_pb2

NAME = "projects/shop/runs/nightly"
# What is not written here answers UNIMPLEMENTED; the generated types call that abstract.
_Unimplemented: Any = loadtesting_pb2_grpc.LoadTestingServicer

Context = grpc.aio.ServicerContext[Any, Any]


def window(index: int) -> metrics_pb2.Window:
    """The figures of second `index`: ten calls, one of them failed."""
    result = metrics_pb2.Window(index=index, vus=3, total_requests=10 * index, total_failed_requests=index)
    result.start_time.FromSeconds(1_000_000 + index - 1)
    result.end_time.FromSeconds(1_000_000 + index)
    times = metrics_pb2.ResponseTimes(min_ms=1, avg_ms=2, max_ms=9, p50_ms=2, p90_ms=3, p95_ms=4, p99_ms=8)
    stats = metrics_pb2.CallStats(requests=10, failed_requests=1, tps=10, error_ratio=0.1, response_time=times)
    result.total.CopyFrom(stats)
    result.endpoints.add(name="GET /pets", stats=stats)
    return result


def run(
    state: runs_pb2.RunState.ValueType, verdict: runs_pb2.Verdict.ValueType = runs_pb2.VERDICT_UNSPECIFIED
) -> runs_pb2.Run:
    """The run in a state, planned for four seconds."""
    result = runs_pb2.Run(name=NAME, title="Nightly", state=state, verdict=verdict)
    result.start_time.FromSeconds(1_000_000)
    result.planned_duration.FromSeconds(4)
    if verdict:
        result.results.total.requests = 40
        result.results.total.response_time.p95_ms = 4
        result.results.duration.FromSeconds(4)
        result.results.endpoints.add(name="GET /pets").stats.requests = 40
    return result


def script(verdict: runs_pb2.Verdict.ValueType = runs_pb2.VERDICT_PASSED) -> list[runs_pb2.WatchRunResponse]:
    """What a run of four windows sends."""
    running = [runs_pb2.WatchRunResponse(run=run(runs_pb2.RUN_STATE_RUNNING))]
    windows = [runs_pb2.WatchRunResponse(window=window(index)) for index in (1, 2, 3, 4)]
    updates = [*running, *windows, runs_pb2.WatchRunResponse(run=run(runs_pb2.RUN_STATE_COMPLETED, verdict))]
    for place, update in enumerate(updates):
        update.cursor = str(place)
    return updates


@dataclass
class FakeLoadTesting(_Unimplemented):  # type: ignore[misc]
    """Sends `updates`; a stream is lost after as many messages as the next of `losses` says.

    Each loss has the status that it is lost with; None ends the stream in good order. `endless` keeps it open instead.
    """

    updates: list[runs_pb2.WatchRunResponse] = field(default_factory=script)
    losses: list[tuple[int, grpc.StatusCode | None]] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    created: list[runs_pb2.CreateRunRequest] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    endless: bool = False

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        self.cursors.append(request.cursor)
        await self._refuse_unknown(request.name, context)
        after = int(request.cursor) if request.cursor else -1
        rest = self.updates[after + 1 :]
        if request.cursor:  # a stream opens with the run as it is
            newest = [update.run for update in self.updates[: after + 1] if update.HasField("run")][-1]
            yield runs_pb2.WatchRunResponse(run=newest, cursor=request.cursor)
        count, code = self.losses.pop(0) if self.losses else (len(rest), None)
        for update in rest[:count]:
            yield update
        if code is not None:
            await context.abort(code, "the server goes away")
        if self.endless:
            await asyncio.Event().wait()

    async def GetRun(self, request: runs_pb2.GetRunRequest, context: Context) -> runs_pb2.Run:
        await self._refuse_unknown(request.name, context)
        return self.updates[-1].run

    async def CreateRun(self, request: runs_pb2.CreateRunRequest, context: Context) -> runs_pb2.Run:
        self.created.append(request)
        return run(runs_pb2.RUN_STATE_PENDING)

    async def CreateProject(self, request: projects_pb2.CreateProjectRequest, context: Context) -> projects_pb2.Project:
        raise await refusal(
            context,
            code_pb2.INVALID_ARGUMENT,
            "project.title: too long (and 1 more)",
            error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain="opsplane.dev"),
            error_details_pb2.BadRequest(
                field_violations=[
                    {"field": "project.title", "description": "too long"},
                    {"field": "project.summary", "description": "two lines"},
                ]
            ),
        )

    async def ListProjects(
        self, request: projects_pb2.ListProjectsRequest, context: Context
    ) -> projects_pb2.ListProjectsResponse:
        """Pages of at most two, of five."""
        self.tokens.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        start = int(request.page_token or 0)
        end = min(start + min(request.page_size or 50, 2), 5)
        names = [projects_pb2.Project(name=f"projects/p{i}", title="evil \x1b[31m") for i in range(start, end)]
        return projects_pb2.ListProjectsResponse(projects=names, next_page_token=str(end) if end < 5 else "")

    async def ListSpecs(self, request: specs_pb2.ListSpecsRequest, context: Context) -> specs_pb2.ListSpecsResponse:
        names = (f"{request.parent}/specs/new", f"{request.parent}/specs/old")
        return specs_pb2.ListSpecsResponse(specs=[specs_pb2.Spec(name=name) for name in names])

    async def ListEndpoints(
        self, request: specs_pb2.ListEndpointsRequest, context: Context
    ) -> specs_pb2.ListEndpointsResponse:
        self.filters.append(request.filter)
        project = request.parent.partition("/specs/")[0]
        found = [
            specs_pb2.Endpoint(
                name=f"{project}/specs/{spec}/endpoints/e{number}", method="GET", path=path, operation_id=operation
            )
            for spec in ("old", "new")
            for number, path, operation in ((1, "/pets", "listPets"), (2, "/pets/{petId}", ""))
        ]
        return specs_pb2.ListEndpointsResponse(endpoints=found)

    @staticmethod
    async def _refuse_unknown(name: str, context: Context) -> None:
        if name != NAME:
            info = error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="opsplane.dev")
            raise await refusal(context, code_pb2.NOT_FOUND, f"{name} does not exist", info)


class FakePlatform(platform_pb2_grpc.PlatformServicer):
    """Sends states of an operation; each stream but the last is lost after one of them."""

    def __init__(self, *states: operations_pb2.Operation) -> None:
        self.states = list(states)

    async def WatchOperation(
        self, request: platform_pb2.WatchOperationRequest, context: Any
    ) -> AsyncIterator[operations_pb2.Operation]:
        yield self.states.pop(0)
        if self.states:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")

    async def ListAuditEvents(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


async def refusal(context: Context, code: int, message: str, *details: Message) -> BaseException:
    """Ends a call as the server does, with details; what `abort` raises comes back."""
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    status: Any = rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed))
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except BaseException as error:
        return error


@asynccontextmanager
async def serving(
    servicer: FakeLoadTesting,
    platform: platform_pb2_grpc.PlatformServicer | None = None,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[str]:
    """Serves on a free port of loopback, in plain text unless there are credentials; the address."""
    server = grpc.aio.server()
    loadtesting_pb2_grpc.add_LoadTestingServicer_to_server(servicer, server)
    if platform is not None:
        platform_pb2_grpc.add_PlatformServicer_to_server(platform, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
