"""What callers ask of an instance: proto -> domain, defaults, and what may change to what."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.instances.v1 import events_pb2, instance_pb2, webhooks_pb2

from opsplane_server.errors import InvalidArgument
from opsplane_server.instances import reserved
from opsplane_server.instances.model import (
    Engine,
    HighAvailability,
    InstanceSpec,
    InstanceState,
    Placement,
    PointInTimeRecovery,
    ProviderKind,
    Resources,
)
from opsplane_server.instances.records import EventKind, Instance, Webhook
from opsplane_server.rpc.masks import changed_fields

_MIB: Final = 1024 * 1024
_DEFAULT_RESOURCES: Final = Resources(1024 * _MIB, 512 * _MIB, 500, 512 * _MIB, 500)
_DEFAULT_NODES: Final = 3
_DEFAULT_WINDOW_DAYS: Final = 7
_DEFAULT_NAME: Final = "app"

_RESOURCES: Final = ("storage_bytes", "memory_bytes", "cpu_millis", "memory_request_bytes", "cpu_request_millis")
_HIGH_AVAILABILITY: Final = ("node_count", "replication_mode", "synchronous_replica_count", "automatic_failover")
UPDATABLE: Final = (
    "resources",
    *(f"resources.{field}" for field in _RESOURCES),
    "parameters",
    "high_availability",
    *(f"high_availability.{field}" for field in _HIGH_AVAILABILITY),
    "point_in_time_recovery",
    "deletion_protection",
    "expire_time",
    "labels",
    "webhooks",
)
_IMMUTABLE: Final = ("engine", "version", "provider", "database", "username")

_ALPHABET: Final = string.ascii_letters + string.digits
_PASSWORD_LENGTH: Final = 24  # 142 bits


def new_password() -> str:
    """A strong one, of letters and digits alone, which need no quoting anywhere."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_PASSWORD_LENGTH))


def engine_of(message: instance_pb2.Instance) -> Engine:
    """The engine, which must be said."""
    if message.engine == instance_pb2.ENGINE_UNSPECIFIED:
        raise InvalidArgument.of("instance.engine", "is required")
    return Engine(instance_pb2.Engine.Name(message.engine).removeprefix("ENGINE_"))


def provider_of(provider: instance_pb2.Provider.ValueType, default: ProviderKind) -> ProviderKind:
    """What is to run it."""
    if provider == instance_pb2.PROVIDER_UNSPECIFIED:
        return default
    return ProviderKind(instance_pb2.Provider.Name(provider).removeprefix("PROVIDER_"))


def new_instance(
    message: instance_pb2.Instance, *, name: str, uid: str, version: str, provider: ProviderKind, machine: str
) -> Instance:
    """What is asked for, with every default filled in. `version` is the exact one. Raises InvalidArgument."""
    engine = engine_of(message)
    spec = InstanceSpec(
        name=name,
        uid=uid,
        engine=engine,
        version=version,
        provider=provider,
        machine=machine,
        database=message.database or _DEFAULT_NAME,
        username=message.username or _DEFAULT_NAME,
        resources=_resources(message.resources, _DEFAULT_RESOURCES),
        parameters=dict(message.parameters),
        high_availability=(
            _high_availability(message.high_availability) if message.HasField("high_availability") else None
        ),
        point_in_time_recovery=_point_in_time_recovery(engine, message),
        placement=_placement(message.placement) if message.HasField("placement") else None,
    )
    reserved.check_user(engine, spec.username, "instance.username")
    reserved.check_database(engine, spec.database, "instance.database")
    return _checked(
        Instance(
            spec=spec,
            version=message.version or version,
            state=InstanceState.CREATING,
            deletion_protection=message.deletion_protection,
            expire_time=_expire_time(message),
            labels=dict(message.labels),
            webhooks=_webhooks(message.webhooks, ()),
        )
    )


def restored_instance(
    source: instance_pb2.Instance,
    wanted: Any,
    *,
    name: str,
    uid: str,
    version: str,
    provider: ProviderKind,
    machine: str,
) -> Instance:
    """A new instance with the settings of a source, where `wanted` says nothing else.

    Replicas, protection, expiry and webhooks, whose keys no copy has, are never taken over.
    """
    message: Any = instance_pb2.Instance()
    message.CopyFrom(source)
    for field in ("high_availability", "deletion_protection", "expire_time", "webhooks", "version"):
        message.ClearField(field)
    for field in _RESOURCES:
        if value := getattr(wanted.resources, field):
            setattr(message.resources, field, value)
    # A request of the source must not stand above a smaller limit.
    for limit, request in (("memory_bytes", "memory_request_bytes"), ("cpu_millis", "cpu_request_millis")):
        if getattr(wanted.resources, limit) and not getattr(wanted.resources, request):
            message.resources.ClearField(request)
    for field in ("parameters", "labels"):
        if getattr(wanted, field):
            message.ClearField(field)
            getattr(message, field).update(getattr(wanted, field))
    for field in ("high_availability", "point_in_time_recovery", "placement", "expire_time"):
        if wanted.HasField(field):
            getattr(message, field).CopyFrom(getattr(wanted, field))
    message.deletion_protection = wanted.deletion_protection
    message.webhooks.extend(wanted.webhooks)
    restored = new_instance(message, name=name, uid=uid, version=version, provider=provider, machine=machine)
    return replace(restored, state=InstanceState.RESTORING)


