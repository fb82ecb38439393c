from datetime import UTC, datetime

import pytest
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2, wrappers_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from opsplane.common.v1 import platform_pb2
from opsplane_server.platform.convert import audit_event_to_proto, operation_to_proto, resource_of
from opsplane_server.platform.model import AuditEvent, Operation, OperationState

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def operation(state: OperationState = OperationState.RUNNING) -> Operation:
    response = any_pb2.Any()
    response.Pack(wrappers_pb2.StringValue(value="done"))
    return Operation(
        id=7,
        name="operations/one",
        kind="k",
        verb="CreateThing",
        target="things/one",
        principal="ann",
        request=None,
        request_id="r",
        node=None,
        hidden=False,
        state=state,
        step="s",
        data={},
        stage="starting",
        progress_percent=40,
        cancel_requested=True,
        generation=3,
        attempt=2,
        crashes=1,
        response=response if state is OperationState.SUCCEEDED else None,
        error=status_pb2.Status(code=code_pb2.CANCELLED) if state is OperationState.CANCELLED else None,
        revision=9,
        create_time=TIME,
        update_time=TIME,
        end_time=TIME if state.done else None,
    )


def metadata_of(message: operations_pb2.Operation) -> platform_pb2.OperationMetadata:
    metadata = platform_pb2.OperationMetadata()
    assert message.metadata.Unpack(metadata)
    return metadata


def test_a_running_operation_has_no_result() -> None:
    message = operation_to_proto(operation())
    metadata = metadata_of(message)
    assert (message.name, message.done, message.WhichOneof("result")) == ("operations/one", False, None)
    assert (metadata.target, metadata.verb, metadata.stage) == ("things/one", "CreateThing", "starting")
    assert (metadata.progress_percent, metadata.request_id, metadata.attempt) == (40, "r", 2)
    assert metadata.cancel_requested
    assert metadata.create_time.ToDatetime(UTC) == TIME
    assert not metadata.HasField("end_time")


@pytest.mark.parametrize(
    ("state", "result"), [(OperationState.SUCCEEDED, "response"), (OperationState.CANCELLED, "error")]
)
def test_a_finished_operation_has_its_result(state: OperationState, result: str) -> None:
    message = operation_to_proto(operation(state))
    assert message.done
    assert message.WhichOneof("result") == result
    assert metadata_of(message).end_time.ToDatetime(UTC) == TIME


def test_an_audit_event_keeps_all_its_fields() -> None:
    message = audit_event_to_proto(AuditEvent("ann", "/s/M", "things/one", "r", "ipv4:1", "ab", id=5, event_time=TIME))
    assert (message.event_id, message.principal, message.method, message.resource) == (
        5,
        "ann",
        "/s/M",
        "things/one",
    )
    assert (message.request_id, message.peer, message.trace_id) == ("r", "ipv4:1", "ab")
    assert message.event_time.ToDatetime(UTC) == TIME


@pytest.mark.parametrize(
    ("request_message", "response", "resource"),
    [
        (empty_pb2.Empty(), operation_to_proto(operation()), "things/one"),
        (empty_pb2.Empty(), status_pb2.Status(), ""),
        (operations_pb2.DeleteOperationRequest(name="operations/x"), empty_pb2.Empty(), "operations/x"),
        (
            operations_pb2.GetOperationRequest(name="asked"),
            operations_pb2.GetOperationRequest(name="answered"),
            "answered",
        ),
    ],
)
def test_the_resource_of_a_call(request_message: Message, response: Message, resource: str) -> None:
    assert resource_of(request_message, response) == resource
