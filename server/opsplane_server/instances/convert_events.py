"""domain <-> proto: events."""

from __future__ import annotations

from opsplane.instances.v1 import events_pb2

from opsplane_server.instances.records import Event, EventKind, Severity
from opsplane_server.rpc.times import timestamp


def event_message(event: Event, *, principal: bool = False) -> events_pb2.Event:
    """An event; who asked for it only where `principal` is set."""
    return events_pb2.Event(
        event_id=event.id,
        event_time=timestamp(event.time),
        kind=events_pb2.Event.Kind.Value(f"KIND_{event.kind}"),
        severity=events_pb2.Event.Severity.Value(f"SEVERITY_{event.severity}"),
        instance=event.instance,
        instance_uid=event.instance_uid,
        node=event.node,
        resource=event.resource,
        operation=event.operation,
        message=event.message,
        principal=event.principal if principal else "",
        trace_id=event.trace_id,
    )


def kind_of(kind: events_pb2.Event.Kind.ValueType) -> EventKind:
    """What happened; ValueError for KIND_UNSPECIFIED."""
    return EventKind(events_pb2.Event.Kind.Name(kind).removeprefix("KIND_"))


def severity_of(severity: events_pb2.Event.Severity.ValueType) -> Severity | None:
    """How much it matters; None where that is not said."""
    if severity == events_pb2.Event.SEVERITY_UNSPECIFIED:
        return None
    return Severity(events_pb2.Event.Severity.Name(severity).removeprefix("SEVERITY_"))