def updated(current: Instance, message: instance_pb2.Instance, fields: Collection[str]) -> Instance:
    """The record with the changes of an update to `fields`. Raises InvalidArgument."""
    _check_immutable(current, message)
    wanted = replace(
        current,
        deletion_protection=(
            message.deletion_protection if "deletion_protection" in fields else current.deletion_protection
        ),
        expire_time=_expire_time(message) if "expire_time" in fields else current.expire_time,
        labels=dict(message.labels) if "labels" in fields else current.labels,
        webhooks=_webhooks(message.webhooks, current.webhooks) if "webhooks" in fields else current.webhooks,
    )
    if wanted.deletion_protection and wanted.expire_time is not None:
        raise InvalidArgument.of("instance.expire_time", "cannot be set together with deletion_protection")
    spec = current.spec
    spec = replace(
        spec,
        resources=_changed_resources(spec.resources, message.resources, fields),
        parameters=dict(message.parameters) if "parameters" in fields else spec.parameters,
        high_availability=_changed_high_availability(spec.high_availability, message, fields),
        point_in_time_recovery=(
            _point_in_time_recovery(spec.engine, message)
            if "point_in_time_recovery" in fields
            else spec.point_in_time_recovery
        ),
    )
    if spec != current.spec:
        spec = replace(spec, generation=spec.generation + 1)
        wanted = replace(wanted, spec=spec, previous=current.spec)
    return replace(_checked(wanted), revision=current.revision + 1)


def updated_fields(current: Instance, message: instance_pb2.Instance, mask: FieldMask) -> Collection[str]:
    """Paths of the fields that an update changes. Raises InvalidArgument."""
    fields = changed_fields(mask, message, UPDATABLE)
    if mask.paths:
        return fields
    # Without a mask what is set counts, field by field; only of what was not there before all of it.
    whole = {"resources"} if current.spec.high_availability is None else {"resources", "high_availability"}
    return [field for field in fields if field not in whole]


def _check_immutable(current: Instance, message: instance_pb2.Instance) -> None:
    spec = current.spec
    present: Mapping[str, Collection[object]] = {
        "engine": [instance_pb2.Engine.Value(f"ENGINE_{spec.engine}")],
        "version": [current.version, spec.version],
        "provider": [instance_pb2.Provider.Value(f"PROVIDER_{spec.provider}")],
        "database": [spec.database],
        "username": [spec.username],
    }
    for field in _IMMUTABLE:
        asked = getattr(message, field)
        if asked and asked not in present[field]:
            raise InvalidArgument.of(f"instance.{field}", "cannot be changed")
    if message.HasField("placement") and _placement(message.placement) != (spec.placement or Placement()):
        raise InvalidArgument.of("instance.placement", "cannot be changed")


def _resources(message: instance_pb2.Resources, defaults: Resources) -> Resources:
    memory = message.memory_bytes or defaults.memory_bytes
    cpu = message.cpu_millis or defaults.cpu_millis
    # Limits that are left out are never below what is set aside.
    if not message.memory_bytes:
        memory = max(memory, message.memory_request_bytes)
    if not message.cpu_millis:
        cpu = max(cpu, message.cpu_request_millis)
    return Resources(
        storage_bytes=message.storage_bytes or defaults.storage_bytes,
        memory_bytes=memory,
        cpu_millis=cpu,
        memory_request_bytes=message.memory_request_bytes or memory,
        cpu_request_millis=message.cpu_request_millis or cpu,
    )


def _changed_resources(current: Resources, message: instance_pb2.Resources, fields: Collection[str]) -> Resources:
    if "resources" in fields:
        # Storage can not shrink to its default.
        wanted = _resources(message, replace(_DEFAULT_RESOURCES, storage_bytes=current.storage_bytes))
    else:
        changes = {
            field: getattr(message, field) or getattr(_DEFAULT_RESOURCES, field)
            for field in _RESOURCES
            if f"resources.{field}" in fields
        }
        wanted = replace(current, **changes)
        wanted = _following(current, wanted, "memory_bytes", "memory_request_bytes", changes, message)
        wanted = _following(current, wanted, "cpu_millis", "cpu_request_millis", changes, message)
    if wanted.storage_bytes < current.storage_bytes:
        raise InvalidArgument.of(
            "instance.resources.storage_bytes", f"cannot shrink from {current.storage_bytes}", reason="STORAGE_SHRINKS"
        )
    for limit, request in (("memory_bytes", "memory_request_bytes"), ("cpu_millis", "cpu_request_millis")):
        if getattr(wanted, request) > getattr(wanted, limit):
            raise InvalidArgument.of(f"instance.resources.{request}", f"must not exceed {limit}")
    return wanted


