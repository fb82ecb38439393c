"""Upgrades and the way back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.backups.v1.backup_pb2 import Backup
from opsplane.instances.v1.lifecycle_pb2 import UpgradeInstanceRequest

from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.model import InstanceState, UpgradeReport
from opsplane_server.instances.operations import failures
from opsplane_server.instances.operations.final_backups import FinalBackups
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.instances.versions import major
from opsplane_server.platform.execution import Execution

_UPGRADING: Final = "upgrading"
_BACKED_UP: Final = 50  # percent of an upgrade with a backup before
_ROLLBACK_DAYS: Final = 3


class Upgrades:
    """The work of UPGRADE, ROLL_BACK and FORGET_UPGRADE. The backup before can be cancelled, the rest can not."""

    def __init__(self, frame: Frame, backups: FinalBackups) -> None:
        self._frame = frame
        self._backups = backups

    async def upgrade(self, execution: Execution, instance: Instance) -> Message:
        """Makes the backup before, then changes the version."""
        frame, spec = self._frame, instance.spec
        assert instance.previous is not None, "an upgrade changes the version"
        request = execution.request(UpgradeInstanceRequest)
        first = 0 if request.skip_backup else _BACKED_UP
        if execution.step != _UPGRADING:
            backup = ""
            if not request.skip_backup:
                backup = await self._backups.make(
                    execution,
                    instance.name,
                    Backup.TYPE_PRE_UPGRADE,
                    backup_id=request.backup_id,
                    retention_days=0,
                    progress=frame.progress(execution, 0, first),
                )
            async with execution.transaction():
                record = await frame.store.lock(instance.name)
                await frame.store.save(replace(record, state=InstanceState.UPGRADING, state_message=""))
                await execution.checkpoint(_UPGRADING, data={"backup": backup}, stage="upgrading")
        provider = frame.provider_of(instance)
        status = await provider.upgrade(spec, frame.progress(execution, first, 100))
        before = instance.previous.version
        way_back = major(spec.engine, before) != major(spec.engine, spec.version)
        if not way_back:
            # A minor upgrade keeps nothing of its own, and what an earlier one kept is of no use any more.
            await provider.forget_upgrade(instance.name)
        now = frame.now()
        report = UpgradeReport(
            from_version=before,
            to_version=status.running_version or spec.version,
            complete_time=now,
            backup=execution.data["backup"],
            rollback_expire_time=now + timedelta(days=request.rollback_days or _ROLLBACK_DAYS) if way_back else None,
        )
        return await frame.end(
            execution,
            instance.name,
            status=status,
            event=(EventKind.UPGRADED, f"upgraded from {before} to {report.to_version}"),
            resource=report.backup,
            response=instance_message,
            change=lambda record: replace(record, version=request.version, last_upgrade=report),
        )

    async def release_upgrade(self, execution: Execution, instance: Instance, error: Exception) -> None:
        """Says that it did not succeed; the old version runs."""
        event = (EventKind.UPGRADE_FAILED, f"the upgrade failed: {failures.words(error)}")
        await self._frame.release(execution, instance, error, event=event)

    async def roll_back(self, execution: Execution, instance: Instance) -> Message:
        """Goes back to the version and data before the newest upgrade."""
        frame, spec = self._frame, instance.spec
        status = await frame.provider_of(instance).roll_back(spec, frame.progress(execution))

        def undone(record: Instance) -> Instance:
            report = record.last_upgrade
            if report is not None:
                report = replace(report, rolled_back=True, rollback_expire_time=None)
            return replace(record, version=spec.version, last_upgrade=report)

        return await frame.end(
            execution,
            instance.name,
            status=status,
            event=(EventKind.UPGRADE_ROLLED_BACK, f"went back to {spec.version}, to the data before the upgrade"),
            response=instance_message,
            change=undone,
        )

    async def forget(self, execution: Execution, instance: Instance) -> Message:
        """Removes what the way back needs."""
        frame = self._frame
        await frame.provider_of(instance).forget_upgrade(instance.name)

        def forgotten(record: Instance) -> Instance:
            report = record.last_upgrade
            return replace(record, last_upgrade=replace(report, rollback_expire_time=None) if report else None)

        return await frame.end(execution, instance.name, status=None, response=_empty, change=forgotten)


def _empty(instance: Instance) -> Message:
    return Empty()
