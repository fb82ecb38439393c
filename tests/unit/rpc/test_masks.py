from __future__ import annotations

import pytest
from google.longrunning.operations_pb2 import Operation
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc.masks import changed_fields

UPDATABLE = ("name", "done", "error.message")


def operation() -> Operation:
    message = Operation(name="operations/a")
    message.error.message = "broken"
    message.error.code = 3
    return message


@pytest.mark.parametrize(
    ("paths", "changed"),
    [
        ([], ["name", "error.message"]),
        (["*"], ["name", "done", "error.message"]),
        (["done"], ["done"]),
        (["error.message", "name", "name"], ["name", "error.message"]),
    ],
)
def test_changed_fields(paths: list[str], changed: list[str]) -> None:
    assert changed_fields(FieldMask(paths=paths), operation(), UPDATABLE) == changed


def test_nothing_set_and_no_mask_changes_nothing() -> None:
    assert changed_fields(FieldMask(), Operation(), UPDATABLE) == []


@pytest.mark.parametrize(
    ("paths", "faults"),
    [
        (["nome"], ["'nome' is not a field of the resource"]),
        (["error.code"], ["'error.code' can not be changed"]),
        (["error"], ["'error' can not be changed"]),
        (["name.x"], ["'name.x' is not a field of the resource"]),
        ([""], ["'' is not a field of the resource"]),
        (["*", "name"], ["`*` stands alone"]),
        (["name", "a", "b"], ["'a' is not a field of the resource", "'b' is not a field of the resource"]),
    ],
)
def test_refusals(paths: list[str], faults: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        changed_fields(FieldMask(paths=paths), operation(), UPDATABLE)
    assert [violation.description for violation in caught.value.violations] == faults
    assert {violation.field for violation in caught.value.violations} == {"update_mask"}
