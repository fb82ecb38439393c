"""What every RequestStore and AuditStore keeps to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from opsplane_server.platform.model import AuditEvent, RecordedRequest, RequestKey
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest

from tests.platform_harness import Platform
from tests.waiting import until

KEY = RequestKey("ann", "/s/M", "id-1")


def event(resource: str, principal: str = "ann") -> AuditEvent:
    return AuditEvent(principal, "/s/M", resource, "id-1", "ipv4:127.0.0.1:1", "ab" * 16)


async def test_a_claimed_key_gives_back_what_was_answered(platform: Platform) -> None:
    assert await platform.requests.claim(KEY, b"hash") is None
    await platform.requests.answer(KEY, b"answer")
    assert await platform.requests.claim(KEY, b"other") == RecordedRequest(b"hash", b"answer")


async def test_a_key_is_of_its_caller_and_method(platform: Platform) -> None:
    for key in (
        KEY,
        RequestKey("bob", "/s/M", "id-1"),
        RequestKey("ann", "/s/N", "id-1"),
        RequestKey("ann", "/s/M", "2"),
    ):
        assert await platform.requests.claim(key, b"hash") is None


async def test_a_claim_waits_for_the_transaction_that_holds_the_key(platform: Platform) -> None:
    async with platform.database.transaction():
        await platform.requests.claim(KEY, b"hash")
        twin = asyncio.create_task(platform.requests.claim(KEY, b"hash"))
        await until(lambda: platform.value("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
        assert not twin.done()
        await platform.requests.answer(KEY, b"answer")
    assert await twin == RecordedRequest(b"hash", b"answer")


async def test_old_requests_are_forgotten(platform: Platform) -> None:
    await platform.requests.claim(KEY, b"hash")
    assert await platform.requests.purge(timedelta(days=1), 10) == 0
    await platform.run("UPDATE platform.requests SET create_time = create_time - interval '2 days'")
    assert await platform.requests.purge(timedelta(days=1), 10) == 1
    assert await platform.requests.claim(KEY, b"hash") is None


async def test_events_are_listed_newest_first_in_pages(platform: Platform) -> None:
    for number in range(4):
        await platform.audit.append(event(f"r/{number}"))
    first = await platform.audit.list_events(PageRequest(2, None), [])
    assert [found.resource for found in first] == ["r/3", "r/2", "r/1"]
    rest = await platform.audit.list_events(PageRequest(2, (first[1].id,)), [])
    assert [found.resource for found in rest] == ["r/1", "r/0"]
    assert rest[0].event_time is not None
    assert (rest[0].principal, rest[0].trace_id, rest[0].peer) == ("ann", "ab" * 16, "ipv4:127.0.0.1:1")


async def test_events_are_filtered(platform: Platform) -> None:
    await platform.audit.append(event("r/1"))
    await platform.audit.append(event("r/2", "bob"))

    async def found(*conditions: Condition) -> list[str]:
        return [event.resource for event in await platform.audit.list_events(PageRequest(10, None), conditions)]

    assert await found(Condition("principal", "=", "bob")) == ["r/2"]
    assert await found(Condition("resource", ":", "R/"), Condition("method", "=", "/s/M")) == ["r/2", "r/1"]
    assert await found(Condition("event_time", ">", datetime(2100, 1, 1, tzinfo=UTC))) == []