def _following(
    current: Resources,
    wanted: Resources,
    limit: str,
    request: str,
    changes: Mapping[str, int],
    message: instance_pb2.Resources,
) -> Resources:
    """What is set aside is by default the limit, and goes with it as long as it was not set apart."""
    asked_default = request in changes and not getattr(message, request)
    untouched = request not in changes and getattr(current, request) == getattr(current, limit)
    return replace(wanted, **{request: getattr(wanted, limit)}) if asked_default or untouched else wanted


def _high_availability(message: instance_pb2.HighAvailability) -> HighAvailability:
    synchronous = message.replication_mode == instance_pb2.REPLICATION_MODE_SYNCHRONOUS
    return HighAvailability(
        node_count=message.node_count or _DEFAULT_NODES,
        synchronous_replicas=(message.synchronous_replica_count or 1) if synchronous else 0,
        automatic_failover=not message.HasField("automatic_failover") or message.automatic_failover,
    )


def _changed_high_availability(
    current: HighAvailability | None, message: instance_pb2.Instance, fields: Collection[str]
) -> HighAvailability | None:
    asked = message.high_availability
    if "high_availability" in fields:
        return _high_availability(asked) if message.HasField("high_availability") else None
    named = [field for field in _HIGH_AVAILABILITY if f"high_availability.{field}" in fields]
    if not named:
        return current
    if current is None:
        return _high_availability(asked)
    wanted = _high_availability(asked)
    if "node_count" in named:
        current = replace(current, node_count=wanted.node_count)
    if "automatic_failover" in named:
        current = replace(current, automatic_failover=wanted.automatic_failover)
    if "replication_mode" in named:
        kept = current.synchronous_replicas if "synchronous_replica_count" not in named else 0
        count = (kept or wanted.synchronous_replicas) if wanted.synchronous_replicas else 0
        current = replace(current, synchronous_replicas=count)
    elif "synchronous_replica_count" in named:
        if not current.synchronous_replicas and asked.synchronous_replica_count:
            raise InvalidArgument.of(
                "instance.high_availability.synchronous_replica_count",
                "needs replication_mode REPLICATION_MODE_SYNCHRONOUS",
            )
        if current.synchronous_replicas:
            current = replace(current, synchronous_replicas=asked.synchronous_replica_count or 1)
    return current


def _point_in_time_recovery(engine: Engine, message: instance_pb2.Instance) -> PointInTimeRecovery | None:
    asked = message.point_in_time_recovery
    if not asked.enabled:
        return None
    if engine is not Engine.POSTGRESQL:
        raise InvalidArgument.of("instance.point_in_time_recovery", f"is there for PostgreSQL only, not for {engine}")
    return PointInTimeRecovery(asked.window_days or _DEFAULT_WINDOW_DAYS)


def _placement(message: instance_pb2.Placement) -> Placement:
    spread = instance_pb2.ZoneSpread.Name(message.zone_spread).removeprefix("ZONE_SPREAD_")
    return Placement(message.namespace, message.storage_class, "" if spread == "UNSPECIFIED" else spread)


def _expire_time(message: instance_pb2.Instance) -> datetime | None:
    if not message.HasField("expire_time"):
        return None
    moment = message.expire_time.ToDatetime(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise InvalidArgument.of("instance.expire_time", "has passed")
    return moment


def _webhooks(messages: Sequence[webhooks_pb2.Webhook], present: Sequence[Webhook]) -> tuple[Webhook, ...]:
    keys = {webhook.url: webhook.signing_key for webhook in present}
    urls = [message.url for message in messages]
    if len(set(urls)) != len(urls):
        raise InvalidArgument.of("instance.webhooks", "name a URL twice")
    return tuple(
        Webhook(message.url, message.signing_key or keys.get(message.url, ""), _kinds(message)) for message in messages
    )


def _kinds(message: webhooks_pb2.Webhook) -> tuple[EventKind, ...]:
    return tuple(EventKind(events_pb2.Event.Kind.Name(kind).removeprefix("KIND_")) for kind in message.kinds)


def webhooks(messages: Sequence[webhooks_pb2.Webhook]) -> tuple[Webhook, ...]:
    """Webhooks that belong to no instance."""
    return tuple(Webhook(message.url, message.signing_key, _kinds(message)) for message in messages)


def _checked(instance: Instance) -> Instance:
    settings = instance.spec.high_availability
    if settings is not None and settings.synchronous_replicas >= settings.node_count:
        raise InvalidArgument.of("instance.high_availability.synchronous_replica_count", "must be below node_count")
    return instance
