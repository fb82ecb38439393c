import pytest
from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from opsplane_server.platform.servicer import patience


@pytest.mark.parametrize(
    ("asked", "remaining", "seconds"),
    [(None, None, 60), (5, None, 5), (5, 100, 5), (5, 4, 3), (None, 31, 30), (5, 0.5, 0), (0, None, 0), (-5, 3, 0)],
)
def test_a_wait_ends_before_the_caller_gives_up(asked: int | None, remaining: float | None, seconds: float) -> None:
    request = operations_pb2.WaitOperationRequest(name="operations/one")
    if asked is not None:
        request.timeout.CopyFrom(duration_pb2.Duration(seconds=asked))
    assert patience(request, remaining) == seconds
