from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from opsplane_server import errors
from structlog.testing import capture_logs

from tests.contract.rpc.echo import EchoServicer, EchoStub, Request
from tests.rpc_harness import require_status

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAPPED = [
    (errors.InvalidArgument("no"), StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    (errors.NotFound.resource("projects/a"), StatusCode.NOT_FOUND, "NOT_FOUND"),
    (errors.AlreadyExists.resource("projects/a"), StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (errors.FailedPrecondition("no", reason="RUN_ENDED"), StatusCode.FAILED_PRECONDITION, "RUN_ENDED"),
    (errors.Aborted("no"), StatusCode.ABORTED, "ABORTED"),
    (errors.OutOfRange("no"), StatusCode.OUT_OF_RANGE, "OUT_OF_RANGE"),
    (errors.Unauthenticated("no"), StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.PermissionDenied("no"), StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (errors.ResourceExhausted("no"), StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    (errors.Unavailable("no"), StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    (errors.DataLoss("no"), StatusCode.DATA_LOSS, "DATA_LOSS"),
    (errors.Unimplemented("no"), StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"),
    (errors.LeaseLost("no"), StatusCode.ABORTED, "LEASE_LOST"),
]


def subclasses(kind: type[errors.OpsplaneError]) -> set[type[errors.OpsplaneError]]:
    return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))


async def test_every_domain_error_is_in_the_table() -> None:
    # Rooms may refine them; what a refinement is not in the table for, its base is.
    public = {
        kind
        for kind in subclasses(errors.OpsplaneError)
        if kind.__module__ == errors.__name__ and not kind.__name__.startswith("_")
    }
    assert {type(error) for error, _, _ in MAPPED} == public - {errors.OpsplaneError}


@pytest.mark.parametrize(("error", "code", "reason"), MAPPED, ids=lambda value: type(value).__name__)
async def test_domain_error_becomes_its_status(
    echo: EchoServicer, grpc_stub: EchoStub, error: errors.OpsplaneError, code: StatusCode, reason: str
) -> None:
    echo.error = error
    with require_status(code, reason) as refusal:
        await grpc_stub.Say(Request())
    assert refusal.message == error.message
    assert refusal.details is not None
    assert dict(refusal.details.info.metadata) == error.metadata


@pytest.mark.parametrize("method", ["Repeat", "RepeatByWriting"])
async def test_stream_that_fails_midway_delivers_what_it_had(
    echo: EchoServicer, grpc_stub: EchoStub, method: str
) -> None:
    echo.error = errors.NotFound("gone")
    call = getattr(grpc_stub, method)(Request(text="a", count=3))
    assert (await call.read()).text == "a0"
    with require_status(StatusCode.NOT_FOUND, "NOT_FOUND"):
        await call.read()


async def test_bidirectional_stream_maps_errors(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    echo.error = errors.Unavailable("later", retry_after=timedelta(seconds=2.5))
    with require_status(StatusCode.UNAVAILABLE, "UNAVAILABLE") as refusal:
        await grpc_stub.Chat(iter([Request(text="a")])).read()
    assert refusal.details is not None
    assert refusal.details.retry is not None
    assert refusal.details.retry.retry_delay.ToTimedelta() == timedelta(seconds=2.5)


async def test_failed_precondition_names_subject_and_reason(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    echo.error = errors.FailedPrecondition(
        "projects/a/runs/b has ended", reason="RUN_ENDED", metadata={"resource": "projects/a/runs/b"}
    )
    with require_status(StatusCode.FAILED_PRECONDITION, "RUN_ENDED") as refusal:
        await grpc_stub.Say(Request())
    assert refusal.details is not None
    assert refusal.details.precondition is not None
    [violation] = refusal.details.precondition.violations
    assert (violation.type, violation.subject) == ("RUN_ENDED", "projects/a/runs/b")


async def test_subclass_is_mapped_as_its_base(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    class ProjectMissing(errors.NotFound):
        """Not in the table itself."""

    echo.error = ProjectMissing("no project")
    with require_status(StatusCode.NOT_FOUND, "NOT_FOUND"):
        await grpc_stub.Say(Request())


async def test_lone_error_of_a_task_group_is_unwrapped(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    echo.error = ExceptionGroup("tasks", [ExceptionGroup("inner", [errors.NotFound("gone")])])
    with require_status(StatusCode.NOT_FOUND, "NOT_FOUND"):
        await grpc_stub.Say(Request())


async def test_unexpected_error_tells_the_caller_nothing(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    echo.error = RuntimeError("password=hunter2")
    with capture_logs() as logs, require_status(StatusCode.INTERNAL, "INTERNAL") as refusal:
        await grpc_stub.Say(Request())
    assert "hunter2" not in refusal.message
    assert refusal.details is not None
    assert refusal.details.info.metadata["trace_id"] in refusal.message
    [logged] = [line for line in logs if line["event"] == "unexpected error"]
    assert logged["exc_info"] is echo.error
    assert logged["log_level"] == "error"


async def test_abort_by_hand_passes(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await grpc_stub.Say(Request(text="abort"))
    assert caught.value.code() is StatusCode.OUT_OF_RANGE
    assert caught.value.details() == "aborted by hand"
    trailing: Any = caught.value.trailing_metadata()
    assert trailing["why"] == "because"


@pytest.mark.parametrize("size", [1, 1000])
async def test_details_always_fit_in_a_callers_limit(echo: EchoServicer, grpc_stub: EchoStub, size: int) -> None:
    long = "필드" * 5000
    violations = [errors.FieldViolation(f"{long}[{number}]", long) for number in range(size)]
    echo.error = errors.InvalidArgument(long, violations)
    with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await grpc_stub.Say(Request())
    assert refusal.details is not None
    assert refusal.details.bad_request is not None
    listed = refusal.details.bad_request.field_violations
    if size > 1:
        assert listed[-1].description == f"and {size - len(listed) + 1} more"


async def test_deadline_ends_the_handler(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with capture_logs() as logs:
        with require_status(StatusCode.DEADLINE_EXCEEDED):
            await grpc_stub.Say(Request(text="sleep"), timeout=0.2)
        await asyncio.wait_for(echo.closed.wait(), 10)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_cancellation_ends_the_handler(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with capture_logs() as logs:
        call = grpc_stub.Repeat(Request(text="a", count=1_000_000))
        await call.read()
        call.cancel()
        await asyncio.wait_for(echo.closed.wait(), 10)
    assert [line for line in logs if line["log_level"] == "error"] == []
