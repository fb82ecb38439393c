"""proto <-> domain, of what the service Instances speaks about copies."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from opsplane.instances.v1 import copies_pb2, events_pb2, instance_pb2, webhooks_pb2

from opsplane_server.backups.model import (
    Check,
    Copy,
    InstanceFacts,
    Notice,
    Verification,
    VerificationState,
    Webhook,
)
from opsplane_server.rpc.times import moment

# Of an instance that archives its log and does not say how long.
_WINDOW: Final = timedelta(days=7)


def engine_name(number: instance_pb2.Engine.ValueType) -> str:
    """`POSTGRESQL` of ENGINE_POSTGRESQL."""
    return instance_pb2.Engine.Name(number).removeprefix("ENGINE_")


def facts_from_proto(message: instance_pb2.Instance) -> InstanceFacts:
    """What backups need to know of an instance."""
    recovery = message.point_in_time_recovery
    return InstanceFacts(
        name=message.name,
        uid=message.uid,
        engine=engine_name(message.engine),
        state=instance_pb2.Instance.State.Name(message.state).removeprefix("STATE_"),
        window=_window(recovery),
        latest_time=moment(recovery.latest_time) if recovery.HasField("latest_time") else None,
    )


def _window(recovery: instance_pb2.PointInTimeRecovery) -> timedelta | None:
    if not recovery.enabled:
        return None
    return timedelta(days=recovery.window_days) if recovery.window_days else _WINDOW


def copy_from_proto(message: copies_pb2.InstanceCopy) -> Copy:
    """The copy, which keeps the whole message."""
    return Copy(
        location=message.location,
        engine=engine_name(message.engine),
        engine_version=message.engine_version,
        provider=instance_pb2.Provider.Name(message.provider).removeprefix("PROVIDER_"),
        method=message.method,
        consistency=message.consistency,
        node=message.node,
        databases=tuple(message.databases),
        size_bytes=message.size_bytes,
        restore_size_bytes=message.restore_size_bytes,
        start_time=moment(message.start_time),
        cut_time=moment(message.cut_time),
        complete_time=moment(message.complete_time),
        base=message.base,
        logged=message.settings.point_in_time_recovery.enabled,
        document=message.SerializeToString(),
    )


def copy_to_proto(copy: Copy) -> copies_pb2.InstanceCopy:
    """The copy as the provider told it."""
    return copies_pb2.InstanceCopy.FromString(copy.document)


def verification_from_proto(
    report: copies_pb2.CopyReport, start_time: datetime, complete_time: datetime
) -> Verification:
    """What was found. Nothing checked is nothing proven."""
    checks = tuple(
        Check(check.kind, check.result, check.message, check.duration.ToTimedelta()) for check in report.checks
    )
    failed = [check for check in checks if check.result == "FAILED"]
    passed = not failed and any(check.result == "PASSED" for check in checks)
    message = "; ".join(f"{check.kind}: {check.message}" for check in failed)
    return Verification(
        state=VerificationState.PASSED if passed else VerificationState.FAILED,
        start_time=start_time,
        complete_time=complete_time,
        restore_duration=report.restore_duration.ToTimedelta() if report.HasField("restore_duration") else None,
        checks=checks,
        table_count=report.table_count,
        row_count=report.row_count,
        message="" if passed else message or "no check was done",
    )


def event_to_proto(notice: Notice) -> copies_pb2.RecordEventRequest:
    """The event, to be recorded."""
    return copies_pb2.RecordEventRequest(
        event=events_pb2.Event(
            kind=events_pb2.Event.Kind.Value(f"KIND_{notice.kind}"),
            severity=events_pb2.Event.Severity.Value(f"SEVERITY_{notice.severity}"),
            instance=notice.instance,
            instance_uid=notice.instance_uid,
            resource=notice.resource,
            operation=notice.operation,
            message=notice.message,
        ),
        webhooks=[webhook_to_proto(one, with_key=True) for one in notice.webhooks],
        deduplication_key=notice.key_text[:200],
    )


def webhook_to_proto(webhook: Webhook, *, with_key: bool) -> webhooks_pb2.Webhook:
    """A webhook; its key goes to the service Instances alone."""
    return webhooks_pb2.Webhook(
        url=webhook.url,
        signing_key=webhook.signing_key if with_key else "",
        kinds=[events_pb2.Event.Kind.ValueType(kind) for kind in webhook.kinds],
    )
