"""Reading what the nodes of an instance use and count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import structlog

from opsplane_server.errors import OpsplaneError
from opsplane_server.instances.model import Engine, Node, NodeState
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.ports import EngineAdmin, Provider
from opsplane_server.instances.records import Instance, InstanceSample, NodeSample

log = structlog.get_logger(__name__)

_ANSWER_SECONDS: Final = 5.0


class Sampler:
    """Reads samples. It keeps nothing but knows in which node something failed, so that it says so once."""

    def __init__(
        self,
        provider: Provider,
        admins: Mapping[Engine, EngineAdmin],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._provider = provider
        self._admins = admins
        self._now = now
        self._silent: set[str] = set()

    async def sample(self, instance: Instance) -> InstanceSample:
        """What can be read now of each node, after at most some seconds."""
        usage = {used.node: used for used in await self._provider.usage(instance.name)}
        nodes = instance.status.nodes
        servers = await asyncio.gather(*(self._ask(instance, node) for node in nodes))
        return InstanceSample(
            time=self._now(),
            nodes=tuple(
                _node_sample(node, usage.get(node.id), server) for node, server in zip(nodes, servers, strict=True)
            ),
        )

    async def _ask(self, instance: Instance, node: Node) -> ServerSample | None:
        if node.state is not NodeState.READY:
            return None
        place = f"{instance.uid}/{node.id}"
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                access = await self._provider.access(instance.name, node.id)
                sample = await self._admins[instance.spec.engine].sample(access)
        except (OpsplaneError, TimeoutError) as error:
            if place not in self._silent:
                log.warning("server not sampled", node=node.id, error=str(error) or type(error).__name__)
                self._silent.add(place)
            return None
        self._silent.discard(place)
        return sample


def _node_sample(node: Node, usage: NodeUsage | None, server: ServerSample | None) -> NodeSample:
    known = node.state is NodeState.READY
    return NodeSample(node.id, usage, server, node.lag_bytes if known else None, node.lag if known else None)
