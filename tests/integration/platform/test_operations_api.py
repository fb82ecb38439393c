"""google.longrunning.Operations and opsplane.common.v1.Platform over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2, wrappers_pb2
from google.rpc import code_pb2
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import OperationCancelled, OperationState
from opsplane_server.platform.servicer import OperationsServicer, PlatformServicer
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.server import Registration

from tests.integration.platform.workers import started_worker
from tests.platform_harness import Platform, call_as
from tests.rpc_harness import registration, require_status, serving


@dataclass(frozen=True, slots=True)
class Api:
    """Stubs of both services."""

    operations: Any  # google's stubs come without types
    platform: platform_pb2_grpc.PlatformStub


@pytest.fixture
async def api(platform: Platform) -> AsyncIterator[Api]:
    servicer = OperationsServicer(platform.operations, platform.changes)
    services = [
        Registration(
            "google.longrunning.Operations",
            lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(servicer, server),
        ),
        registration(
            platform_pb2_grpc.add_PlatformServicer_to_server, PlatformServicer(platform.operations, platform.audit)
        ),
    ]
    async with serving(services, standard(Anonymous())) as served, served.channel() as channel:
        yield Api(operations_pb2_grpc.OperationsStub(channel), platform_pb2_grpc.PlatformStub(channel))


def metadata_of(operation: operations_pb2.Operation) -> platform_pb2.OperationMetadata:
    metadata = platform_pb2.OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


async def obedient(execution: Execution) -> None:
    await execution.cancelled()
    raise OperationCancelled


async def at_once(execution: Execution) -> wrappers_pb2.StringValue:
    return wrappers_pb2.StringValue(value="done")


async def test_an_operation_is_read_waited_for_and_deleted(platform: Platform, api: Api) -> None:
    submitted = await platform.submit(request_id="r")
    found = await api.operations.GetOperation(operations_pb2.GetOperationRequest(name=submitted.name))
    assert (found.done, metadata_of(found).verb, metadata_of(found).request_id) == (False, "DoIt", "r")
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_NOT_DONE"):
        await api.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=submitted.name))
    async with platform.executor({"test.steps": at_once}):
        wait = operations_pb2.WaitOperationRequest(name=submitted.name)
        done = await api.operations.WaitOperation(wait, timeout=30)
    response = wrappers_pb2.StringValue()
    assert done.done
    assert done.response.Unpack(response)
    assert response.value == "done"
    await api.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=submitted.name))
    with require_status(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
        await api.operations.GetOperation(operations_pb2.GetOperationRequest(name=submitted.name))


async def test_a_wait_answers_when_its_time_is_up(platform: Platform, api: Api) -> None:
    submitted = await platform.submit()
    wait = operations_pb2.WaitOperationRequest(name=submitted.name, timeout=duration_pb2.Duration(nanos=1000))
    assert not (await api.operations.WaitOperation(wait)).done


async def test_a_cancelled_operation_ends_as_cancelled_and_is_audited(platform: Platform, api: Api) -> None:
    async with platform.executor({"test.steps": obedient}):
        submitted = await platform.submit()
        await api.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=submitted.name))
        done = await api.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=submitted.name))
    assert (done.done, done.error.code) == (True, code_pb2.CANCELLED)
    assert metadata_of(done).cancel_requested
    listed = await api.platform.ListAuditEvents(platform_pb2.ListAuditEventsRequest())
    [event] = listed.audit_events
    assert (event.method, event.resource) == ("/google.longrunning.Operations/CancelOperation", submitted.name)


async def test_operations_are_listed_in_pages_without_hidden_ones(platform: Platform, api: Api) -> None:
    names = [(await platform.submit(hidden=number == 2)).name for number in range(5)]
    request = operations_pb2.ListOperationsRequest(name="operations", page_size=3, filter="done = false")
    first = await api.operations.ListOperations(request)
    request.page_token = first.next_page_token
    rest = await api.operations.ListOperations(request)
    listed = [operation.name for page in (first, rest) for operation in page.operations]
    assert listed == [names[4], names[3], names[1], names[0]]
    assert rest.next_page_token == ""
    assert (await api.operations.GetOperation(operations_pb2.GetOperationRequest(name=names[2]))).name == names[2]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (operations_pb2.ListOperationsRequest(filter="kind = x"), "filter"),
        (operations_pb2.ListOperationsRequest(page_token="x"), "page_token"),
        (operations_pb2.ListOperationsRequest(page_size=-1), "page_size"),
        (operations_pb2.ListOperationsRequest(name="projects/x"), "name"),
    ],
)
async def test_bad_lists_are_refused(api: Api, request_: operations_pb2.ListOperationsRequest, field: str) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await api.operations.ListOperations(request_)
    assert field in refusal.message


async def test_the_audit_is_listed_in_pages_and_filtered(platform: Platform, api: Api) -> None:
    for name in ("ann", "bob", "ann"):
        call_as(name)
        request = operations_pb2.DeleteOperationRequest(name=f"operations/of-{name}")
        await platform.changes.apply(request, wrappers_pb2.StringValue, lambda: at_once(None))  # type: ignore[arg-type]
    request = platform_pb2.ListAuditEventsRequest(page_size=1, filter='principal = "ann"')
    first = await api.platform.ListAuditEvents(request)
    request.page_token = first.next_page_token
    rest = await api.platform.ListAuditEvents(request)
    assert [event.principal for page in (first, rest) for event in page.audit_events] == ["ann", "ann"]
    assert first.audit_events[0].event_id > rest.audit_events[0].event_id
    assert rest.next_page_token == ""


async def test_unknown_operations_are_not_found(api: Api) -> None:
    name = "operations/none"
    for call in (
        api.operations.GetOperation(operations_pb2.GetOperationRequest(name=name)),
        api.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=name)),
        api.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name)),
        api.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=name)),
    ):
        with require_status(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
            await call
    with require_status(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
        async for _ in api.platform.WatchOperation(platform_pb2.WatchOperationRequest(name=name)):
            pass


async def test_a_watch_follows_an_operation_over_two_processes(platform: Platform, api: Api) -> None:
    """The first is killed, the second goes on, and neither is the one that serves the watch."""
    submitted = await platform.submit(request=wrappers_pb2.StringValue(value="b:committed c:committed"))
    watch = api.platform.WatchOperation(platform_pb2.WatchOperationRequest(name=submitted.name))
    seen: list[operations_pb2.Operation] = []

    async def until_stage(stage: str) -> None:
        while not seen or metadata_of(seen[-1]).stage != stage:
            seen.append(await anext(states))

    states = aiter(watch)
    async with started_worker(platform.dsn, "first", lease_seconds=2) as worker:
        await until_stage("did b")
        await worker.kill()
    async with started_worker(platform.dsn, "second", lease_seconds=30) as worker:
        await until_stage("did c")
        worker.open_gate()
        seen += [state async for state in states]
        assert await worker.terminate() == 0
    progress = [metadata_of(state).progress_percent for state in seen]
    assert progress == sorted(progress)
    assert [state.done for state in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].WhichOneof("result") == "response"
    assert metadata_of(seen[-1]).attempt == 2
    assert (await platform.operations.get(submitted.name)).state is OperationState.SUCCEEDED


async def test_many_watchers_all_see_the_end(platform: Platform, api: Api) -> None:
    submitted = await platform.submit()

    async def last() -> operations_pb2.Operation:
        watch = api.platform.WatchOperation(platform_pb2.WatchOperationRequest(name=submitted.name))
        return [state async for state in watch][-1]

    watchers = [asyncio.create_task(last()) for _ in range(20)]
    async with platform.executor({"test.steps": at_once}):
        ends = await asyncio.gather(*watchers)
    assert all(end.done and end == ends[0] for end in ends)
