"""The stores of Instances on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.instances.model import (
    Endpoint,
    Endpoints,
    Engine,
    FailoverKind,
    FailoverReport,
    HighAvailability,
    InstanceSpec,
    InstanceState,
    Node,
    NodeRole,
    NodeState,
    Notice,
    Placement,
    PointInTimeRecovery,
    ProviderKind,
    Resources,
    Secrets,
    Status,
    UpgradeReport,
)
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.records import (
    BackupFigures,
    Event,
    EventKind,
    Granularity,
    Instance,
    InstanceSample,
    NodeSample,
    Severity,
    UsageAmounts,
    Webhook,
)
from opsplane_server.instances.stores.postgres import (
    PostgresEventStore,
    PostgresInstanceStore,
    PostgresPendingPasswords,
    PostgresSampleStore,
    PostgresUsageStore,
    PostgresWebhookOutbox,
)
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import Position
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signals

from tests.waiting import until

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ALL = PageRequest(10, None)
SECRETS = Secrets("admin-secret", "replication-secret", {"app": "app-secret"})


@dataclass(frozen=True, slots=True)
class Stores:
    database: Database
    instances: PostgresInstanceStore
    pending: PostgresPendingPasswords
    events: PostgresEventStore
    outbox: PostgresWebhookOutbox
    samples: PostgresSampleStore
    usage: PostgresUsageStore

    async def text(self) -> str:
        """All that is stored, as text."""
        tables = ("instances", "passwords", "pending_passwords", "events", "webhook_posts")
        async with self.database.connection() as connection:
            rows = [row for table in tables for row in await connection.fetch(f"SELECT * FROM instances.{table}")]
        return repr([dict(row) for row in rows])


@pytest.fixture
async def stores(dsn: str) -> AsyncIterator[Stores]:
    await migrate(dsn, [Migrations("instances", "opsplane_server.instances")])
    box = SecretBox([b"k" * 32])
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(dsn))
        signals = await stack.enter_async_context(Signals(dsn))
        signal = signals.topic("instances")
        yield Stores(
            database,
            PostgresInstanceStore(database, box, signal),
            PostgresPendingPasswords(database, box),
            PostgresEventStore(database, signal),
            PostgresWebhookOutbox(database, box),
            PostgresSampleStore(database, signal),
            PostgresUsageStore(database),
        )


def record(instance_id: str = "orders", **changes: object) -> Instance:
    spec = InstanceSpec(
        name=f"instances/{instance_id}",
        uid=f"uid-{instance_id}",
        engine=Engine.POSTGRESQL,
        version="18.4",
        provider=ProviderKind.LOCAL,
        machine="here",
        database="app",
        username="app",
        resources=Resources(1 << 30, 1 << 29, 500, 1 << 29, 500),
    )
    whole = Instance(spec=spec, version="18", state=InstanceState.CREATING)
    return replace(whole, **changes)  # type: ignore[arg-type]


def full() -> Instance:
    """A record in which every field has a value of its own."""
    plain = record()
    spec = replace(
        plain.spec,
        parameters={"work_mem": "8MB"},
        high_availability=HighAvailability(3, 1, automatic_failover=False),
        point_in_time_recovery=PointInTimeRecovery(5),
        placement=Placement("team", "fast", "REQUIRED"),
    )
    node = Node(
        "orders-1",
        NodeRole.PRIMARY,
        NodeState.READY,
        "127.0.0.1",
        41001,
        True,
        5,
        timedelta(microseconds=1500),
        "z",
        NOW,
    )
    end = Endpoint("127.0.0.1", 41000)
    failover = FailoverReport(FailoverKind.AUTOMATIC, "orders-2", "orders-1", "signal 9", NOW, NOW, NOW, 0)
    return replace(
        plain,
        spec=spec,
        previous=plain.spec,
        state_message="busy",
        operation="operations/one",
        status=Status(
            (node,), "orders-1", Endpoints(end, end, end, end), "18.4", ("a",), 77, True, "PEM",
            (Notice("resources", "not enforced"),), failover, NOW, NOW, NOW,
        ),
        deletion_protection=True,
        expire_time=NOW,
        labels={"team": "shop"},
        webhooks=(Webhook("https://example.com/a", "signing-secret-0001", (EventKind.FAILED,)),),
        last_upgrade=UpgradeReport("16.9", "18.4", NOW, "backups/one", NOW, True),
        source_backup="backups/two",
        source_time=NOW,
        hidden=True,
        revision=7,
    )  # fmt: skip


async def test_a_record_comes_back_as_it_was(stores: Stores) -> None:
    wanted = full()
    kept = await stores.instances.insert(wanted, SECRETS)
    assert kept.create_time is not None
    assert replace(kept, key=0, create_time=None, update_time=None) == wanted
    assert await stores.instances.get(wanted.name) == kept
    assert await stores.instances.secrets(wanted.name) == SECRETS


async def test_secrets_are_stored_encrypted(stores: Stores) -> None:
    await stores.instances.insert(full(), SECRETS)
    await stores.pending.keep("operations/one", "pending-secret")
    event = await stores.events.append(an_event())
    assert event is not None
    await stores.outbox.add(event, full().webhooks)
    text = await stores.text()
    assert "orders" in text
    assert "secret" not in text


async def test_a_name_is_taken_once(stores: Stores) -> None:
    await stores.instances.insert(record(), SECRETS)
    with pytest.raises(AlreadyExists):
        await stores.instances.insert(record(), SECRETS)


async def test_saving_moves_the_update_time_only_with_settings_or_state(stores: Stores) -> None:
    kept = await stores.instances.insert(record(), SECRETS)
    seen = await stores.instances.save(replace(kept, status=Status(storage_used_bytes=5), operation="operations/x"))
    assert seen.update_time == kept.update_time
    assert seen.status.storage_used_bytes == 5
    changed = await stores.instances.save(replace(seen, state=InstanceState.READY))
    assert changed.update_time is not None
    assert kept.update_time is not None
    assert changed.update_time > kept.update_time
    with pytest.raises(NotFound):
        await stores.instances.save(record("other"))


async def test_passwords_of_users_change_one_by_one(stores: Stores) -> None:
    await stores.instances.insert(record(), SECRETS)
    await stores.instances.set_password("instances/orders", "reader", "reader-secret")
    await stores.instances.set_password("instances/orders", "app", "new-secret")
    assert (await stores.instances.secrets("instances/orders")).users == {
        "app": "new-secret",
        "reader": "reader-secret",
    }
    assert (await stores.instances.password_times("instances/orders")).keys() == {"app", "reader"}
    await stores.instances.set_password("instances/orders", "reader", "")
    assert (await stores.instances.secrets("instances/orders")).users == {"app": "new-secret"}
    await stores.instances.delete("instances/orders")
    assert await stores.instances.find("instances/orders") is None
    with pytest.raises(NotFound):
        await stores.instances.secrets("instances/orders")


async def test_pending_passwords_are_of_one_operation(stores: Stores) -> None:
    await stores.pending.keep("operations/one", "secret")
    assert await stores.pending.get("operations/one") == "secret"
    assert await stores.pending.get("operations/two") == ""
    await stores.pending.forget("operations/one")
    assert await stores.pending.get("operations/one") == ""


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (Condition("engine", "=", "MARIADB"), {"b"}),
        (Condition("state", "!=", "READY"), {"a", "c"}),
        (Condition("highly_available", "=", True), {"a"}),
        (Condition("labels.team", "=", "shop"), {"b"}),
        (Condition("labels.team", "!=", "shop"), {"a", "c"}),
        (Condition("placement.namespace", "=", "ns"), {"c"}),
        (Condition("create_time", ">", datetime(2020, 1, 1, tzinfo=UTC)), {"a", "b", "c"}),
        (Condition("labels.x') OR true --", "=", "1"), None),
    ],
)
async def test_lists_are_filtered(stores: Stores, condition: Condition, found: set[str] | None) -> None:
    a, b, c = record("a"), record("b"), record("c")
    a = replace(a, spec=replace(a.spec, high_availability=HighAvailability(3)))
    b = replace(b, spec=replace(b.spec, engine=Engine.MARIADB), labels={"team": "shop"}, state=InstanceState.READY)
    c = replace(c, spec=replace(c.spec, placement=Placement("ns")))
    for one in (a, b, c, record("scratch", hidden=True)):
        await stores.instances.insert(one, SECRETS)
    if found is None:
        with pytest.raises(KeyError):
            await stores.instances.list_instances(ALL, [condition])
        return
    assert {one.spec.id for one in await stores.instances.list_instances(ALL, [condition])} == found


async def test_lists_are_paged_newest_first(stores: Stores) -> None:
    for name in ("a", "b", "c"):
        await stores.instances.insert(record(name), SECRETS)
    first = await stores.instances.list_instances(PageRequest(2, None), [])
    assert [one.spec.id for one in first] == ["c", "b", "a"]
    rest = await stores.instances.list_instances(PageRequest(2, (first[1].key,)), [])
    assert [one.spec.id for one in rest] == ["a"]
    assert [one.spec.id for one in await stores.instances.of_machine("here")] == ["a", "b", "c"]
    assert await stores.instances.of_machine("") == []


async def test_backups_are_kept_beside(stores: Stores) -> None:
    await stores.instances.insert(record(), SECRETS)
    figures = BackupFigures("backups/a", NOW, 12)
    await stores.instances.set_backups("uid-orders", figures)
    kept = await stores.instances.get("instances/orders")
    assert kept.backups == figures
    # Whoever saves what it read before does not overwrite them.
    await stores.instances.save(replace(kept, backups=BackupFigures()))
    assert (await stores.instances.get("instances/orders")).backups == figures


def an_event(**changes: object) -> Event:
    event = Event(EventKind.CREATED, Severity.INFO, "instances/orders", "uid-orders", "created")
    return replace(event, **changes)  # type: ignore[arg-type]


async def test_events_are_listed_newest_first(stores: Stores) -> None:
    for number in range(3):
        await stores.events.append(an_event(message=f"number {number}", principal="ann", node="n", trace_id="t"))
    await stores.events.append(an_event(instance="instances/other", severity=Severity.ERROR))
    found = await stores.events.list_events("instances/orders", PageRequest(2, None), [])
    assert [event.message for event in found] == ["number 2", "number 1", "number 0"]
    assert found[0].principal == "ann"
    rest = await stores.events.list_events("instances/orders", PageRequest(2, (found[1].id,)), [])
    assert [event.message for event in rest] == ["number 0"]
    everywhere = await stores.events.list_events("instances/-", ALL, [Condition("severity", "=", "ERROR")])
    assert [event.instance for event in everywhere] == ["instances/other"]
    with pytest.raises(NotFound):
        await stores.events.list_events("instances/never", ALL, [])


async def test_an_event_of_one_key_is_recorded_once(stores: Stores) -> None:
    assert await stores.events.append(an_event(), deduplication_key="k") is not None
    assert await stores.events.append(an_event(), deduplication_key="k") is None
    assert await stores.events.append(an_event()) is not None
    assert await stores.events.append(an_event()) is not None


async def test_new_events_are_followed(stores: Stores) -> None:
    await stores.events.append(an_event(message="old"))
    end = await stores.events.end()
    await stores.events.append(an_event(message="new"))
    await stores.events.append(an_event(message="of another", instance_uid="other"))
    found: list[tuple[Position, Event]] = []

    async def there() -> bool:
        found[:] = await stores.events.after("uid-orders", end, 10)
        return bool(found)

    await until(there)
    assert [event.message for _, event in found] == ["new"]
    assert await stores.events.after("uid-orders", found[-1][0], 10) == []


async def test_posts_wait_until_they_are_done(stores: Stores) -> None:
    event = await stores.events.append(an_event())
    assert event is not None
    await stores.outbox.add(event, [Webhook("http://a", "key"), Webhook("http://b")])
    first, second = await stores.outbox.take(10, timedelta(minutes=1))
    assert (first.url, first.signing_key, first.event, first.attempt_count) == ("http://a", "key", event, 0)
    assert (second.url, second.signing_key) == ("http://b", "")
    assert await stores.outbox.take(10, timedelta(minutes=1)) == []
    await stores.outbox.done(first.id)
    await stores.outbox.later(second.id, timedelta(), "refused")
    [again] = await stores.outbox.take(10, timedelta(minutes=1))
    assert (again.id, again.attempt_count) == (second.id, 1)
    due = await stores.outbox.next_due()
    assert due is not None
    assert due > datetime.now(UTC) + timedelta(seconds=30)


async def test_samples_come_back_newest_first(stores: Stores) -> None:
    usage = NodeUsage("orders-1", NOW, 1.5, 100, 200)
    server = ServerSample(NOW, 3, 1, 100, transactions=7)
    old = InstanceSample(NOW - timedelta(days=1), (NodeSample("orders-1"),))
    new = InstanceSample(NOW, (NodeSample("orders-1", usage, server, 5, timedelta(seconds=1.25)),))
    for sample in (old, new):
        await stores.samples.add("uid-orders", sample)
    assert await stores.samples.latest("uid-orders", 5) == [new, old]
    assert await stores.samples.latest("uid-orders") == [new]
    await stores.samples.prune(timedelta(minutes=5))
    assert await stores.samples.latest("uid-orders") == []


async def test_usage_is_summed(stores: Stores) -> None:
    usage, hour = stores.usage, datetime(2026, 3, 1, 23, tzinfo=UTC)
    used = UsageAmounts(1.0, 2.0, 3.0, 4.0, 5.5)
    assert await usage.metered_until("u1") is None
    await usage.add("instances/a", "u1", NOW, [(hour, used), (hour + timedelta(hours=1), used)])
    await usage.add("instances/a", "u1", NOW + timedelta(hours=1), [(hour, used)])
    await usage.add("instances/b", "u2", NOW, [(hour, used)])
    assert await usage.metered_until("u1") == NOW + timedelta(hours=1)
    start, end = hour - timedelta(days=40), hour + timedelta(days=1)
    hours = await usage.list_usage("instances/a", start, end, Granularity.HOUR, ALL)
    assert [(span.start_time, span.amounts.cpu_core_hours) for span in hours] == [
        (hour, 2.0),
        (hour + timedelta(hours=1), 1.0),
    ]
    months = await usage.list_usage("instances/-", start, end, Granularity.MONTH, ALL)
    assert [(span.instance_uid, span.amounts.cost_micros) for span in months] == [("u1", 16.5), ("u2", 5.5)]
    assert months[0].start_time == datetime(2026, 3, 1, tzinfo=UTC)
    assert months[0].end_time == datetime(2026, 4, 1, tzinfo=UTC)
    days = await usage.list_usage("instances/-", start, end, Granularity.DAY, PageRequest(1, None))
    key = (int(days[0].start_time.timestamp()), days[0].instance_uid)
    rest = await usage.list_usage("instances/-", start, end, Granularity.DAY, PageRequest(5, key))
    assert [(span.instance_uid, span.start_time.day) for span in rest] == [("u2", 1), ("u1", 2)]
    assert (await usage.total("instances/-", start, end)).backup_gib_hours == 16.0
    assert await usage.total("instances/a", end, end + timedelta(days=1)) == UsageAmounts()
    with pytest.raises(NotFound):
        await usage.total("instances/never", start, end)
