"""Changes of primary that somebody asked for."""

from __future__ import annotations

from google.protobuf.message import Message
from opsplane.instances.v1.lifecycle_pb2 import FailoverRequest, SwitchoverRequest

from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.model import FailoverKind
from opsplane_server.instances.operations import failures
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.platform.execution import Execution

_MOVING = "moving"


class Failovers:
    """The work of FAILOVER and SWITCHOVER."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def failover(self, execution: Execution, instance: Instance) -> Message:
        """Makes another node the primary at once."""
        return await self._move(
            execution,
            instance,
            execution.request(FailoverRequest).target_node,
            FailoverKind.FORCED,
        )

    async def switchover(self, execution: Execution, instance: Instance) -> Message:
        """Makes another node the primary in good order."""
        return await self._move(
            execution,
            instance,
            execution.request(SwitchoverRequest).target_node,
            FailoverKind.SWITCHOVER,
        )

    async def _move(self, execution: Execution, instance: Instance, target: str, kind: FailoverKind) -> Message:
        frame, operation = self._frame, execution.operation
        provider = frame.provider_of(instance)
        primary = (await provider.status(instance.name)).primary
        if execution.step != _MOVING:
            await execution.checkpoint(_MOVING, data={"primary": primary})
        elif primary != execution.data["primary"]:
            # It was begun, perhaps done: a second change, away from this one, would be one too many.
            target = primary
        words = f"{operation.verb} was called"
        report = await provider.failover(instance.name, target, kind, words, frame.progress(execution))
        status = await provider.status(instance.name)

        async def record() -> None:
            await frame.events.record_failover(
                instance, report, operation=operation.name, principal=operation.principal
            )

        return await frame.end(execution, instance.name, status=status, response=instance_message, also=record)

    async def release(self, execution: Execution, instance: Instance, error: Exception) -> None:
        """Says that it did not succeed."""
        event = (EventKind.FAILOVER_FAILED, f"{execution.operation.verb} failed: {failures.words(error)}")
        await self._frame.release(execution, instance, error, event=event)
