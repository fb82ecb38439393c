"""Records what happens to instances, and hands it to the webhooks that are to hear of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from opsplane_server.instances.model import FailoverKind, FailoverReport, InstanceSpec
from opsplane_server.instances.records import Event, EventKind, Instance, Severity, Webhook
from opsplane_server.instances.stores.ports import EventStore, InstanceStore, WebhookOutbox

_SEVERITIES: Final[Mapping[EventKind, Severity]] = {
    EventKind.FAILED_OVER: Severity.WARNING,
    EventKind.FAILOVER_FAILED: Severity.ERROR,
    EventKind.NODE_LOST: Severity.WARNING,
    EventKind.UPGRADE_FAILED: Severity.ERROR,
    EventKind.UPGRADE_ROLLED_BACK: Severity.WARNING,
    EventKind.BACKUP_FAILED: Severity.ERROR,
    EventKind.BACKUP_OVERDUE: Severity.WARNING,
    EventKind.VERIFICATION_FAILED: Severity.ERROR,
    EventKind.STORAGE_LOW: Severity.WARNING,
    EventKind.STORAGE_FULL: Severity.ERROR,
    EventKind.FAILED: Severity.ERROR,
}
_CHANGES_OF_PRIMARY: Final = frozenset({EventKind.FAILED_OVER, EventKind.SWITCHED_OVER})


def severity_of(kind: EventKind) -> Severity:
    """How much events of a kind matter; INFO for what is in the order of things."""
    return _SEVERITIES.get(kind, Severity.INFO)


def wants(webhook: Webhook, event: Event) -> bool:
    """Whether an event is to be posted there."""
    if webhook.kinds:
        return event.kind in webhook.kinds
    return event.severity is not Severity.INFO or event.kind in _CHANGES_OF_PRIMARY


def about(
    spec: InstanceSpec,
    kind: EventKind,
    message: str,
    *,
    node: str = "",
    resource: str = "",
    operation: str = "",
    principal: str = "",
    trace_id: str = "",
) -> Event:
    """An event of an instance, with the severity of its kind."""
    return Event(
        kind=kind,
        severity=severity_of(kind),
        instance=spec.name,
        instance_uid=spec.uid,
        message=message,
        node=node,
        resource=resource,
        operation=operation,
        principal=principal,
        trace_id=trace_id,
    )


class Events:
    """Both happen in the transaction of the caller, so that what happened and word of it are one."""

    def __init__(self, instances: InstanceStore, store: EventStore, outbox: WebhookOutbox) -> None:
        self._instances = instances
        self._store = store
        self._outbox = outbox

    async def record(
        self, event: Event, *, webhooks: Sequence[Webhook] = (), deduplication_key: str = ""
    ) -> Event | None:
        """Keeps it, and posts it to those of the instance's webhooks and of `webhooks` that want it, each URL once.

        None for an event of a key that was recorded before, which is left out.
        """
        kept = await self._store.append(event, deduplication_key=deduplication_key)
        if kept is None:
            return None
        instance = await self._instances.find(kept.instance)
        own = instance.webhooks if instance is not None and instance.uid == kept.instance_uid else ()
        chosen = {webhook.url: webhook for webhook in (*webhooks, *own) if wants(webhook, kept)}
        if chosen:
            await self._outbox.add(kept, list(chosen.values()))
        return kept

    async def record_failover(
        self,
        instance: Instance,
        report: FailoverReport,
        *,
        operation: str = "",
        principal: str = "",
    ) -> None:
        """Records a change of primary once, whoever tells of it first: who asked for it, or the supervision."""
        forced = report.kind is not FailoverKind.SWITCHOVER
        seconds = (report.complete_time - report.start_time).total_seconds()
        message = (
            f"{report.new_primary} is the primary instead of {report.old_primary}, without writes for at most "
            f"{seconds:.3f} s: {report.reason}"
        )
        await self.record(
            about(
                instance.spec,
                EventKind.FAILED_OVER if forced else EventKind.SWITCHED_OVER,
                message,
                node=report.new_primary,
                operation=operation,
                principal=principal,
            ),
            deduplication_key=f"failover/{instance.uid}/{report.complete_time.isoformat()}",
        )
