"""Blocking of the event loop is seen, and how long it was."""

from __future__ import annotations

import asyncio
import time

from opsplane_server.telemetry.loop import LoopTurns
from prometheus_client import CollectorRegistry


async def test_a_callback_that_blocks_is_counted_with_its_length() -> None:
    registry = CollectorRegistry()
    with LoopTurns(registry):
        await asyncio.sleep(0.02)
        time.sleep(0.12)  # noqa: ASYNC251 - what is to be seen
        await asyncio.sleep(0.02)
        for name in ("opsplane_event_loop_turn_seconds", "opsplane_event_loop_blocked_seconds"):
            counted = registry.get_sample_value(f"{name}_count")
            short = registry.get_sample_value(f"{name}_bucket", {"le": "0.1"})
            assert counted is not None
            assert short is not None
            assert counted - short >= 1
    assert registry.get_sample_value("opsplane_event_loop_turn_seconds_count") is None
