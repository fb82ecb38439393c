from __future__ import annotations

import asyncio
import time

import pytest
from opsplane_server.rpc.calls import Call, current_call, find_call, set_call
from opsplane_server.rpc.identity import Principal

CALL = Call("/a.B/C", Principal("ci", {}), "unix:")


async def test_call_belongs_to_its_task_and_what_it_starts() -> None:
    async def inner() -> Call:
        return current_call()

    async def outer() -> Call:
        set_call(CALL)
        return await asyncio.create_task(inner())

    assert await asyncio.create_task(outer()) is CALL
    assert find_call() is None
    with pytest.raises(LookupError):
        current_call()


def test_remaining_time() -> None:
    assert CALL.remaining() is None
    assert Call("/a.B/C", CALL.principal, "", deadline=time.monotonic() - 1).remaining() == 0
    assert (Call("/a.B/C", CALL.principal, "", deadline=time.monotonic() + 60).remaining() or 0) > 0
