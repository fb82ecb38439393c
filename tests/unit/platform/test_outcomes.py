from google.protobuf import empty_pb2, wrappers_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opsplane_server.errors import InvalidArgument, NotFound
from opsplane_server.platform import outcomes

from tests.unit.platform.test_convert import operation


def reason_of(status: status_pb2.Status | None) -> str:
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


def test_success_packs_the_response() -> None:
    outcome = outcomes.succeeded(wrappers_pb2.StringValue(value="x"))
    message = wrappers_pb2.StringValue()
    assert outcome.response is not None
    assert outcome.response.Unpack(message)
    assert message.value == "x"


def test_success_without_a_response_is_empty() -> None:
    outcome = outcomes.succeeded(None)
    assert outcome.response is not None
    assert outcome.response.Is(empty_pb2.Empty.DESCRIPTOR)


def test_failure_keeps_code_reason_message_and_details() -> None:
    error = outcomes.failed(NotFound.resource("things/one")).error
    assert error is not None
    assert (error.code, error.message) == (code_pb2.NOT_FOUND, "things/one does not exist")
    assert reason_of(error) == "NOT_FOUND"

    error = outcomes.failed(InvalidArgument.of("size", "too small", reason="SIZE")).error
    assert error is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in error.details)
    assert bad.field_violations[0].field == "size"


def test_an_unexpected_failure_and_a_crash_say_where() -> None:
    unexpected, crashed = outcomes.failed_unexpectedly(operation()).error, outcomes.crashed(operation()).error
    assert unexpected is not None
    assert crashed is not None
    assert (unexpected.code, crashed.code) == (code_pb2.INTERNAL, code_pb2.INTERNAL)
    assert "step 's'" in unexpected.message
    assert "step 's'" in crashed.message
    assert reason_of(crashed) == "OPERATION_CRASHED_REPEATEDLY"


def test_cancelled_is_code_1() -> None:
    error = outcomes.cancelled().error
    assert error is not None
    assert error.code == code_pb2.CANCELLED
