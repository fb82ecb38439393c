"""Restarting a highly available instance with parameters that replicas may only have after or before their primary."""

from __future__ import annotations

import dataclasses

from opsplane_server.instances.model import Engine, FailoverKind, HighAvailability, NodeState

from tests import instances_harness as harness
from tests.instances_clients import query
from tests.instances_harness import silent


async def test_raised_and_lowered_limits_reach_every_node() -> None:
    async with harness.local_provider() as provider:
        version = provider.versions(Engine.POSTGRESQL)[0]
        spec = harness.spec("orders", version=version, high_availability=HighAvailability(2))
        secrets = harness.passwords()
        before = await provider.create(spec, secrets, None, silent)
        for limit in ("120", "30"):
            wanted = dataclasses.replace(spec, parameters={"max_connections": limit})
            waiting = await provider.update(wanted, silent)
            assert waiting.pending_restart == ("max_connections",)
            status = await provider.restart(spec.name, "", silent)
            assert status.pending_restart == ()
            assert [node.state for node in status.nodes] == [NodeState.READY] * 2
            assert status.endpoints == before.endpoints
            assert status.last_failover is not None
            assert status.last_failover.kind is FailoverKind.SWITCHOVER
            assert status.endpoints is not None
            assert status.endpoints.ro is not None
            for endpoint in (status.endpoints.rw, status.endpoints.ro):
                rows = await query(spec, endpoint, secrets.users["app"], "SHOW max_connections")
                assert rows[0][0] == limit
        await provider.delete(spec.name, silent)
