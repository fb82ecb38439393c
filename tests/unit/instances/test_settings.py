"""What callers ask of an instance, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.instances.v1 import events_pb2, instance_pb2, webhooks_pb2
from opsplane_server.errors import InvalidArgument
from opsplane_server.instances import settings
from opsplane_server.instances.convert import instance_message, settings_message
from opsplane_server.instances.model import HighAvailability, InstanceState, PointInTimeRecovery, ProviderKind
from opsplane_server.instances.records import EventKind, Instance, Webhook

MIB = 1 << 20
POSTGRESQL, MARIADB = instance_pb2.ENGINE_POSTGRESQL, instance_pb2.ENGINE_MARIADB
SYNCHRONOUS = instance_pb2.REPLICATION_MODE_SYNCHRONOUS


def new(**fields: Any) -> Instance:
    message = instance_pb2.Instance(**{"engine": POSTGRESQL, **fields})
    return settings.new_instance(
        message, name="instances/orders", uid="uid", version="18.4", provider=ProviderKind.LOCAL, machine="here"
    )


def update(current: Instance, mask: Sequence[str] = (), **fields: Any) -> Instance:
    message = instance_pb2.Instance(name=current.name, **fields)
    paths = settings.updated_fields(current, message, FieldMask(paths=mask))
    return settings.updated(current, message, paths)


def resources(**fields: int) -> instance_pb2.Resources:
    return instance_pb2.Resources(**fields)


def ha(**fields: Any) -> instance_pb2.HighAvailability:
    return instance_pb2.HighAvailability(**fields)


# --- new ones


def test_what_is_left_out_gets_its_default() -> None:
    made = new()
    assert (made.version, made.spec.version) == ("18.4", "18.4")
    assert (made.spec.database, made.spec.username) == ("app", "app")
    assert made.spec.resources.storage_bytes == 1024 * MIB
    assert made.spec.resources.memory_bytes == made.spec.resources.memory_request_bytes == 512 * MIB
    assert made.spec.resources.cpu_millis == made.spec.resources.cpu_request_millis == 500
    assert made.spec.high_availability is None
    assert made.spec.point_in_time_recovery is None
    assert made.spec.placement is None


def test_what_is_asked_for_is_kept() -> None:
    made = new(
        version="18",
        resources=resources(memory_request_bytes=1024 * MIB),
        high_availability=ha(replication_mode=SYNCHRONOUS, automatic_failover=False),
        point_in_time_recovery=instance_pb2.PointInTimeRecovery(enabled=True),
        placement=instance_pb2.Placement(namespace="ns", zone_spread=instance_pb2.ZONE_SPREAD_REQUIRED),
    )
    assert made.version == "18"
    assert made.spec.resources.memory_bytes == 1024 * MIB
    assert made.spec.high_availability == HighAvailability(3, 1, automatic_failover=False)
    assert made.spec.point_in_time_recovery == PointInTimeRecovery(7)
    assert made.spec.placement is not None
    assert made.spec.placement.zone_spread == "REQUIRED"


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": 0},
        {"expire_time": datetime.now(UTC) - timedelta(seconds=1)},
        {"engine": MARIADB, "point_in_time_recovery": instance_pb2.PointInTimeRecovery(enabled=True)},
        {"username": "none"},
        {"database": "template0"},
        {"engine": MARIADB, "username": "ROOT"},
        {"engine": MARIADB, "database": "Mysql"},
        {"engine": instance_pb2.ENGINE_MYSQL, "username": "u" * 33},
    ],
)
def test_what_can_not_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        new(**fields)


# --- changes


def test_without_a_mask_what_is_set_changes() -> None:
    current = new(labels={"a": "b"}, parameters={"work_mem": "8MB"})
    changed = update(current, resources=resources(storage_bytes=2048 * MIB), deletion_protection=True)
    assert changed.spec.resources.storage_bytes == 2048 * MIB
    assert changed.spec.resources.memory_bytes == 512 * MIB
    assert changed.deletion_protection
    assert (changed.labels, changed.spec.parameters) == ({"a": "b"}, {"work_mem": "8MB"})
    assert (changed.previous, changed.revision) == (current.spec, current.revision + 1)
    assert changed.spec.generation == current.spec.generation + 1


def test_without_a_changed_spec_there_is_nothing_to_go_back_to() -> None:
    changed = update(new(), labels={"a": "b"})
    assert changed.previous is None
    assert changed.spec.generation == 1
    assert changed.revision == 2


def test_a_mask_takes_defaults_and_empties() -> None:
    current = new(
        labels={"a": "b"}, parameters={"work_mem": "8MB"}, resources=resources(memory_bytes=1024 * MIB), version="18"
    )
    changed = update(current, ["labels", "parameters", "resources.memory_bytes"])
    assert (changed.labels, changed.spec.parameters) == ({}, {})
    assert changed.spec.resources.memory_bytes == 512 * MIB
    whole = update(new(resources=resources(storage_bytes=2048 * MIB, cpu_millis=900)), ["resources"])
    assert (whole.spec.resources.storage_bytes, whole.spec.resources.cpu_millis) == (2048 * MIB, 500)


def test_what_is_set_aside_follows_its_limit_until_it_is_set_apart() -> None:
    together = update(new(), resources=resources(memory_bytes=256 * MIB))
    assert together.spec.resources.memory_request_bytes == 256 * MIB
    apart = update(new(), resources=resources(memory_request_bytes=128 * MIB))
    assert apart.spec.resources.memory_bytes == 512 * MIB
    grown = update(apart, resources=resources(memory_bytes=1024 * MIB))
    assert grown.spec.resources.memory_request_bytes == 128 * MIB
    with pytest.raises(InvalidArgument):
        update(apart, ["resources.memory_bytes"], resources=resources(memory_bytes=64 * MIB))


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        ([], {"resources": {"storage_bytes": 512 * MIB}}),
        (["engine"], {}),
        (["state"], {}),
        ([], {"engine": MARIADB}),
        ([], {"version": "16"}),
        ([], {"database": "other"}),
        ([], {"placement": {"namespace": "other"}}),
        ([], {"high_availability": {"synchronous_replica_count": 1}}),
    ],
)
def test_what_can_not_change_is_refused(mask: list[str], fields: dict[str, Any]) -> None:
    current = new(high_availability=ha())
    with pytest.raises(InvalidArgument):
        update(current, mask, **fields)


def test_the_whole_instance_as_it_was_read_changes_nothing() -> None:
    current = new(version="18", high_availability=ha(), labels={"a": "b"}, parameters={"work_mem": "8MB"})
    read = instance_message(current)
    fields = settings.updated_fields(current, read, FieldMask())
    assert settings.updated(current, read, fields).spec == current.spec


def test_replicas_come_and_go() -> None:
    single = new()
    cluster = update(single, high_availability=ha())
    assert cluster.spec.high_availability == HighAvailability(3)
    more = update(cluster, high_availability=ha(node_count=5))
    assert more.spec.high_availability == HighAvailability(5)
    waiting = update(more, high_availability=ha(replication_mode=SYNCHRONOUS, synchronous_replica_count=2))
    assert waiting.spec.high_availability == HighAvailability(5, 2)
    by_hand = update(waiting, high_availability=ha(automatic_failover=False))
    assert by_hand.spec.high_availability == HighAvailability(5, 2, automatic_failover=False)
    quick = update(by_hand, ["high_availability.replication_mode"])
    assert quick.spec.high_availability == HighAvailability(5, 0, automatic_failover=False)
    with pytest.raises(InvalidArgument):
        update(waiting, high_availability=ha(node_count=2))
    assert update(quick, labels={"a": "b"}).spec.high_availability is not None
    assert update(quick, ["high_availability"]).spec.high_availability is None


def test_a_webhook_keeps_its_key_until_there_is_another() -> None:
    hook = webhooks_pb2.Webhook(url="http://a", signing_key="k" * 16, kinds=[events_pb2.Event.KIND_FAILED])
    current = new(webhooks=[hook])
    assert current.webhooks == (Webhook("http://a", "k" * 16, (EventKind.FAILED,)),)
    kept = update(current, webhooks=[webhooks_pb2.Webhook(url="http://a"), webhooks_pb2.Webhook(url="http://b")])
    assert [hook.signing_key for hook in kept.webhooks] == ["k" * 16, ""]
    assert update(kept, ["webhooks"]).webhooks == ()


def test_protection_and_expiry_exclude_each_other() -> None:
    current = new(deletion_protection=True)
    with pytest.raises(InvalidArgument):
        update(current, expire_time=datetime.now(UTC) + timedelta(hours=1))


# --- restores


def restored(source: Instance, **fields: Any) -> Instance:
    return settings.restored_instance(
        settings_message(source),
        instance_pb2.Instance(**fields),
        name="instances/again",
        uid="other",
        version="18.4",
        provider=ProviderKind.LOCAL,
        machine="here",
    )


def test_a_restore_takes_over_what_it_is_not_told_otherwise() -> None:
    source = new(
        database="shop",
        username="owner",
        labels={"a": "b"},
        parameters={"work_mem": "8MB"},
        resources=resources(storage_bytes=2048 * MIB, memory_bytes=1024 * MIB),
        high_availability=ha(),
        deletion_protection=True,
        webhooks=[webhooks_pb2.Webhook(url="http://a")],
    )
    same = restored(source)
    assert (same.name, same.uid, same.state) == ("instances/again", "other", InstanceState.RESTORING)
    assert (same.spec.database, same.spec.username) == ("shop", "owner")
    assert same.spec.resources == source.spec.resources
    assert (same.labels, same.spec.parameters) == (source.labels, source.spec.parameters)
    assert same.spec.high_availability is None
    assert not same.deletion_protection
    assert same.webhooks == ()
    other = restored(
        source, resources=resources(memory_bytes=256 * MIB), parameters={"work_mem": "4MB"}, high_availability=ha()
    )
    assert other.spec.resources.memory_bytes == other.spec.resources.memory_request_bytes == 256 * MIB
    assert other.spec.resources.storage_bytes == 2048 * MIB
    assert other.spec.parameters == {"work_mem": "4MB"}
    assert other.spec.high_availability == HighAvailability(3)


def test_made_passwords_are_strong_and_plain() -> None:
    made = {settings.new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) == 24 and password.isalnum() and password.isascii() for password in made)
