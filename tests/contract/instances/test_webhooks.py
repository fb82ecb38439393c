"""Events reach webhooks: signed, each until it is taken, whatever the others do, and never who asked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opsplane_server.instances.events import Events, about
from opsplane_server.instances.model import (
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceSpec,
    InstanceState,
    ProviderKind,
    Resources,
    Secrets,
)
from opsplane_server.instances.records import EventKind, Instance, Webhook
from opsplane_server.instances.stores.postgres import (
    PostgresEventStore,
    PostgresInstanceStore,
    PostgresWebhookOutbox,
)
from opsplane_server.instances.webhooks import SIGNATURE_HEADER, WebhookPoster
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.platform_harness import Platform
from tests.platform_harness import platform as platform
from tests.waiting import until

KEY = "a key of sixteen or more"
SPEC = InstanceSpec(
    name="instances/orders",
    uid="u1",
    engine=Engine.POSTGRESQL,
    version="18.1",
    provider=ProviderKind.LOCAL,
    machine="here",
    database="app",
    username="app",
    resources=Resources(2**30, 2**29, 500, 2**29, 500),
)


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent, and answers what `statuses` says, then 204."""

    url: str = ""
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.posts]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.posts.append((dict(self.headers), body))
            self.send_response(kept.statuses.pop(0) if kept.statuses else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield kept
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Room:
    instances: PostgresInstanceStore
    outbox: PostgresWebhookOutbox
    events: Events
    platform: Platform

    @asynccontextmanager
    async def posting(
        self, *, allowed_hosts: list[str] | None = None, ahead: timedelta = timedelta()
    ) -> AsyncIterator[None]:
        poster = WebhookPoster(self.outbox, allowed_hosts=allowed_hosts or [], now=lambda: datetime.now(UTC) + ahead)
        task = asyncio.create_task(poster.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def waiting(self) -> int:
        return int(await self.platform.value("SELECT count(*) FROM instances.webhook_posts"))

    async def overdue(self) -> None:
        """Makes what waits due now."""
        await self.platform.run("UPDATE instances.webhook_posts SET due = now()")


@pytest.fixture
async def room(platform: Platform, tmp_path: Path) -> Room:
    await migrate(platform.dsn, [Migrations("instances", "opsplane_server.instances")])
    box = SecretBox.from_key_file(tmp_path / "key", create=True)
    signal = platform.signals.topic("instances")
    instances = PostgresInstanceStore(platform.database, box, signal)
    outbox = PostgresWebhookOutbox(platform.database, box)
    return Room(instances, outbox, Events(instances, PostgresEventStore(platform.database, signal), outbox), platform)


async def insert(room: Room, *webhooks: Webhook) -> Instance:
    instance = Instance(SPEC, "18", InstanceState.READY, webhooks=webhooks)
    return await room.instances.insert(instance, Secrets("a", "r", {"app": "p"}))


async def test_an_event_is_posted_signed_and_without_who_asked(room: Room, receiver: Receiver) -> None:
    await insert(room, Webhook(receiver.url, KEY, (EventKind.STOPPED,)))
    event = about(SPEC, EventKind.STOPPED, "stopped", operation="operations/one", principal="somebody")
    kept = await room.events.record(event)
    assert kept is not None
    async with room.posting():
        await until(lambda: len(receiver.posts) == 1)
        await until(lambda: _none(room))
    headers, body = receiver.posts[0]
    assert headers[SIGNATURE_HEADER] == hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    assert headers["Content-Type"] == "application/json"
    posted = json.loads(body)
    assert posted.pop("eventTime")
    assert posted == {
        "eventId": str(kept.id),
        "kind": "KIND_STOPPED",
        "severity": "SEVERITY_INFO",
        "instance": "instances/orders",
        "instanceUid": "u1",
        "operation": "operations/one",
        "message": "stopped",
    }


async def test_without_kinds_warnings_and_changes_of_primary_are_posted(room: Room, receiver: Receiver) -> None:
    instance = await insert(room, Webhook(receiver.url))
    now = datetime.now(UTC)
    report = FailoverReport(FailoverKind.SWITCHOVER, "orders-1", "orders-2", "asked for", now, now, now)
    await room.events.record(about(SPEC, EventKind.STARTED, "started"))
    await room.events.record(about(SPEC, EventKind.BACKUP_OVERDUE, "late"))
    await room.events.record_failover(instance, report)
    await room.events.record_failover(instance, report, operation="operations/two")  # told twice, happened once
    async with room.posting():
        await until(lambda: len(receiver.posts) == 2)
        await until(lambda: _none(room))
    assert {event["kind"] for event in receiver.events()} == {"KIND_BACKUP_OVERDUE", "KIND_SWITCHED_OVER"}
    assert SIGNATURE_HEADER not in receiver.posts[0][0]


async def test_it_is_posted_again_until_it_is_taken(room: Room, receiver: Receiver) -> None:
    receiver.statuses = [500, 302, 404]  # a redirect is not followed
    await insert(room)
    await room.events.record(about(SPEC, EventKind.FAILED, "failed"), webhooks=[Webhook(receiver.url, KEY)])
    async with room.posting():
        for attempts in range(1, 5):
            await until(lambda attempts=attempts: len(receiver.posts) == attempts)  # type: ignore[misc]
            if attempts < 4:
                await until(lambda attempts=attempts: _failed(room, attempts))  # type: ignore[misc]
                await room.overdue()
        await until(lambda: _none(room))
    assert len({body for _, body in receiver.posts}) == 1


async def test_who_can_not_be_reached_keeps_nobody_waiting(room: Room, receiver: Receiver) -> None:
    await insert(room)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        port = silent.getsockname()[1]
        hooks = [Webhook(f"http://127.0.0.1:{port}/"), Webhook("http://127.0.0.1:1/"), Webhook(receiver.url)]
        async with room.posting():
            for count in (1, 2):
                await room.events.record(about(SPEC, EventKind.FAILED, "failed"), webhooks=hooks)
                await until(lambda count=count: len(receiver.posts) == count)  # type: ignore[misc]
            await until(lambda: _left(room, 4))


async def test_it_is_given_up_after_a_day(room: Room, receiver: Receiver) -> None:
    receiver.statuses = [503]
    await insert(room)
    await room.events.record(about(SPEC, EventKind.FAILED, "failed"), webhooks=[Webhook(receiver.url)])
    async with room.posting(ahead=timedelta(days=1)):
        await until(lambda: _none(room))
    assert len(receiver.posts) == 1


async def test_a_host_that_the_configuration_does_not_name_gets_nothing(room: Room, receiver: Receiver) -> None:
    await insert(room)
    await room.events.record(about(SPEC, EventKind.FAILED, "failed"), webhooks=[Webhook(receiver.url)])
    async with room.posting(allowed_hosts=["*.example.com"]):
        await until(lambda: _failed(room, 1))
    assert not receiver.posts


async def test_of_another_instance_of_the_name_nothing_is_told(room: Room, receiver: Receiver) -> None:
    await insert(room, Webhook(receiver.url))
    await room.events.record(about(replace(SPEC, uid="u0"), EventKind.FAILED, "the one before"))
    assert await room.waiting() == 0


async def test_keys_are_not_kept_as_they_are(room: Room, receiver: Receiver) -> None:
    await insert(room, Webhook(receiver.url, KEY))
    await room.events.record(about(SPEC, EventKind.FAILED, "failed"))
    for table in ("instances", "webhook_posts"):
        kept = await room.platform.value(f"SELECT string_agg(t::text, '') FROM instances.{table} t")
        assert kept
        assert KEY not in kept
        assert KEY.encode().hex() not in kept


async def _none(room: Room) -> bool:
    return await _left(room, 0)


async def _left(room: Room, count: int) -> bool:
    return await room.waiting() == count


async def _failed(room: Room, attempts: int) -> bool:
    found = await room.platform.value(
        "SELECT count(*) FROM instances.webhook_posts WHERE attempt_count = $1 AND last_error <> '' AND due > now()",
        attempts,
    )
    return bool(found)
