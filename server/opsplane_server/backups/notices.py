"""Word of what happened to backups: events of their instances, posted to webhooks by the service Instances.

They are stored in the transaction of what they tell of, and told later: nothing is lost when either service is away.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from opsplane_server.backups.model import Backup, Notice, Schedule, Webhook
from opsplane_server.backups.ports import Instances, NoticeStore
from opsplane_server.errors import FailedPrecondition, InvalidArgument, OpsplaneError, ResourceExhausted, Unavailable

log = structlog.get_logger(__name__)

# As long as webhooks are tried.
_GIVE_UP: Final = timedelta(days=1)
_MAX_WAIT: Final = timedelta(minutes=5)
_BATCH: Final = 100


def of_backup(
    backup: Backup, kind: str, severity: str, message: str, *, operation: str, webhooks: tuple[Webhook, ...] = ()
) -> Notice:
    """An event about a backup."""
    return Notice(
        kind=kind,
        severity=severity,
        instance=backup.instance,
        instance_uid=backup.instance_uid,
        resource=backup.name,
        operation=operation,
        message=message,
        key_text=f"{kind} {backup.uid} {operation}",
        webhooks=webhooks,
    )


def of_schedule(
    schedule: Schedule, instance: str, instance_uid: str, kind: str, severity: str, message: str, due: datetime
) -> Notice:
    """An event about a schedule and one of its instances; there is one of a kind for each time that it is due."""
    return Notice(
        kind=kind,
        severity=severity,
        instance=instance,
        instance_uid=instance_uid,
        resource=schedule.name,
        operation="",
        message=message,
        key_text=f"{kind} {schedule.key} {instance} {due.isoformat()}",
        webhooks=schedule.webhooks,
    )


class Teller:
    """Tells what waits."""

    def __init__(self, store: NoticeStore, instances: Instances) -> None:
        self._store = store
        self._instances = instances

    async def tell(self) -> None:
        """Tells all whose time has come, each once; what can not be told now is tried again for a day."""
        for notice in await self._store.waiting(_BATCH):
            try:
                await self._instances.record(notice)
            except (Unavailable, FailedPrecondition, ResourceExhausted) as error:
                assert notice.create_time is not None
                if datetime.now(UTC) - notice.create_time < _GIVE_UP:
                    await self._store.put_off(notice, min(timedelta(seconds=2**notice.attempts), _MAX_WAIT))
                    continue
                log.warning("event given up", event_kind=notice.kind, resource=notice.resource, detail=error.message)
            except InvalidArgument as error:
                if notice.webhooks:
                    # One of them is not allowed; the event itself must not be lost for that.
                    log.warning("webhooks refused", resource=notice.resource, detail=error.message)
                    await self._record_alone(notice)
                else:
                    log.error("event refused", event_kind=notice.kind, detail=error.message)
            except OpsplaneError as error:
                log.error("event refused", event_kind=notice.kind, resource=notice.resource, detail=error.message)
            await self._store.told(notice)

    async def _record_alone(self, notice: Notice) -> None:
        try:
            await self._instances.record(replace(notice, webhooks=()))
        except OpsplaneError as error:
            log.error("event refused", event_kind=notice.kind, resource=notice.resource, detail=error.message)
