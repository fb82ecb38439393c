"""Errors outlive the process that they were raised in."""

from __future__ import annotations

import json

import pytest
from opsplane_server import errors
from opsplane_server.instances.operations import failures
from opsplane_server.platform.model import OperationCancelled
from opsplane_server.rpc.interceptors.errors import status_of


@pytest.mark.parametrize(
    "error",
    [
        errors.FailedPrecondition("not so", reason="NO_CANDIDATE", metadata={"resource": "instances/orders"}),
        errors.InvalidArgument.of("parameters", "no such parameter"),
        errors.NotFound.resource("instances/orders"),
        errors.ResourceExhausted("no room", reason="NO_ROOM"),
        errors.DataLoss("damaged"),
        errors.OpsplaneError("odd"),
    ],
)
def test_the_same_comes_back(error: errors.OpsplaneError) -> None:
    kept = json.loads(json.dumps(failures.remember(error)))
    again = failures.recall(kept)
    assert isinstance(again, errors.OpsplaneError)
    assert type(again) is type(error)
    assert status_of(again) == status_of(error)


def test_a_wish_to_cancel_comes_back() -> None:
    kept = failures.remember(OperationCancelled())
    assert isinstance(failures.recall(kept), OperationCancelled)


def test_of_a_mistake_of_ours_nothing_is_told() -> None:
    mistake = ValueError("the password is hunter2")
    kept = failures.remember(mistake)
    assert "hunter2" not in json.dumps(kept)
    assert "hunter2" not in failures.words(mistake)
    assert isinstance(failures.recall(kept), errors.OpsplaneError)


@pytest.mark.parametrize("kind", [errors.FailedPrecondition, errors.NotFound, errors.Unavailable, errors.DataLoss])
def test_what_another_service_answers_keeps_its_meaning(kind: type[errors.OpsplaneError]) -> None:
    error = failures.of_status(status_of(kind("why", reason="BECAUSE", metadata={"a": "b"})))
    assert type(error) is kind
    assert (error.message, error.reason, error.metadata) == ("why", "BECAUSE", {"a": "b"})
