"""Small parts of submitting and reading: secrets taken out, versions meant, filters and pages in memory."""

from __future__ import annotations

import pytest
from opsplane.instances.v1 import copies_pb2, events_pb2, instance_pb2, instances_pb2, webhooks_pb2
from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.instances import versions
from opsplane_server.instances.filtering import (
    enum_names,
    matching,
    page_by_name,
    page_by_place,
    without_prefixes,
)
from opsplane_server.instances.model import Engine
from opsplane_server.instances.submission import without_secrets
from opsplane_server.rpc.filters import Condition


def test_no_secret_is_left_wherever_it_was() -> None:
    instance = instance_pb2.Instance(
        engine=instance_pb2.ENGINE_POSTGRESQL,
        password="secret password",
        labels={"password": "this is none"},
        webhooks=[webhooks_pb2.Webhook(url="http://a", signing_key="secret key")],
    )
    requests = [
        instances_pb2.CreateInstanceRequest(instance=instance),
        copies_pb2.RestoreCopyRequest(instance=instance, copy=copies_pb2.InstanceCopy(settings=instance)),
        copies_pb2.RecordEventRequest(
            event=events_pb2.Event(message="m"), webhooks=[webhooks_pb2.Webhook(url="http://b", signing_key="secret")]
        ),
    ]
    for request in requests:
        cleared = without_secrets(request)
        assert b"secret" not in cleared.SerializeToString()
        assert b"http://" in cleared.SerializeToString()
        assert request != cleared
    create = without_secrets(requests[0])
    assert isinstance(create, instances_pb2.CreateInstanceRequest)
    assert create.instance.labels == {"password": "this is none"}


@pytest.mark.parametrize(
    ("asked", "meant"), [("", "18.10"), ("18", "18.10"), ("18.4", "18.4"), ("16", "16.14"), ("1", None), ("18.5", None)]
)
def test_the_newest_version_that_fits_is_meant(asked: str, meant: str | None) -> None:
    offered = ["16.14", "18.10", "18.4"]
    if meant is not None:
        assert versions.resolve(Engine.POSTGRESQL, asked, offered) == meant
        return
    with pytest.raises(FailedPrecondition) as refused:
        versions.resolve(Engine.POSTGRESQL, asked, offered)
    assert refused.value.reason == "ENGINE_NOT_INSTALLED"


def test_what_to_install_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="mariadb-server"):
        versions.resolve(Engine.MARIADB, "", [])
    assert versions.major(Engine.POSTGRESQL, "18.4") == "18"
    assert versions.major(Engine.MARIADB, "10.11.6") == "10.11"


def test_conditions_hold_together() -> None:
    items = [("alpha", 1), ("Beta", 2), ("gamma", 3)]
    values = {"name": lambda item: item[0], "size": lambda item: item[1]}

    def found(*conditions: Condition) -> list[str]:
        return [item[0] for item in matching(items, conditions, values)]

    assert found() == ["alpha", "Beta", "gamma"]
    assert found(Condition("name", ":", "ET")) == ["Beta"]
    assert found(Condition("size", ">=", 2), Condition("name", "!=", "gamma")) == ["Beta"]
    assert found(Condition("size", "<", 2)) == ["alpha"]


def test_enumerations_go_by_both_names() -> None:
    assert enum_names("STATE_", ["READY"]) == {"READY", "STATE_READY"}
    conditions = [Condition("state", "=", "STATE_READY"), Condition("other", "=", "STATE_READY")]
    assert [one.value for one in without_prefixes(conditions, {"state": "STATE_"})] == ["READY", "STATE_READY"]


def test_pages_end_where_the_next_begins() -> None:
    names = ["d", "a", "c", "b", "e"]
    seen, token = [], ""
    while True:
        page, token = page_by_name(names, lambda name: name, page_size=2, page_token=token, binding="x")
        seen += page
        if not token:
            break
    assert seen == sorted(names)
    first, token = page_by_place(names, page_size=3, page_token="", binding="y")
    rest, end = page_by_place(names, page_size=3, page_token=token, binding="y")
    assert (first + rest, end) == (names, "")
    with pytest.raises(InvalidArgument):
        page_by_place(names, page_size=3, page_token=token, binding="z")
